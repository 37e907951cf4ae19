"""The messages around a sum: who is there, what everybody is given, the word to train.

    server                                   device
    greeting   nonce, hashes on offer   ->   hello      its name, which of them it holds, signed
    delivery   what it lacks            ->   received   hash of what arrived
    training   the query                ->   accepted   at once, before anything is computed; or a refusal

The stages of the sum follow (`privacy.secagg.messages`). Byte by byte in PROTOCOL.md, section 6. What is offered and
delivered is the same for everybody.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from privacy.canonical import is_digest, is_name, sha256_hex
from privacy.errors import SignatureInvalid, WireError
from privacy.frame import Cursor, frame, named, require

HELLO: Final = 3
RECEIVED: Final = 4
ACCEPTED: Final = 5
GREETING: Final = 64
DELIVERY: Final = 65
TRAINING: Final = 66

MAX_OFFERED: Final = 16
MAX_DELIVERY_BYTES: Final = 128 * 2**20
MAX_QUERY_BYTES: Final = 8192
MAX_START_NUMBERS: Final = 2**24
SIGNATURE_BYTES: Final = 64
BASIS_ITEM: Final = 1
START_ITEM: Final = 2
HISTORY_ITEM: Final = 3
DIRECTORY_ITEM: Final = 4
MAX_NOTE_BYTES: Final = 65536
MAX_PROOFS: Final = 1024
_SIGNED_HELLO: Final = b"confide/hello/1\x00"
_SIGNED_START: Final = b"confide/start/1\x00"


@dataclass(frozen=True)
class Hello:
    """A device says that it is reachable: `held` has bit i set if it holds the i-th hash of the greeting.

    The signature covers the number of the node that it speaks through and the greeting's nonce, so that a hello heard
    once cannot be played again elsewhere.
    """

    device_id: str
    held: int
    signature: bytes

    def __post_init__(self) -> None:
        require(is_name(self.device_id), "device_id is not a name")
        require(type(self.held) is int and 0 <= self.held < 1 << MAX_OFFERED, "a hello holds more than was offered")
        require(len(self.signature) == SIGNATURE_BYTES, "a signature has 64 bytes")

    @classmethod
    def signed(cls, key: Ed25519PrivateKey, device_id: str, held: int, node_id: int, nonce: str) -> Hello:
        """Return the hello of the device that holds `key`."""
        return cls(device_id, held, key.sign(_hello_text(device_id, held, node_id, nonce)))

    def verify(self, public_key: Ed25519PublicKey, node_id: int, nonce: str) -> None:
        """Raise SignatureInvalid unless `public_key` signed this for exactly this node and nonce."""
        try:
            public_key.verify(self.signature, _hello_text(self.device_id, self.held, node_id, nonce))
        except InvalidSignature:
            raise SignatureInvalid("hello") from None

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(HELLO, named(self.device_id) + struct.pack("<H", self.held) + self.signature)


@dataclass(frozen=True)
class Received:
    """A device has what was delivered: `digest` is `digest_of` the items."""

    device_id: str
    digest: str

    def __post_init__(self) -> None:
        require(is_name(self.device_id) and is_digest(self.digest), "not a receipt")

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(RECEIVED, named(self.device_id) + bytes.fromhex(self.digest))


@dataclass(frozen=True)
class Accepted:
    """A device will train for a query that its policy grants. Nothing has been computed yet, nothing charged."""

    query_sha256: str
    device_id: str

    def __post_init__(self) -> None:
        require(is_digest(self.query_sha256) and is_name(self.device_id), "not an acceptance")

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(ACCEPTED, bytes.fromhex(self.query_sha256) + named(self.device_id))


@dataclass(frozen=True)
class Greeting:
    """The server asks who is there: a fresh nonce, 64 hexadecimal digits, and the hashes of what it has to give."""

    nonce: str
    offered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(is_digest(self.nonce), "a nonce is not 32 bytes")
        require(isinstance(self.offered, tuple) and len(self.offered) <= MAX_OFFERED, "too much is offered")
        require(all(is_digest(digest) for digest in self.offered), "a hash is not 64 hexadecimal digits")

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(GREETING, bytes.fromhex(self.nonce + "".join(self.offered)))


@dataclass(frozen=True)
class Delivery:
    """What a device lacks: items, each with its kind in its first byte; an item's hash is the SHA-256 of its bytes."""

    items: tuple[bytes, ...]

    def __post_init__(self) -> None:
        require(isinstance(self.items, tuple) and 1 <= len(self.items) <= MAX_OFFERED, "a delivery of no or many items")
        kinds = {item[:1] if type(item) is bytes else b"" for item in self.items}
        require(kinds <= {b"\x01", b"\x02", b"\x03", b"\x04"}, "an item of unknown kind")
        require(sum(map(len, self.items)) <= MAX_DELIVERY_BYTES, "a delivery that is too large")

    def encode(self) -> bytes:
        """Return the frame."""
        parts = [struct.pack("<I", len(item)) + item for item in self.items]
        return frame(DELIVERY, bytes([len(parts)]) + b"".join(parts))


