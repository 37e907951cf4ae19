"""Checkpoints: a signed note that says how long a ledger is and what it holds, for others to keep and to countersign.

    origin \\n size \\n base64(root) \\n \\n — origin base64(key hash [4] || Ed25519 signature [64]) \\n
                                         — witness base64(key hash [4] || seconds u64 || Ed25519 signature [64]) \\n

C2SP tlog-checkpoint in a C2SP signed-note, with C2SP tlog-cosignature lines (cosignature/v1) below the owner's line;
numbers in them are big-endian, as that text wants it. The root is that of the Merkle tree over the entries
(`privacy.merkle`). A chain alone does not stop its owner from rewriting all of it; a note in another's hands does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.chain import Chain
from privacy.errors import LedgerError, SignatureInvalid
from privacy.merkle import is_consistent, tree_root

MAX_NOTE_BYTES: Final = 64 * 1024
ORIGIN: Final = re.compile(r"[A-Za-z0-9._/-]{1,200}")
SIZE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
OWNER, WITNESS = b"\x01", b"\x04"  # the algorithm bytes of signed-note: Ed25519 and timestamped Ed25519 cosignature
WITNESS_NAME: Final = "confide-witness"
MAX_SECONDS: Final = 2**63 - 1


class Standing(StrEnum):
    """How a shown checkpoint stands to the one seen before; only the first three may be believed."""

    FIRST = "first"
    SAME = "same"
    EXTENDS = "extends"
    ROLLED_BACK = "rolled back"
    FORKED = "forked"
    UNPROVEN = "not proven to extend"

    @property
    def holds(self) -> bool:
        """Return whether nothing that was seen is missing or changed."""
        return self in (Standing.FIRST, Standing.SAME, Standing.EXTENDS)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a ledger at one moment: whose, how many entries, the root of the tree over them (hexadecimal)."""

    origin: str
    size: int
    root: str

    def __post_init__(self) -> None:
        if not ORIGIN.fullmatch(self.origin) or not re.fullmatch(r"[0-9a-f]{64}", self.root) or self.size < 0:
            raise LedgerError("not a checkpoint: origin, size or root is malformed")

    @classmethod
    def of(cls, origin: str, chain: Chain) -> Checkpoint:
        """Return the checkpoint of all entries of a chain."""
        return cls(origin, len(chain.entries), tree_root(chain.leaves()).hex())

    def text(self) -> bytes:
        """Return the bytes that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(bytes.fromhex(self.root)).decode()}\n".encode()

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the signed note."""
        body = key_hash(self.origin, key.public_key()) + key.sign(self.text())
        return self.text() + b"\n" + _line(self.origin, body)

    def is_kept_by(self, chain: Chain) -> bool:
        """Return whether `chain` still begins with what was seen; if not, it was rolled back or rewritten."""
        if not 1 <= self.size <= len(chain.entries):
            return False
        return tree_root(chain.leaves()[: self.size]).hex() == self.root


def key_hash(name: str, key: Ed25519PublicKey, algorithm: bytes = OWNER) -> bytes:
    """Return the first four bytes of SHA-256(name || newline || algorithm || key), as signed-note names a key."""
    return hashlib.sha256(name.encode() + b"\n" + algorithm + key.public_bytes_raw()).digest()[:4]


def read_checkpoint(note: bytes) -> Checkpoint:
    """Return the checkpoint in a note, whoever signed it; raises LedgerError for bytes that are no note."""
    return _parts(note)[0]


def verify_checkpoint(note: bytes, key: Ed25519PublicKey) -> Checkpoint:
    """Return the checkpoint in a note signed by `key`, its owner; lines of others (witnesses) are ignored.

    Raises LedgerError for bytes that are no note, SignatureInvalid where no line holds this key's signature.
    """
    checkpoint, lines = _parts(note)
    for name, body in lines:
        if name == checkpoint.origin and body[:4] == key_hash(name, key) and _holds(key, body[4:], checkpoint.text()):
            return checkpoint
    raise SignatureInvalid("checkpoint")


