"""The ten messages of a private sum, byte by byte (PROTOCOL.md, section 12); each re-encodes to what was read.

Devices send 16 to 20, a server 80 to 84, one pair a stage. Counts are checked against what is there before anything of
their size is made. Decoding raises WireError and nothing else; what a message means is its receiver's to check.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.frame import Cursor, frame, named
from privacy.frame import require as _require
from privacy.query import MAX_DIM, MAX_MASKED

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEALED_BYTES: Final = 12 + 64 + 16  # nonce, two shares, tag
MAX_PROOF: Final = 14
Flags = tuple[bool, ...]


@dataclass(frozen=True)
class Advertise:
    """16, device: its public keys of this round, the commitment to its self mask; signed with its directory key."""

    query_sha256: str
    device_id: str
    row: Row

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(16, _head(self) + self.row.encode())


@dataclass(frozen=True)
class Row:
    """What one device advertises, as it stands in `Advertise` and again in a roster: 160 bytes."""

    mask_key: bytes
    share_key: bytes
    commitment: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Return its bytes."""
        return self.mask_key + self.share_key + self.commitment + self.signature


@dataclass(frozen=True)
class Shares:
    """17, device: for each of its neighbours, ascending, two shares sealed for that neighbour alone."""

    query_sha256: str
    device_id: str
    sealed: tuple[bytes, ...]
    signature: bytes

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(17, self.signed_part() + self.signature)

    def signed_part(self) -> bytes:
        """Return the body up to the signature."""
        return _head(self) + _packed(self.sealed)


