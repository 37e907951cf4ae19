"""Checkpoints: a signed note that says how long a ledger was and how it ended, for others to keep.

    origin \\n size \\n base64(head) \\n \\n — origin base64(key hash [4] || Ed25519 signature [64]) \\n

The frame is that of C2SP signed-note, so that any such tool can verify and countersign it. The third line is the head
of our chain, not the root of a Merkle tree: whoever checks an extension needs the ledger itself, not a short proof.
A chain alone does not stop its owner from rewriting all of it; a note in another's hands does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.chain import Chain
from privacy.errors import LedgerError, SignatureInvalid

MAX_NOTE_BYTES = 64 * 1024
ORIGIN = re.compile(r"[A-Za-z0-9._/-]{1,200}")
SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a ledger at one moment: whose, how many entries, the hash of the last one."""

    origin: str
    size: int
    head: str

    def __post_init__(self) -> None:
        if not ORIGIN.fullmatch(self.origin) or not re.fullmatch(r"[0-9a-f]{64}", self.head) or self.size < 0:
            raise LedgerError("not a checkpoint: origin, size or head is malformed")

    def text(self) -> bytes:
        """Return the bytes that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(bytes.fromhex(self.head)).decode()}\n".encode()

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the signed note."""
        body = key_hash(self.origin, key.public_key()) + key.sign(self.text())
        return self.text() + b"\n" + f"— {self.origin} {base64.b64encode(body).decode()}\n".encode()

    def is_kept_by(self, chain: Chain) -> bool:
        """Return whether `chain` still begins with what was seen; if not, it was rolled back or rewritten."""
        if not 1 <= self.size <= len(chain.entries):
            return False
        return chain.entries[self.size - 1].sha256 == self.head


def key_hash(origin: str, key: Ed25519PublicKey) -> bytes:
    """Return the first four bytes of SHA-256(name || newline || 0x01 || key), as signed-note names a key."""
    return hashlib.sha256(origin.encode() + b"\n\x01" + key.public_bytes_raw()).digest()[:4]


def verify_checkpoint(note: bytes, key: Ed25519PublicKey) -> Checkpoint:
    """Return the checkpoint in a note signed by `key`; other signature lines (witnesses) are ignored.

    Raises LedgerError for bytes that are no note, SignatureInvalid where no line holds this key's signature.
    """
    checkpoint, lines = _parts(note)
    for line in lines:
        name, _, value = line.removeprefix("— ").partition(" ")
        if name == checkpoint.origin and _holds(value, checkpoint, key):
            return checkpoint
    raise SignatureInvalid("checkpoint")


def _parts(note: bytes) -> tuple[Checkpoint, list[str]]:
    try:
        text, signatures = note[:MAX_NOTE_BYTES].decode().split("\n\n")
        origin, size, head = text.split("\n")
        if len(note) > MAX_NOTE_BYTES or not SIZE.fullmatch(size) or not signatures.endswith("\n"):
            raise ValueError("not a signed note")
        checkpoint = Checkpoint(origin, int(size), base64.b64decode(head, validate=True).hex())
        if checkpoint.text() != f"{text}\n".encode():  # base64 has spare bits
            raise ValueError("not the one form of a note")
    except ValueError as error:
        raise LedgerError("not a checkpoint: it cannot be read as a signed note") from error
    return checkpoint, signatures[:-1].split("\n")


def _holds(value: str, checkpoint: Checkpoint, key: Ed25519PublicKey) -> bool:
    try:
        body = base64.b64decode(value, validate=True)
        key.verify(body[4:], checkpoint.text())
    except (ValueError, InvalidSignature):
        return False
    return body[:4] == key_hash(checkpoint.origin, key) and base64.b64encode(body).decode() == value
