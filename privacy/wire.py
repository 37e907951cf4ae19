"""The only types that may leave a device, byte by byte (PROTOCOL.md, section 6), and those that it reads.

    frame   = "confide" | version u8 = 1 | kind u8 | body
    answer  = query_sha256 [32] | ledger_head [32] | n u8 | device_id [n] | dim u32 | u32 [dim] | m u8 | signature [m]
    refusal = query_sha256 [32] | n u8 | device_id [n] | code u8

Little-endian; m is 64, or 0 between parts of one process. No free text and no slack: every accepted message re-encodes
to itself. Decoding raises WireError and nothing else. The messages of a private sum, kinds 16 to 20 and 80 to 84, are
in `privacy.secagg.messages`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from privacy.canonical import is_digest, is_name
from privacy.errors import SignatureInvalid
from privacy.frame import Cursor, frame, named, open_frame
from privacy.frame import require as _require
from privacy.secagg import messages
from privacy.session import (
    ACCEPTED,
    DELIVERY,
    GREETING,
    HELLO,
    MAX_DELIVERY_BYTES,
    RECEIVED,
    TRAINING,
    Accepted,
    Delivery,
    Greeting,
    Hello,
    Received,
    Training,
    read_accepted,
    read_delivery,
    read_greeting,
    read_hello,
    read_received,
    read_training,
)

ANSWER: Final = 1
REFUSAL: Final = 2
MAX_DIM: Final = 2**24
MAX_BYTES: Final = 4 * MAX_DIM + 256
MAX_REQUEST_BYTES: Final = MAX_DELIVERY_BYTES + 4096
SIGNATURE_BYTES: Final = 64
NO_HEAD: Final = "0" * 64
_SIGNED: Final = b"confide/answer/1\x00"
_T = TypeVar("_T")


class RefusalCode(StrEnum):
    """Every reason that a device gives; the order is the wire's, new ones go to the end. Nothing else is said."""

    FEDERATION = "federation.other"
    POLICY = "policy.other"
    BASIS = "basis.other"
    PURPOSE = "purpose.not-granted"
    UNPROTECTED = "transport.unprotected"
    REPLAYED_NOISE = "noise.replayed"
    COHORT = "cohort.too-small"
    SURVIVORS = "cohort.floor-too-low"
    NOISE = "noise.too-low"
    CLIP = "clip.too-high"
    DIM = "dim.too-large"
    WORK = "limits.too-high"
    PARTICIPATIONS = "participations.used-up"
    BUDGET = "budget.exhausted"
    STALE = "query.stale"
    RELEASE = "release.unknown"
    UNABLE = "device.unable"
    BUSY = "answer.not-ready"
    YEARLY = "budget.yearly"
    HISTORY = "federation.history"
    RESTORED = "device.restored"
    NOT_SAMPLED = "sampling.not-drawn"
    DIRECTORY = "directory.other"
    SUM = "sum.refused"
    OBJECTIVE = "objective.not-granted"


_CODES: Final = tuple(RefusalCode)