@dataclass(frozen=True, eq=False)
class Masked:
    """18, device: its masked vector uint32 [dim] and the head of its own ledger."""

    query_sha256: str
    device_id: str
    ledger_head: str
    vector: NDArray[np.uint32]
    signature: bytes

    def encode(self) -> bytes:
        """Return the frame."""
        start = _head(self) + bytes.fromhex(self.ledger_head) + struct.pack("<I", self.vector.size)
        return frame(18, b"".join((start, self.vector.astype("<u4", copy=False).data, self.signature)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masked) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash((self.query_sha256, self.device_id, self.signature))

    def signed_part(self) -> bytes:
        """Return head, ledger head, length and the vector's SHA-256: what the signature covers."""
        size = struct.pack("<I", self.vector.size)
        digest = hashlib.sha256(self.vector.astype("<u4", copy=False).data).digest()
        return _head(self) + bytes.fromhex(self.ledger_head) + size + digest


@dataclass(frozen=True)
class Confirm:
    """19, device: its signature on the set of survivors."""

    query_sha256: str
    device_id: str
    signature: bytes

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(19, _head(self) + self.signature)


@dataclass(frozen=True)
class Unmask:
    """20, device: one share each of the secrets of the ranks in `held`, ascending; which of two, the survivors say."""

    query_sha256: str
    device_id: str
    held: Flags
    shares: tuple[bytes, ...]
    signature: bytes

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(20, self.signed_part() + self.signature)

    def signed_part(self) -> bytes:
        """Return the body up to the signature."""
        return _head(self) + flags_bytes(self.held) + b"".join(self.shares)


@dataclass(frozen=True)
class Begin:
    """80, server: asks for the first answer to a query that the device already holds, whatever its transport."""

    query_sha256: str

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(80, bytes.fromhex(self.query_sha256))


@dataclass(frozen=True)
class RosterRequest:
    """81, server: who takes part, the root over all rows, the proof of the reader's own row, its neighbours' rows."""

    query_sha256: str
    names: tuple[str, ...]
    root: bytes
    proof: tuple[bytes, ...]
    rows: tuple[Row, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        names = struct.pack("<I", len(self.names)) + b"".join(map(named, self.names))
        proof = bytes([len(self.proof)]) + b"".join(self.proof)
        rows = _packed(tuple(row.encode() for row in self.rows))
        return frame(81, bytes.fromhex(self.query_sha256) + names + self.root + proof + rows)


@dataclass(frozen=True)
class MaskRequest:
    """82, server: who has shared, and what each neighbour among them sealed for the reader, ascending."""

    query_sha256: str
    sharing: Flags
    sealed: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(82, bytes.fromhex(self.query_sha256) + flags_bytes(self.sharing) + _packed(self.sealed))


@dataclass(frozen=True)
class ConfirmRequest:
    """83, server: whose masked vectors have arrived."""

    query_sha256: str
    survivors: Flags

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(83, bytes.fromhex(self.query_sha256) + flags_bytes(self.survivors))


@dataclass(frozen=True)
class UnmaskRequest:
    """84, server: who signed the set of survivors, and their signatures, ascending."""

    query_sha256: str
    signers: Flags
    signatures: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the frame."""
        return frame(84, bytes.fromhex(self.query_sha256) + flags_bytes(self.signers) + b"".join(self.signatures))


FromDevice = Advertise | Shares | Masked | Confirm | Unmask
FromServer = Begin | RosterRequest | MaskRequest | ConfirmRequest | UnmaskRequest


def flags_bytes(flags: Flags) -> bytes:
    """Return a set of ranks: its size m u32, then bit r % 8 of byte r // 8 for rank r; the last byte's rest is zero."""
    return struct.pack("<I", len(flags)) + np.packbits(np.array(flags, dtype=bool), bitorder="little").tobytes()


def row_from(data: bytes) -> Row:
    """Return the row whose 160 bytes these are."""
    return Row(data[:32], data[32:64], data[64:96], data[96:160])


def _head(message: FromDevice) -> bytes:
    return bytes.fromhex(message.query_sha256) + named(message.device_id)


def _packed(parts: tuple[bytes, ...]) -> bytes:
    return struct.pack("<I", len(parts)) + b"".join(parts)


def _flags(cursor: Cursor) -> Flags:
    size = cursor.u32()
    _require(1 <= size <= MAX_MASKED, "a set of ranks is out of bounds")
    raw = np.frombuffer(cursor.take(-(-size // 8)), dtype=np.uint8)
    bits = np.unpackbits(raw, bitorder="little")
    _require(not bits[size:].any(), "a set of ranks has bits beyond its size")
    return tuple(bits[:size].astype(bool).tolist())


def _parts(cursor: Cursor, size: int) -> tuple[bytes, ...]:
    count = cursor.u32()
    _require(count <= MAX_MASKED, "a list is out of bounds")
    return _take_each(cursor, count, size)


def _take_each(cursor: Cursor, count: int, size: int) -> tuple[bytes, ...]:
    raw = cursor.take(count * size)  # never longer than the message
    return tuple(raw[at : at + size] for at in range(0, count * size, size))


def _advertise(cursor: Cursor) -> Advertise:
    return Advertise(cursor.digest(), cursor.name(), row_from(cursor.take(160)))


def _shares(cursor: Cursor) -> Shares:
    return Shares(cursor.digest(), cursor.name(), _parts(cursor, SEALED_BYTES), cursor.take(SIGNATURE_BYTES))


def _masked(cursor: Cursor) -> Masked:
    query_sha256, name, head, dim = cursor.digest(), cursor.name(), cursor.digest(), cursor.u32()
    _require(1 <= dim <= MAX_DIM, "the length of a masked vector is out of bounds")
    vector = np.frombuffer(cursor.view(4 * dim), dtype="<u4").astype(np.uint32, copy=False)  # shares the frame's memory
    return Masked(query_sha256, name, head, vector, cursor.take(SIGNATURE_BYTES))


def _confirm(cursor: Cursor) -> Confirm:
    return Confirm(cursor.digest(), cursor.name(), cursor.take(SIGNATURE_BYTES))


def _unmask(cursor: Cursor) -> Unmask:
    query_sha256, name, held = cursor.digest(), cursor.name(), _flags(cursor)
    return Unmask(query_sha256, name, held, _take_each(cursor, sum(held), KEY_BYTES), cursor.take(SIGNATURE_BYTES))


def _begin(cursor: Cursor) -> Begin:
    return Begin(cursor.digest())


def _roster_request(cursor: Cursor) -> RosterRequest:
    query_sha256, count = cursor.digest(), cursor.u32()
    _require(1 <= count <= MAX_MASKED, "a roster is out of bounds")
    names = tuple(cursor.name() for _ in range(count))
    root, steps = cursor.take(KEY_BYTES), cursor.byte()
    _require(steps <= MAX_PROOF, "a proof is out of bounds")
    proof = _take_each(cursor, steps, KEY_BYTES)
    return RosterRequest(query_sha256, names, root, proof, tuple(row_from(row) for row in _parts(cursor, 160)))


def _mask_request(cursor: Cursor) -> MaskRequest:
    return MaskRequest(cursor.digest(), _flags(cursor), _parts(cursor, SEALED_BYTES))


def _confirm_request(cursor: Cursor) -> ConfirmRequest:
    return ConfirmRequest(cursor.digest(), _flags(cursor))


def _unmask_request(cursor: Cursor) -> UnmaskRequest:
    query_sha256, signers = cursor.digest(), _flags(cursor)
    return UnmaskRequest(query_sha256, signers, _take_each(cursor, sum(signers), SIGNATURE_BYTES))


DEVICE_KINDS: Final[dict[int, Callable[[Cursor], FromDevice]]] = {
    16: _advertise,
    17: _shares,
    18: _masked,
    19: _confirm,
    20: _unmask,
}
SERVER_KINDS: Final[dict[int, Callable[[Cursor], FromServer]]] = {
    80: _begin,
    81: _roster_request,
    82: _mask_request,
    83: _confirm_request,
    84: _unmask_request,
}