def cosigned(note: bytes, key: Ed25519PrivateKey, seconds: int, name: str = WITNESS_NAME) -> bytes:
    """Return the note with the witness's line at its end, in place of an older line of the same witness.

    `seconds` since 1970 are part of what is signed: as of then, this is the longest state of this ledger that the
    witness saw, and it continues all it saw before. Verify before calling; raises LedgerError for bytes that are no
    note.
    """
    checkpoint, lines = _parts(note)
    if not 0 <= seconds <= MAX_SECONDS:
        raise LedgerError("a cosignature needs a time after 1970")
    own = key_hash(name, key.public_key(), WITNESS)
    stamp = seconds.to_bytes(8, "big")
    kept = [_line(other, body) for other, body in lines if (other, body[:4]) != (name, own)]
    body = own + stamp + key.sign(_cosigned_text(checkpoint, seconds))
    found = checkpoint.text() + b"\n" + b"".join(kept) + _line(name, body)
    if len(found) > MAX_NOTE_BYTES:
        raise LedgerError("a checkpoint with too many signatures")
    return found


def cosignatures(note: bytes) -> int:
    """Return how many lines of the note have the form of a cosignature; nothing is verified."""
    checkpoint, lines = _parts(note)
    return sum(name != checkpoint.origin and len(body) == 4 + 8 + 64 for name, body in lines)


def verify_cosignature(note: bytes, key: Ed25519PublicKey) -> tuple[Checkpoint, int]:
    """Return the checkpoint and the seconds since 1970 at which the witness with `key` signed it, the latest.

    The key counts, under whatever name its line gives. Raises LedgerError for bytes that are no note, SignatureInvalid
    where no line is this witness's. The owner's line is not looked at: see `verify_checkpoint`.
    """
    checkpoint, lines = _parts(note)
    times = []
    for name, body in lines:
        seconds = int.from_bytes(body[4:12], "big")
        named = body[:4] == key_hash(name, key, WITNESS) and seconds <= MAX_SECONDS
        if named and _holds(key, body[12:], _cosigned_text(checkpoint, seconds)):
            times.append(seconds)
    if not times:
        raise SignatureInvalid("cosignature")
    return checkpoint, max(times)


def standing(seen: Checkpoint | None, shown: Checkpoint, proof: Sequence[bytes] = ()) -> Standing:
    """Return how `shown` stands to what was `seen` of the same ledger; `proof` from `privacy.merkle.consistency_proof`.

    Both notes were verified with the owner's key. FORKED is proof of misbehaviour by itself: two states of one size.
    """
    if seen is None:
        return Standing.FIRST
    if shown.origin != seen.origin:
        return Standing.UNPROVEN
    if shown.size <= seen.size:
        if shown.size < seen.size:
            return Standing.ROLLED_BACK
        return Standing.SAME if shown.root == seen.root else Standing.FORKED
    old, new = bytes.fromhex(seen.root), bytes.fromhex(shown.root)
    return Standing.EXTENDS if is_consistent(seen.size, old, shown.size, new, proof) else Standing.UNPROVEN


def is_fork(first: bytes, second: bytes, key: Ed25519PublicKey) -> bool:
    """Return whether two notes prove that the owner of `key` signed two histories: one size, two roots."""
    one, other = verify_checkpoint(first, key), verify_checkpoint(second, key)
    return (one.origin, one.size) == (other.origin, other.size) and one.root != other.root


@lru_cache(maxsize=64)
def _parts(note: bytes) -> tuple[Checkpoint, tuple[tuple[str, bytes], ...]]:
    """Return the checkpoint, and name and bytes of each signature line that can be read; others are skipped.

    In one process many people's ledgers hold the same few notes, and values may be shared.
    """
    try:
        text, signatures = note[: MAX_NOTE_BYTES + 1].decode().split("\n\n")
        origin, size, root = text.split("\n")
        if len(note) > MAX_NOTE_BYTES or not SIZE.fullmatch(size) or not signatures.endswith("\n"):
            raise ValueError("not a signed note")
        checkpoint = Checkpoint(origin, int(size), base64.b64decode(root, validate=True).hex())
        if checkpoint.text() != f"{text}\n".encode():  # base64 has spare bits
            raise ValueError("not the one form of a note")
    except ValueError as error:
        raise LedgerError("not a checkpoint: it cannot be read as a signed note") from error
    lines = (_signature(line) for line in signatures[:-1].split("\n"))
    return checkpoint, tuple(line for line in lines if line is not None)


def _signature(line: str) -> tuple[str, bytes] | None:
    name, _, value = line.removeprefix("— ").partition(" ")
    try:
        body = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    return (name, body) if line == f"— {name} {base64.b64encode(body).decode()}" else None


def _line(name: str, body: bytes) -> bytes:
    return f"— {name} {base64.b64encode(body).decode()}\n".encode()


def _cosigned_text(checkpoint: Checkpoint, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n".encode() + checkpoint.text()


def _holds(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True