@dataclass(frozen=True, eq=False)
class Answer:
    """One device's vector uint32 [dim] to one query, with the head of its own ledger; unsigned until `signed`."""

    query_sha256: str
    device_id: str
    vector: NDArray[np.uint32]
    ledger_head: str = NO_HEAD
    signature: bytes = b""

    def __post_init__(self) -> None:
        _require(is_digest(self.query_sha256) and is_digest(self.ledger_head), "a hash is not 64 hexadecimal digits")
        _require(is_name(self.device_id), "device_id is not a name")
        _require(len(self.signature) in (0, SIGNATURE_BYTES), "a signature has 64 bytes")
        vector = np.array(self.vector)
        _require(vector.dtype == np.uint32 and vector.ndim == 1, "an answer is a vector of uint32")
        _require(1 <= vector.size <= MAX_DIM, "the length of an answer is out of bounds")
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash((self.query_sha256, self.device_id, self.signature))

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(ANSWER, self._body() + bytes([len(self.signature)]) + self.signature)

    def signed(self, key: Ed25519PrivateKey, ledger_head: str = NO_HEAD) -> Answer:
        """Return this answer with the device's ledger head and signature over all of it."""
        headed = replace(self, ledger_head=ledger_head, signature=b"")
        return replace(headed, signature=key.sign(_SIGNED + headed._body()))

    def verify(self, public_key: Ed25519PublicKey) -> None:
        """Raise SignatureInvalid unless `public_key` signed exactly this answer."""
        try:
            public_key.verify(self.signature, _SIGNED + self._body())
        except InvalidSignature:
            raise SignatureInvalid("answer") from None

    def _body(self) -> bytes:
        hashes = bytes.fromhex(self.query_sha256 + self.ledger_head)
        size = struct.pack("<I", self.vector.size)
        return hashes + named(self.device_id) + size + self.vector.astype("<u4", copy=False).tobytes()


@dataclass(frozen=True)
class Refusal:
    """A device's no to one query: a code of the closed list and nothing more."""

    query_sha256: str
    device_id: str
    code: RefusalCode

    def __post_init__(self) -> None:
        _require(is_digest(self.query_sha256), "a hash is not 64 hexadecimal digits")
        _require(is_name(self.device_id), "device_id is not a name")
        _require(self.code in _CODES, "a refusal code is not on the list")
        object.__setattr__(self, "code", RefusalCode(self.code))

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(
            REFUSAL, bytes.fromhex(self.query_sha256) + named(self.device_id) + bytes([_CODES.index(self.code)])
        )


Message = Answer | Refusal | Hello | Received | Accepted | messages.FromDevice
Request = Greeting | Delivery | Training | messages.FromServer


def decode(data: bytes) -> Message:
    """Return the message of a device that `data` encodes; `decode(data).encode() == data`. Else raises WireError."""
    return _decode(data, MAX_BYTES, _FROM_DEVICE)


def decode_request(data: bytes) -> Request:
    """Return the request of a server (kinds from 64) that `data` encodes; it re-encodes to `data`. Else WireError."""
    return _decode(data, MAX_REQUEST_BYTES, _FROM_SERVER)


def _decode(data: bytes, limit: int, table: Mapping[int, Callable[[Cursor], _T]]) -> _T:
    kind, cursor = open_frame(data, limit)
    _require(kind in table, "a message of unknown kind")
    message = table[kind](cursor)
    cursor.end()
    return message


def _answer(cursor: Cursor) -> Answer:
    query_sha256, ledger_head = cursor.digest(), cursor.digest()
    device_id = cursor.name()
    dim = cursor.u32()
    _require(dim <= MAX_DIM, "the length of an answer is out of bounds")  # before anything of that size is made
    vector = np.frombuffer(cursor.take(4 * dim), dtype="<u4").astype(np.uint32, copy=False)
    return Answer(query_sha256, device_id, vector, ledger_head, cursor.take(cursor.byte()))


def _refusal(cursor: Cursor) -> Refusal:
    query_sha256, device_id, index = cursor.digest(), cursor.name(), cursor.byte()
    _require(index < len(_CODES), "a refusal code is not on the list")
    return Refusal(query_sha256, device_id, _CODES[index])


# What each kind is read by. A kind that is not here does not exist.
_FROM_DEVICE: Final[Mapping[int, Callable[[Cursor], Message]]] = {
    ANSWER: _answer,
    REFUSAL: _refusal,
    HELLO: read_hello,
    RECEIVED: read_received,
    ACCEPTED: read_accepted,
    **messages.DEVICE_KINDS,
}
_FROM_SERVER: Final[Mapping[int, Callable[[Cursor], Request]]] = {
    GREETING: read_greeting,
    DELIVERY: read_delivery,
    TRAINING: read_training,
    **messages.SERVER_KINDS,
}
