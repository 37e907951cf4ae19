"""How every message begins and is read: magic, version, kind; a cursor that never reads beyond the end.

    frame = "confide" | version u8 = 1 | kind u8 | body

Kinds below 64 leave a device, kinds from 64 come from the server. Little-endian throughout.
"""

from __future__ import annotations

import struct
from typing import Final

from privacy.canonical import is_name
from privacy.errors import WireError

MAGIC: Final = b"confide\x01"
FROM_SERVER: Final = 64  # the first kind that a server sends


def frame(kind: int, body: bytes) -> bytes:
    """Return the frame of one message."""
    return MAGIC + bytes([kind]) + body


def open_frame(data: bytes, limit: int) -> tuple[int, Cursor]:
    """Return the kind of the message in `data` and a cursor at its body; raises WireError, also above `limit` bytes."""
    require(len(data) <= limit, f"a message longer than {limit} bytes")
    cursor = Cursor(data)
    require(cursor.take(len(MAGIC)) == MAGIC, "not a message of this version")
    return cursor.byte(), cursor


def named(name: str) -> bytes:
    """Return a name as it stands in a message: its length u8, then its ASCII bytes."""
    raw = name.encode("ascii")
    return bytes([len(raw)]) + raw


class Cursor:
    """Reads a byte string once from front to back and never beyond its end; raises WireError where it would."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, number: int) -> bytes:
        """Return the next `number` bytes."""
        require(number <= self.left(), "a message ends too early")
        self._at += number
        return self._data[self._at - number : self._at]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Return the next four bytes as a number."""
        (value,) = struct.unpack("<I", self.take(4))
        return int(value)

    def digest(self) -> str:
        """Return the next 32 bytes as 64 hexadecimal digits."""
        return self.take(32).hex()

    def name(self) -> str:
        """Return a name, as `named` writes it."""
        raw = self.take(self.byte())
        require(raw.isascii() and is_name(raw.decode("ascii")), "device_id is not a name")
        return raw.decode("ascii")

    def view(self, number: int) -> memoryview:
        """Return the next `number` bytes without copying them: for a vector, which may be most of a message."""
        require(number <= self.left(), "a message ends too early")
        self._at += number
        return memoryview(self._data)[self._at - number : self._at]

    def left(self) -> int:
        """Return how many bytes are left."""
        return len(self._data) - self._at

    def end(self) -> None:
        """Raise WireError unless everything was read."""
        require(self.left() == 0, "bytes after the end of a message")


def require(holds: bool, problem: str) -> None:
    """Raise WireError with `problem` unless it `holds`."""
    if not holds:
        raise WireError(problem)
