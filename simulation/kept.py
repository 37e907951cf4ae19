"""What is kept because making it again costs time, within a bound."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by name, together at most `most_bytes` but for the newest; what was used longest ago makes room."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0
        self._kept = OrderedDict[str, tuple[Value, int]]()

    def get(self, name: str) -> Value | None:
        """Return the value of that name, None where it is not kept (any more)."""
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name][0]

    def put(self, name: str, value: Value, size: int) -> None:
        """Keep a value of `size` bytes."""
        self.held_bytes += size - self._kept.pop(name, (None, 0))[1]
        self._kept[name] = value, size
        while self.held_bytes > self.most_bytes and len(self._kept) > 1:
            self.held_bytes -= self._kept.popitem(last=False)[1][1]
