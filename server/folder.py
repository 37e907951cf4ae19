"""An operator's folder: everything of one federation's server, and who may read it.

    federation.json          what was chosen: names, address, model, basis, bundle, noise, cohort; no secret
    root/root.key, ca.key    0600: sign policy, directory, invitation; the server's certificate. Needed to admit, revoke
                             and rotate, never to run: `--keys FOLDER` says where they are when they are kept elsewhere
    root/root.pub            the root key that devices pin
    tls/ca.crt, server.*     the authority's certificate, the server's certificate and key (0600)
    invitation.json          for everybody who is invited
    members.json             who was admitted, who was revoked
    codes.json               0600: the keys of the codes that are out
    policy.json              signed; server/ledger holds it and the directory where the campaign reads them
    bundle/                  the one bundle that is submitted, as devices pinned it
    server/                  the campaign (`server.home`): ledger/, checkpoints/, release/; archive/ of earlier ones
    superlink/               what runs: ports, Flower's database and settings, logs

The folder is the operator's alone, mode 0700.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import is_digest, is_name
from privacy.directory import Directory, open_directory
from privacy.enrolment import federation_number, require_personas, split_address
from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.policy import Policy, open_policy

SETTINGS = "federation.json"


@dataclass(frozen=True)
class Settings:
    """What an operator chose for a federation. Raises ConfigError for what cannot be meant.

    `address` is where SuperNodes connect (host:port); `listen` the address that is listened on, `control` the port of
    the SuperLink on loopback, `observe` that of the operator's page and metrics. `cohort` devices are invited to a
    round and are the least that a device answers among;
    with `personas` (0: none) every second of the `rounds` trains these, chosen by their loss, or by their owners where
    they are `declared` ("name: description" each); `hold_s` and `stage_s` as in `server.rounds`.
    """

    federation: str
    address: str
    model: str
    model_sha256: str
    basis_sha256: str
    bundle_sha256: str
    layers: int
    dim: int
    cohort: int = 16
    rounds: int = 2
    personas: int = 0
    noise_multiplier: str = "1"
    clip: str = "1/10"
    own_tokens: int = 96
    hold_s: int = 60
    stage_s: int = 90
    listen: str = "0.0.0.0"  # noqa: S104 - the fleet's interface is what devices reach; all else is on loopback
    control: int = 9443
    observe: int = 9444
    names: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(is_name(self.federation), "federation is a name")
        split_address(self.address)
        for name in ("model_sha256", "basis_sha256", "bundle_sha256"):
            _require(is_digest(getattr(self, name)), f"{name} is not 64 hexadecimal digits")
        for name in ("layers", "dim", "cohort", "rounds", "own_tokens", "stage_s"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, f"{name} is a whole number from 1")
        _require(type(self.hold_s) is int and self.hold_s >= 0, "hold_s is a whole number of seconds")
        _require(self.cohort >= 2, "a cohort has two devices at least: one device has no sum to hide in")
        _require(type(self.personas) is int and (self.personas == 0 or self.personas >= 2), "personas is 0 or from 2")
        _require(not self.personas or self.rounds >= 2, "personas need two rounds: every second one trains them")
        _require(self.noise > 0 and self.clip_norm > 0, "noise_multiplier and clip are above 0")
        require_personas(self.declared)
        _require(len(self.declared) in (0, self.personas), "a declared persona is one of as many personas")
        for name in ("control", "observe"):
            _require(0 < getattr(self, name) < 65536, f"{name} is a port")

    @property
    def noise(self) -> Fraction:
        """Return the noise multiplier of a round."""
        return _fraction(self.noise_multiplier)

    @property
    def clip_norm(self) -> Fraction:
        """Return the clip of an answer."""
        return _fraction(self.clip)

    @property
    def port(self) -> int:
        """Return the port that devices connect to."""
        return split_address(self.address)[1]


@dataclass(frozen=True)
class OperatorFolder:
    """One federation's folder. `keys` is where root.key and ca.key lie, `folder`/root unless told."""

    folder: Path
    kept: Path | None = None

    @property
    def keys(self) -> Path:
        """Return the folder of the two keys that may be kept elsewhere."""
        return self.kept or self.folder / "root"

    @property
    def home(self) -> Path:
        """Return the campaign's folder."""
        return self.folder / "server"

    @cached_property
    def settings(self) -> Settings:
        """Return what was chosen. Raises ConfigError where the folder holds no federation."""
        try:
            values: Any = json.loads((self.folder / SETTINGS).read_bytes())
            values |= {name: tuple(values.get(name, ())) for name in ("names", "declared")}
            return Settings(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            hint = "`confide server init` makes one"
            raise ConfigError(f"{self.folder} holds no federation ({type(error).__name__}): {hint}") from None

    def save(self, settings: Settings) -> None:
        """Write what was chosen."""
        values = {each.name: getattr(settings, each.name) for each in fields(settings)}
        write_atomic(self.folder / SETTINGS, json.dumps(values, indent=1).encode())

    @property
    def root_public(self) -> Ed25519PublicKey:
        """Return the root key that devices pin."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.root_hex))

    @property
    def root_hex(self) -> str:
        """Return the root key as 64 hexadecimal digits."""
        try:
            return (self.folder / "root" / "root.pub").read_text().strip()
        except OSError:
            raise ConfigError(f"{self.folder} holds no root.pub") from None

    @property
    def root_key(self) -> Ed25519PrivateKey:
        """Return the root key's private half. Raises ConfigError where it is kept elsewhere."""
        try:
            key = Ed25519PrivateKey.from_private_bytes((self.keys / "root.key").read_bytes())
        except (OSError, ValueError):
            raise ConfigError("root.key is not here: say where it is kept with --keys FOLDER") from None
        if key.public_key().public_bytes_raw().hex() != self.root_hex:
            raise ConfigError("root.key is another federation's")
        return key

    @property
    def policy(self) -> Policy:
        """Return the signed policy."""
        return open_policy((self.folder / "policy.json").read_bytes(), self.root_public)

    @property
    def directory(self) -> Directory | None:
        """Return the directory as it stands, None before anybody was admitted."""
        path = self.home / "ledger" / "directory.json"
        return open_directory(path.read_bytes(), self.root_public) if path.exists() else None

    @property
    def safety_number(self) -> str:
        """Return the number that people compare before they join."""
        return federation_number(self.settings.federation, self.root_hex)

    @contextmanager
    def alone(self, name: str = "change") -> Iterator[None]:
        """Hold one of the folder's locks: `change` for who changes it, `serve` for what runs. Raises ConfigError."""
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is not there")
        descriptor = os.open(self.folder / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another command is at work in {self.folder} ({name})") from None
            yield
        finally:
            os.close(descriptor)

    def running(self) -> bool:
        """Return whether a server runs over this folder."""
        try:
            with self.alone("serve"):
                return False
        except ConfigError:
            return (self.folder / SETTINGS).exists()

    def plain(self) -> dict[str, Any]:
        """Return what was chosen as plain values, for JSON."""
        return asdict(self.settings)


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"federation: {text[:20]!r} is no number") from None


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise ConfigError(f"federation: {problem}")
