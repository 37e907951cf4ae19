"""What a device must have on the disk before an answer of a private sum leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from privacy.errors import LedgerError
from privacy.files import write_atomic

ADVERTISED: Final = "advertised"
MASKED: Final = "masked"
REVEALED: Final = "revealed"
STEPS: Final = (ADVERTISED, MASKED, REVEALED)


class Journal(Protocol):
    """Notes about events, each written once and durable when `store` returns.

    Steps: `advertised` (hash of the request, then the answer), before a device's keys leave; `masked` (the same),
    before its vector leaves; `revealed` (hash of the survivors), before its shares leave.
    """

    def load(self, event: bytes) -> dict[str, bytes]:
        """Return what is stored of an event, by step."""

    def store(self, event: bytes, step: str, data: bytes) -> None:
        """Store a step and return once it is on the disk; raise LedgerError if it is stored already or cannot be."""


class MemoryJournal:
    """A journal for simulated devices, which share the fate of their process."""

    def __init__(self) -> None:
        self._steps: dict[bytes, dict[str, bytes]] = {}

    def load(self, event: bytes) -> dict[str, bytes]:
        """Return what is stored of an event, by step."""
        return dict(self._steps.get(event, {}))

    def store(self, event: bytes, step: str, data: bytes) -> None:
        """Store a step; raise LedgerError if it is stored already."""
        steps = self._steps.setdefault(event, {})
        if step in steps:
            raise LedgerError(f"{step} is stored already")
        steps[step] = data


class FileJournal:
    """A journal in a folder, one file a step, `<event>.<step>`, mode 0600: whole or not there after a crash.

    The masked vector is kept because a server may not have got it. Without the keys of the round, which are never
    stored, it says nothing; `forget_vector` drops it once the round is over and leaves the marks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, event: bytes) -> dict[str, bytes]:
        """Return what is stored of an event, by step."""
        paths = {step: self._path(event, step) for step in STEPS}
        return {step: path.read_bytes() for step, path in paths.items() if path.exists()}

    def store(self, event: bytes, step: str, data: bytes) -> None:
        """Store a step and flush file and folder; raise LedgerError if it is stored already or cannot be."""
        path = self._path(event, step)
        try:
            if path.exists():
                raise LedgerError(f"{step} is stored already")
            write_atomic(path, data, mode=0o600)
        except OSError as error:
            raise LedgerError(f"{path.name}: cannot write to the disk ({error.strerror}); nothing is sent") from error

    def forget_vector(self, event: bytes) -> None:
        """Drop the masked vector of an event that is over; that it was made stays known by the other marks."""
        self._path(event, MASKED).unlink(missing_ok=True)

    def _path(self, event: bytes, step: str) -> Path:
        return self._folder / f"{event.hex()}.{step}"
