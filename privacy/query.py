"""What a server may ask: one bounded vector per device, answered only as a noisy share of a sum.

Everything a device must know to clip, round and noise its answer is in `Query`, and nothing else is: its SHA-256 enters
every answer, ledger entry and noise stream, so two parties that hold different questions never hold matching answers.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.canonical import canonical_json, exact_fields, is_digest, is_name, parse_canonical, sha256_hex
from privacy.errors import ConfigError, WireError
from privacy.objective import CHOICES, LEAST_LOSS, OBJECTIVES, PURPOSES

PROTOCOL: Final = "confide-query/2"
TRANSPORTS: Final = ("masked", "ideal", "off")
RING_LIMIT: Final = 2**31 - 1
NOISE_TAIL: Final = 12  # kappa: deviations of the sum's noise that fit in the ring beside the signal
MIN_SIGMA: Final = 10  # below, a sum of discrete Gaussians is not close enough to one (see `Query.rho`)
MAX_DIM: Final = 2**24
MAX_INVITED: Final = 2**20
MAX_MASKED: Final = 2**14  # devices in one masked sum
NO_DIRECTORY: Final = "0" * 64  # a sum in the clear may name no directory of keys
MAX_BYTES: Final = 8192
FIGURE: Final = Fraction(15, 16)  # of the clip: what a figure of 1 is written as; with a weight beside it, 0.97 of it
_FRACTION = re.compile(r"(0|[1-9][0-9]{0,17})/([1-9][0-9]{0,17})")


@dataclass(frozen=True)
class Cohort:
    """How many devices are invited, and what follows for the protection of each.

    min_survivors = floor(2 n / 3) + 1 answers or no sum; up to max_colluding = floor(n / 10) of them may work with the
    server and add no noise; the noise is calibrated to the `honest` rest, so that it is never below what is claimed.
    """

    invited: int

    def __post_init__(self) -> None:
        _require(type(self.invited) is int and 1 <= self.invited <= MAX_INVITED, "cohort.invited", self.invited)

    @property
    def min_survivors(self) -> int:
        """Return the least number of answers whose sum is released."""
        return 2 * self.invited // 3 + 1

    @property
    def max_colluding(self) -> int:
        """Return how many of the survivors may omit their noise without breaking the claim."""
        return self.invited // 10

    @property
    def honest(self) -> int:
        """Return the number of honest survivors that the noise of each device is calibrated to."""
        return self.min_survivors - self.max_colluding


@dataclass(frozen=True)
class Limits:
    """How much local work the answer may rest on: own tokens read, optimiser steps taken, seconds of them, at most.

    No step begins after `seconds`: what was learned by then is the answer.
    """

    own_tokens: int
    local_steps: int
    seconds: int = 3600

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require(type(value) is int and 0 < value <= 2**31, f"limits.{name}", value)


@dataclass(frozen=True)
class Sampling:
    """Each of `people` devices takes part with probability `rate`, by its own coin (`privacy.sampling`).

    `cohort.invited` is then the most whose answers are taken, drawn at random from those who came.
    """

    people: int
    rate: Fraction

    def __post_init__(self) -> None:
        _require(type(self.people) is int and 1 <= self.people <= MAX_INVITED, "sampling.people", self.people)
        exact = isinstance(self.rate, Fraction) and _FRACTION.fullmatch(fraction_text(self.rate))
        _require(exact and 0 < self.rate <= 1, "sampling.rate", self.rate)


@dataclass(frozen=True)
class Query:
    """One question of a campaign: layout, clip, noise, cohort and all it depends on.

    What is computed is `objective`, of the closed list in `privacy.objective`; with several slots `choice` says how a
    device picks its own. The answer is a vector [dim] = [slot_1 | ... | slot_K | K weights], clipped as a whole to
    `clip_norm`. With one slot there is no weight.

    Transport `masked` is the private sum (`privacy.secagg`): whoever adds learns the sum alone, and `directory_sha256`
    pins the keys of who may take part. `ideal` adds each device's noise and sums in the clear: whoever sums sees every
    single answer, at that device's own noise (`privacy.accounting.sybil_rho`). `off` adds no noise at all. Raises
    ConfigError.
    """

    federation: str
    campaign: str
    round: int
    attempt: int
    purpose: str
    slots: int
    slot_dim: int
    clip_norm: Fraction
    noise_multiplier: Fraction
    cohort: Cohort
    transport: str
    release_sha256: str
    basis_sha256: str
    policy_sha256: str
    ledger_head: str
    objective: str
    limits: Limits
    directory_sha256: str = NO_DIRECTORY
    replayed_noise: bool = False
    sampling: Sampling | None = None
    choice: str = LEAST_LOSS

    def __post_init__(self) -> None:
        for name in ("federation", "campaign"):
            _require(is_name(getattr(self, name)), name, getattr(self, name))
        for name in ("release_sha256", "basis_sha256", "policy_sha256", "ledger_head", "directory_sha256"):
            _require(is_digest(getattr(self, name)), name, getattr(self, name))
        for name, least in (("round", 0), ("attempt", 0), ("slots", 1), ("slot_dim", 1)):
            value = getattr(self, name)
            _require(type(value) is int and least <= value <= MAX_DIM, name, value)
        _require(isinstance(self.cohort, Cohort) and isinstance(self.limits, Limits), "cohort or limits", None)
        _require(self.purpose in PURPOSES, "purpose", self.purpose)
        serves = isinstance(self.objective, str) and self.purpose in OBJECTIVES.get(self.objective, ())
        _require(serves, f"objective (for {self.purpose})", self.objective)
        _require(self.choice in CHOICES, "choice", self.choice)
        _require(self.transport in TRANSPORTS, "transport", self.transport)
        _require(type(self.replayed_noise) is bool, "replayed_noise", self.replayed_noise)
        if self.transport == "masked":
            _require(self.directory_sha256 != NO_DIRECTORY, "directory_sha256", self.directory_sha256)
            _require(2 <= self.cohort.invited <= MAX_MASKED, "cohort.invited (masked)", self.cohort.invited)
        sampled = isinstance(self.sampling, Sampling) and self.cohort.invited <= self.sampling.people
        _require(self.sampling is None or sampled, "sampling", self.sampling)
        self._check_mechanism()

    def _check_mechanism(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            _require(isinstance(value, Fraction) and _FRACTION.fullmatch(fraction_text(value)), name, value)
        _require(self.clip_norm > 0, "clip_norm", self.clip_norm)
        _require(self.dim <= MAX_DIM, "dim", self.dim)
        _require(self.dim <= self.integer_clip**2, "dim (too large for the ring at this cohort)", self.dim)
        if self.transport != "off":
            _require(self.sigma >= MIN_SIGMA, f"noise_multiplier (sigma below {MIN_SIGMA})", self.noise_multiplier)

    @property
    def weighted(self) -> bool:
        """Return whether each slot carries a weight coordinate: only when there is a choice of slots to count."""
        return self.slots > 1

    @property
    def dim(self) -> int:
        """Return the length of an answer."""
        return self.slots * self.slot_dim + (self.slots if self.weighted else 0)

    @property
    def weight(self) -> Fraction:
        """Return the value that a device puts into the weight of its slot: a quarter of the clip."""
        return self.clip_norm / 4

    @property
    def figure(self) -> float:
        """Return what a figure of 1 is written as where an answer holds figures: 15/16 of the clip."""
        return float(FIGURE * self.clip_norm)

    @cached_property
    def integer_clip(self) -> int:
        """Return S, the clip in integer units: the largest power of two that leaves room in the 32-bit ring.

            S (n + kappa z sqrt(n / honest)) <= 2^31 - 1,   n = invited, kappa = 12, decided in integers

        A sum of n answers wraps with probability about dim * 2 Phi(-12) = 4e-33 dim. That would spoil the sum, not the
        privacy: reduction modulo 2^32 is post-processing.
        """
        n, z = self.cohort.invited, self.noise_multiplier
        tail_squared = (NOISE_TAIL * z) ** 2 * n / self.cohort.honest
        clip = 1 << 30
        while clip and (clip * n > RING_LIMIT or tail_squared * clip**2 > (RING_LIMIT - clip * n) ** 2):
            clip >>= 1
        _require(clip > 0, "noise_multiplier (no room in the ring)", z)
        return clip

    @property
    def scale(self) -> float:
        """Return s = S / clip_norm: integer units per unit of the update."""
        return float(self.integer_clip / self.clip_norm)

    @cached_property
    def sigma(self) -> float:
        """Return each device's noise in integer units, z S / sqrt(honest) rounded up to a whole number."""
        squared = (self.noise_multiplier * self.integer_clip) ** 2 / self.cohort.honest
        root = math.isqrt(math.ceil(squared))
        return float(root if root * root >= squared else root + 1)

    @property
    def private(self) -> bool:
        """Return whether the answers carry fresh noise; if not, everything made from them says NOT PRIVATE."""
        return self.transport != "off" and not self.replayed_noise

    @cached_property
    def rho(self) -> Fraction | None:
        """Return the zCDP of one answer seen only as the sum, 1 / (2 z^2); None if not private.

        User level, zero-out adjacency, for every honest device, no amplification. Holds against whoever sees the sum of
        at least `min_survivors` answers of which at most `max_colluding` lack noise. Not against whoever sees single
        answers. Per device sigma >= 10, where a sum of discrete Gaussians differs from one by less than
        10 n exp(-pi^2 sigma^2) < 1e-400 (Kairouz, Liu, Steinke 2021, Prop. 14).
        """
        return 1 / (2 * self.noise_multiplier**2) if self.private else None

    def split(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the slots [slots, slot_dim] and the weights [slots] (None if unweighted) of a vector [dim]."""
        if values.shape != (self.dim,):
            raise ConfigError(f"a vector of {self.dim} was expected, got shape {values.shape}")
        used = self.slots * self.slot_dim
        return values[:used].reshape(self.slots, self.slot_dim), values[used:] if self.weighted else None

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; what is derived (dim, S, sigma, floors) is recomputed, never sent."""
        return self._bytes

    @cached_property
    def _bytes(self) -> bytes:
        fields: dict[str, object] = {**asdict(self), "protocol": PROTOCOL}
        fields["clip_norm"] = fraction_text(self.clip_norm)
        fields["noise_multiplier"] = fraction_text(self.noise_multiplier)
        del fields["sampling"]  # written only where devices sample: a query without it has the bytes it always had
        if self.sampling is not None:
            fields["sampling"] = {"people": self.sampling.people, "rate": fraction_text(self.sampling.rate)}
        return canonical_json(fields)

    @classmethod
    def from_bytes(cls, data: bytes) -> Query:
        """Return the query whose canonical bytes are exactly `data`; WireError for form, ConfigError for meaning."""
        if len(data) > MAX_BYTES:
            raise WireError(f"query longer than {MAX_BYTES} bytes")
        return _query_of(bytes(data))

    @classmethod
    def _read(cls, data: bytes) -> Query:
        value = parse_canonical(data)
        absent = {"sampling"} if isinstance(value, dict) and "sampling" not in value else set()
        fields = exact_fields(value, {"protocol", *cls.__dataclass_fields__} - absent, "query")
        if fields.pop("protocol") != PROTOCOL:
            raise WireError(f"query of another protocol than {PROTOCOL}")
        fields["clip_norm"] = parse_fraction(fields["clip_norm"])
        fields["noise_multiplier"] = parse_fraction(fields["noise_multiplier"])
        fields["cohort"] = Cohort(**exact_fields(fields["cohort"], set(Cohort.__dataclass_fields__), "cohort"))
        fields["limits"] = Limits(**exact_fields(fields["limits"], set(Limits.__dataclass_fields__), "limits"))
        if not absent:
            sampling = exact_fields(fields["sampling"], set(Sampling.__dataclass_fields__), "sampling")
            fields["sampling"] = Sampling(sampling["people"], parse_fraction(sampling["rate"]))
        return cls(**fields)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the canonical bytes, hexadecimal."""
        return sha256_hex(self.to_bytes())

    @cached_property
    def mechanism_sha256(self) -> str:
        """Return the SHA-256 over all that shapes an answer: not `ledger_head`, `policy_sha256`, `directory_sha256`.

        Those three name keys and times of one run. Without them a campaign replayed from the same noise key has the
        same noise, bit for bit; and a device whose ledger was rolled back gives the same answer again, not a second
        one, as long as its update is the same.
        """
        fields = parse_canonical(self.to_bytes())
        assert isinstance(fields, dict)
        del fields["ledger_head"], fields["policy_sha256"], fields["directory_sha256"]
        return sha256_hex(canonical_json(fields))

    def event_id(self, device_id: str) -> bytes:
        """Return the 32 bytes that name this device's one answer to this query: one charge, one answer.

        SHA-256 over federation, campaign, round, attempt, `mechanism_sha256` and the device. A ledger refuses another
        query under a known event.
        """
        _require(is_name(device_id), "device_id", device_id)
        place = [self.federation, self.campaign, self.round, self.attempt]
        event = ["confide-event/1", *place, self.mechanism_sha256, device_id]
        return bytes.fromhex(sha256_hex(canonical_json(event)))


@lru_cache(maxsize=8)
def _query_of(data: bytes) -> Query:
    """Return the query of `data`: in one process many people's devices read the same few, and a value may be shared."""
    return Query._read(data)


def fraction_text(value: Fraction) -> str:
    """Return `value` as num/den in lowest terms: the one form in which exact numbers are written."""
    return f"{value.numerator}/{value.denominator}"


def parse_fraction(text: object) -> Fraction:
    """Return the non-negative number that `text` writes as num/den in lowest terms; WireError for any other form."""
    if not isinstance(text, str) or not _FRACTION.fullmatch(text):
        raise WireError("a fraction must be written num/den")
    value = Fraction(text)
    if fraction_text(value) != text:
        raise WireError("a fraction must be in lowest terms")
    return value


def _require(holds: object, name: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"query: {name} = {str(value)[:80]} is not allowed")
