"""What a device grants: bounds that no server can lift, checked before anything is computed or charged.

A federation publishes one policy, signed with its root key, whose public half a device pins when it joins. The device
compares every query with it and refuses with a code of a closed list; there is no override.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.accounting import ZcdpFilter
from privacy.canonical import canonical_json, exact_fields, is_digest, is_name, parse_canonical, sha256_hex
from privacy.errors import ConfigError, PolicyRefused, WireError
from privacy.objective import NEXT_TOKEN, OBJECTIVES, PURPOSES
from privacy.query import MAX_DIM, Limits, Query, fraction_text, parse_fraction
from privacy.signed import signed_body, signed_file
from privacy.wire import RefusalCode

PROTOCOL: Final = "confide-policy/2"
MAX_BYTES: Final = 16384
_FRACTIONS: Final = ("min_noise_multiplier", "max_clip_norm", "min_survivor_fraction", "budget_rho", "yearly_rho")
# Fields that are not written where they have this value: nothing is said then.
_OPTIONAL: Final[Mapping[str, object]] = {"yearly_rho": None, "witness_key": None, "serial": 0, "public_sha256": None}


@dataclass(frozen=True)
class Policy:
    """The bounds of one federation. A query must meet all of them; the budget is zCDP of all its purposes together.

    `budget_rho` is for a lifetime and never refunded; `yearly_rho` of it may be spent in any 365 days (`privacy.meter`;
    None: all of it). `witness_key` names whose signed times date the charges; None: the device's own clock. A device
    takes a policy with a higher `serial` in the place of the one it holds, never one with a lower: more budget comes
    from the root key only, and an old, more generous policy does not come back.

    `objectives` are what may be computed, of the closed list. `public_sha256` names the public tables that some of them
    rest on (encoder and word list, `client.figures`): a device that has others answers none of those.

    `allow_replayed_noise` and `allow_unprotected` (transport `off`) are for simulation: what runs under them is stamped
    NOT PRIVATE. `min_survivor_fraction` is of the invited; the query's own floor must be at least that. Raises
    ConfigError.
    """

    federation: str
    purposes: tuple[str, ...]
    min_noise_multiplier: Fraction
    max_clip_norm: Fraction
    min_invited: int
    min_survivor_fraction: Fraction
    max_participations: int
    budget_rho: Fraction
    max_dim: int
    limits: Limits
    basis_sha256: str
    release_signer: str
    allow_replayed_noise: bool = False
    allow_unprotected: bool = False
    yearly_rho: Fraction | None = None
    witness_key: str | None = None
    serial: int = 0
    objectives: tuple[str, ...] = (NEXT_TOKEN,)
    public_sha256: str | None = None

    def __post_init__(self) -> None:
        _require(is_name(self.federation), "federation")
        for name, known in (("purposes", PURPOSES), ("objectives", tuple(OBJECTIVES))):
            granted = getattr(self, name)
            closed = isinstance(granted, tuple) and all(each in known for each in granted)
            _require(closed and list(granted) == sorted(set(granted)), name)
        for name in _FRACTIONS:
            value = getattr(self, name)
            absent = value is None and name in _OPTIONAL
            _require(absent or (isinstance(value, Fraction) and value >= 0 and _round_trips(value)), name)
        _require(self.yearly_rho is None or self.yearly_rho <= self.budget_rho, "yearly_rho")
        for name in ("witness_key", "public_sha256"):
            _require(getattr(self, name) is None or is_digest(getattr(self, name)), name)
        _require(type(self.serial) is int and 0 <= self.serial <= MAX_DIM, "serial")
        _require(self.min_survivor_fraction <= 1, "min_survivor_fraction")
        for name in ("min_invited", "max_participations", "max_dim"):
            value = getattr(self, name)
            _require(type(value) is int and 1 <= value <= MAX_DIM, name)
        _require(isinstance(self.limits, Limits), "limits")
        for name in ("basis_sha256", "release_signer"):
            _require(is_digest(getattr(self, name)), name)
        for name in ("allow_replayed_noise", "allow_unprotected"):
            _require(type(getattr(self, name)) is bool, name)

    def check(
        self,
        query: Query,
        spent_rho: Fraction,
        participations: int,
        year_rho: Fraction | None = None,
        witnessed: bool = False,
    ) -> None:
        """Return if the device may answer `query` after `participations` answers that cost `spent_rho`.

        `year_rho` of it was spent within the year: call as `check(query, *ledger.spent(event))`. None counts all of it,
        and so does a year that no signed time dated (`witnessed`) where the policy names a witness. Raises
        PolicyRefused with the first bound that fails, in the order of `RefusalCode` but for the objective, which comes
        after the participations; last BudgetExhausted, for the lifetime, then for the year.
        """
        for holds, code in self._bounds(query, participations):
            if not holds:
                raise PolicyRefused(code)
        if query.rho is not None:
            ZcdpFilter(self.budget_rho, spent_rho).charge(query.rho)
            if self.yearly_rho is not None:
                dated = witnessed or self.witness_key is None
                within = year_rho if year_rho is not None and dated else spent_rho
                ZcdpFilter(self.yearly_rho, within, RefusalCode.YEARLY).charge(query.rho)

    def _bounds(self, query: Query, participations: int) -> list[tuple[bool, RefusalCode]]:
        cohort, work = query.cohort, query.limits
        promised = Fraction(cohort.min_survivors, cohort.invited)
        noisy = query.noise_multiplier >= self.min_noise_multiplier
        granted = self.limits
        within = work.own_tokens <= granted.own_tokens and work.local_steps <= granted.local_steps
        return [
            (query.federation == self.federation, RefusalCode.FEDERATION),
            (query.policy_sha256 == self.sha256, RefusalCode.POLICY),
            (query.basis_sha256 == self.basis_sha256, RefusalCode.BASIS),
            (query.purpose in self.purposes, RefusalCode.PURPOSE),
            (query.transport != "off" or self.allow_unprotected, RefusalCode.UNPROTECTED),
            (not query.replayed_noise or self.allow_replayed_noise, RefusalCode.REPLAYED_NOISE),
            (cohort.invited >= self.min_invited, RefusalCode.COHORT),
            (promised >= self.min_survivor_fraction, RefusalCode.SURVIVORS),
            (noisy or query.transport == "off", RefusalCode.NOISE),
            (query.clip_norm <= self.max_clip_norm, RefusalCode.CLIP),
            (query.dim <= self.max_dim, RefusalCode.DIM),
            (within and work.seconds <= granted.seconds, RefusalCode.WORK),
            (participations < self.max_participations, RefusalCode.PARTICIPATIONS),
            (query.objective in self.objectives, RefusalCode.OBJECTIVE),
        ]

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        silent = {name for name, value in _OPTIONAL.items() if getattr(self, name) == value}
        fields: dict[str, object] = {name: value for name, value in asdict(self).items() if name not in silent}
        exact: dict[str, object] = {name: fraction_text(getattr(self, name)) for name in _FRACTIONS if name in fields}
        return canonical_json(fields | exact | {"protocol": PROTOCOL})

    @classmethod
    def from_bytes(cls, data: bytes) -> Policy:
        """Return the policy whose canonical bytes are exactly `data`; WireError for form, ConfigError for meaning."""
        if len(data) > MAX_BYTES:
            raise WireError(f"policy longer than {MAX_BYTES} bytes")
        value = parse_canonical(data)
        names = {"protocol", *cls.__dataclass_fields__}
        absent = {name for name in _OPTIONAL if isinstance(value, dict) and name not in value}
        fields = exact_fields(value, names - absent, "policy")
        if fields.pop("protocol") != PROTOCOL:
            raise WireError(f"policy of another protocol than {PROTOCOL}")
        for name in ("purposes", "objectives"):
            if not isinstance(fields[name], list):
                raise WireError(f"policy: {name} is not a list")
            fields[name] = tuple(fields[name])
        fields["limits"] = Limits(**exact_fields(fields["limits"], set(Limits.__dataclass_fields__), "limits"))
        found = cls(**fields | {name: parse_fraction(fields[name]) for name in _FRACTIONS if name in fields})
        if found.to_bytes() != data:
            raise WireError("policy: a field that says nothing is written")
        return found

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the canonical bytes, which every query under this policy names."""
        return sha256_hex(self.to_bytes())


def signed_policy(policy: Policy, key: Ed25519PrivateKey) -> bytes:
    """Return the file: canonical JSON {"policy": ..., "signature": hex} by the federation's root key."""
    return signed_file("policy", policy.to_bytes(), key)


def open_policy(data: bytes, root_key: Ed25519PublicKey) -> Policy:
    """Return the policy of a file that `root_key` signed. Raises WireError, SignatureInvalid, ConfigError."""
    if len(data) > MAX_BYTES:
        raise WireError(f"policy longer than {MAX_BYTES} bytes")
    return _opened(bytes(data), root_key.public_bytes_raw())


@lru_cache(maxsize=8)
def _opened(data: bytes, root_key: bytes) -> Policy:
    """Return the policy: in one process many people's ledgers hold the same few, and a value may be shared."""
    return Policy.from_bytes(signed_body("policy", data, Ed25519PublicKey.from_public_bytes(root_key), MAX_BYTES))


def _round_trips(value: Fraction) -> bool:
    try:
        return parse_fraction(fraction_text(value)) == value
    except WireError:
        return False


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise ConfigError(f"policy: {name} is not allowed")
