"""Who may take part: the devices of a federation and their public keys, signed by its root key.

A device pins the root key when it joins and takes every other device's key from this file, never from a server. Names
are ASCII (`canonical.is_name`), so that two of them never look alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import canonical_json, exact_fields, is_digest, is_name, parse_canonical, sha256_hex
from privacy.errors import ConfigError, WireError
from privacy.signed import signed_body, signed_file

PROTOCOL: Final = "confide-directory/1"
MAX_DEVICES: Final = 2**16
MAX_BYTES: Final = 2**24 + 2**12


@dataclass(frozen=True)
class Member:
    """One device: name, Ed25519 key as 64 hexadecimal digits, organisation, and whether somebody vouched for it.

    `vetted` is for people, not for code, to grant: a floor of honest devices means little where a server may invent
    devices, and a private sum wants enough vetted ones among its survivors (`Directory.vetted`).
    """

    device_id: str
    public_key: str
    organisation: str
    vetted: bool = True

    def __post_init__(self) -> None:
        _require(is_name(self.device_id) and is_name(self.organisation), "a name of a device or organisation")
        _require(is_digest(self.public_key), "a key is 64 hexadecimal digits")
        _require(type(self.vetted) is bool, "vetted is true or false")


@dataclass(frozen=True, eq=False)
class Directory(Mapping[str, Ed25519PublicKey]):
    """The members of one federation; as a mapping, from a device's name to its key. Raises ConfigError.

    No name and no key stands twice: one key under two names would count twice in a cohort. A device takes a directory
    with a higher `serial` in the place of the one it holds, never another: who was revoked does not come back.
    """

    federation: str
    members: tuple[Member, ...]
    serial: int = 0  # not written where it is 0

    def __post_init__(self) -> None:
        _require(is_name(self.federation), "federation")
        _require(type(self.serial) is int and 0 <= self.serial < 2**32, "serial")
        names = [member.device_id for member in self.members]
        _require(1 <= len(names) <= MAX_DEVICES, f"one to {MAX_DEVICES} devices")
        _require(names == sorted(set(names)), "devices are sorted by name, each once")
        _require(len({member.public_key for member in self.members}) == len(names), "a key stands under two names")

    @classmethod
    def of(cls, federation: str, members: Iterable[Member], serial: int = 0) -> Directory:
        """Return the directory of `members` in any order."""
        return cls(federation, tuple(sorted(members, key=lambda member: member.device_id)), serial)

    @classmethod
    def of_keys(
        cls, federation: str, keys: Mapping[str, Ed25519PublicKey], organisation: str = "simulation"
    ) -> Directory:
        """Return a directory of one organisation's devices, all vetted: for simulation and tests."""
        return cls.of(federation, [Member(name, k.public_bytes_raw().hex(), organisation) for name, k in keys.items()])

    def __getitem__(self, device_id: str) -> Ed25519PublicKey:
        return self._keys[device_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self.members)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directory) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @cached_property
    def vetted(self) -> frozenset[str]:
        """Return the names of the devices that somebody vouched for."""
        return frozenset(member.device_id for member in self.members if member.vetted)

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        rows = [
            {"id": m.device_id, "organisation": m.organisation, "public_key": m.public_key, "vetted": m.vetted}
            for m in self.members
        ]
        fields: dict[str, object] = {"devices": rows, "federation": self.federation, "protocol": PROTOCOL}
        return canonical_json(fields | ({"serial": self.serial} if self.serial else {}))

    @classmethod
    def from_bytes(cls, data: bytes) -> Directory:
        """Return the directory whose canonical bytes are `data`; WireError for form, ConfigError for meaning."""
        value = parse_canonical(data)
        names = {"protocol", "federation", "devices"} | (
            {"serial"} if isinstance(value, dict) and "serial" in value else set()
        )
        fields = exact_fields(value, names, "directory")
        if fields.get("serial", 1) == 0:
            raise WireError("directory: a serial of 0 is written")
        if fields["protocol"] != PROTOCOL or not isinstance(fields["devices"], list):
            raise WireError(f"directory of another protocol than {PROTOCOL}")
        rows = [
            exact_fields(row, {"id", "organisation", "public_key", "vetted"}, "device") for row in fields["devices"]
        ]
        members = (Member(row["id"], row["public_key"], row["organisation"], row["vetted"]) for row in rows)
        return cls(fields["federation"], tuple(members), fields.get("serial", 0))

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the canonical bytes, which a query of transport `masked` names."""
        return sha256_hex(self.to_bytes())

    @cached_property
    def _keys(self) -> dict[str, Ed25519PublicKey]:
        try:
            return {m.device_id: Ed25519PublicKey.from_public_bytes(bytes.fromhex(m.public_key)) for m in self.members}
        except ValueError:
            raise ConfigError("directory: a key is no Ed25519 public key") from None


def signed_directory(directory: Directory, key: Ed25519PrivateKey) -> bytes:
    """Return the file: canonical JSON {"directory": ..., "signature": hex} by the federation's root key."""
    return signed_file("directory", directory.to_bytes(), key)


def open_directory(data: bytes, root_key: Ed25519PublicKey) -> Directory:
    """Return the directory of a file that `root_key` signed. Raises WireError, SignatureInvalid, ConfigError."""
    return Directory.from_bytes(signed_body("directory", data, root_key, MAX_BYTES))


def read_directory(data: bytes) -> Directory:
    """Return the directory of a signed file without looking at the signature: for the server that keeps it, no device.

    Raises WireError, ConfigError.
    """
    return Directory.from_bytes(
        canonical_json(exact_fields(parse_canonical(data), {"directory", "signature"}, "directory file")["directory"])
    )


def newer_directory(data: bytes, root_key: Ed25519PublicKey, held: Directory | None) -> Directory:
    """Return the directory of a file that `root_key` signed, if it may take the place of `held`: the same, or newer.

    Raises as `open_directory`, and ConfigError for an older one, another of the same serial, or another federation's.
    """
    found = open_directory(data, root_key)
    if held is not None and found != held:
        _require(found.federation == held.federation, "of another federation")
        _require(
            found.serial > held.serial, f"number {found.serial} is not newer than number {held.serial}, which is held"
        )
    return found


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise ConfigError(f"directory: {problem}")