@dataclass(frozen=True)
class Training:
    """The server asks a device to train for a query, whose canonical bytes are inside as they were made."""

    query_bytes: bytes

    def __post_init__(self) -> None:
        require(type(self.query_bytes) is bytes and 0 < len(self.query_bytes) <= MAX_QUERY_BYTES, "not a query")

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(TRAINING, self.query_bytes)


@dataclass(frozen=True, eq=False)
class Start:
    """The adapters that a round starts from: float32 [slots, dim], signed by the federation's release key.

    The signature says who made them; which query they belong to is decided by their hash, see `state_sha256`.
    """

    federation: str
    campaign: str
    round: int
    slots: NDArray[np.float32]
    signature: bytes = b""

    def __post_init__(self) -> None:
        require(is_name(self.federation) and is_name(self.campaign), "a start names no campaign")
        require(type(self.round) is int and 0 <= self.round < 2**32, "a start names no round")
        require(self.slots.dtype == np.float32 and self.slots.ndim == 2, "a start is a table of float32")
        require(1 <= self.slots.size <= MAX_START_NUMBERS and len(self.slots) < 2**16, "a start that is too large")
        require(len(self.signature) in (0, SIGNATURE_BYTES), "a signature has 64 bytes")

    def signed(self, key: Ed25519PrivateKey) -> Start:
        """Return this start with the signature of the federation's release key."""
        return replace(self, signature=key.sign(_SIGNED_START + self._body()))

    def verify(self, signer: str) -> None:
        """Raise SignatureInvalid unless the release signer, a public key of 64 hexadecimal digits, signed this."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
            key.verify(self.signature, _SIGNED_START + self._body())
        except (InvalidSignature, ValueError):
            raise SignatureInvalid("start") from None

    def item(self) -> bytes:
        """Return the item of a delivery."""
        require(len(self.signature) == SIGNATURE_BYTES, "an unsigned start is not delivered")
        return bytes([START_ITEM]) + self._body() + self.signature

    @classmethod
    def from_item(cls, item: bytes) -> Start:
        """Return the start in an item that `Start.item` would write; raises WireError for all other bytes."""
        cursor = Cursor(item)
        require(cursor.byte() == START_ITEM, "not a start")
        federation, campaign, number = cursor.name(), cursor.name(), cursor.u32()
        slots, dim = cursor.u32(), cursor.u32()
        require(0 < slots < 2**16 and dim > 0 and slots * dim <= MAX_START_NUMBERS, "a start that is too large")
        values = np.frombuffer(cursor.take(4 * slots * dim), "<f4").astype(np.float32).reshape(slots, dim)
        start = cls(federation, campaign, number, values, cursor.take(SIGNATURE_BYTES))
        cursor.end()
        return start

    def _body(self) -> bytes:
        head = named(self.federation) + named(self.campaign)
        return head + struct.pack("<III", self.round, *self.slots.shape) + self.slots.astype("<f4").tobytes()


def history_item(note: bytes, proofs: Mapping[int, Sequence[bytes]]) -> bytes:
    """Return the item that shows a ledger: a signed state, and for earlier sizes the proof that it continues them."""
    require(len(note) <= MAX_NOTE_BYTES and len(proofs) <= MAX_PROOFS, "a history that is too large")
    rows = [struct.pack("<IB", size, len(proof)) + b"".join(proof) for size, proof in sorted(proofs.items())]
    return bytes([HISTORY_ITEM]) + struct.pack("<IH", len(note), len(rows)) + note + b"".join(rows)


def read_history(item: bytes) -> tuple[bytes, dict[int, list[bytes]]]:
    """Return note and proofs of an item that `history_item` would write; raises WireError for all other bytes."""
    cursor = Cursor(item)
    require(cursor.byte() == HISTORY_ITEM, "not a history")
    length, count = struct.unpack("<IH", cursor.take(6))
    require(length <= MAX_NOTE_BYTES and count <= MAX_PROOFS, "a history that is too large")
    note, proofs = cursor.take(length), dict[int, list[bytes]]()
    for _ in range(count):
        size = cursor.u32()
        proofs[size] = [cursor.take(32) for _ in range(cursor.byte())]
    cursor.end()
    require(history_item(note, proofs) == item, "another form of a history")
    return note, proofs


def basis_item(basis_bytes: bytes) -> bytes:
    """Return the item of a delivery that holds a basis, as `Basis.to_bytes` writes it."""
    return bytes([BASIS_ITEM]) + basis_bytes


def directory_item(file: bytes) -> bytes:
    """Return the item of a delivery that holds a signed directory, the file of `privacy.directory`."""
    return bytes([DIRECTORY_ITEM]) + file


def digest_of(items: Sequence[bytes]) -> str:
    """Return the hash of a delivery: SHA-256 over the hashes of its items, 64 hexadecimal digits."""
    return sha256_hex(b"".join(hashlib.sha256(item).digest() for item in items))


def read_hello(cursor: Cursor) -> Hello:
    """Return the hello at the cursor."""
    device_id, (held,) = cursor.name(), struct.unpack("<H", cursor.take(2))
    return Hello(device_id, held, cursor.take(SIGNATURE_BYTES))


def read_received(cursor: Cursor) -> Received:
    """Return the receipt at the cursor."""
    return Received(cursor.name(), cursor.digest())


def read_accepted(cursor: Cursor) -> Accepted:
    """Return the acceptance at the cursor."""
    return Accepted(cursor.digest(), cursor.name())


def read_greeting(cursor: Cursor) -> Greeting:
    """Return the greeting at the cursor."""
    require(cursor.left() % 32 == 0 and cursor.left() // 32 <= MAX_OFFERED + 1, "not a greeting")
    return Greeting(cursor.digest(), tuple(cursor.digest() for _ in range(cursor.left() // 32)))


def read_delivery(cursor: Cursor) -> Delivery:
    """Return the delivery at the cursor."""
    return Delivery(tuple(cursor.take(cursor.u32()) for _ in range(cursor.byte())))


def read_training(cursor: Cursor) -> Training:
    """Return the word to train at the cursor."""
    require(cursor.left() <= MAX_QUERY_BYTES, "a query that is too long")
    return Training(cursor.take(cursor.left()))


def _hello_text(device_id: str, held: int, node_id: int, nonce: str) -> bytes:
    if not is_digest(nonce) or not 0 <= node_id < 2**64:
        raise WireError("a hello without nonce or node")
    return (
        _SIGNED_HELLO + struct.pack("<Q", node_id) + bytes.fromhex(nonce) + named(device_id) + struct.pack("<H", held)
    )
