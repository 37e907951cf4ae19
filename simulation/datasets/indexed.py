"""`stream:FILE.jsonl`: people of a file that is never in memory: read once for where everybody stands, then on demand.

    index: name -> first byte, bytes, first line            person: these bytes, read and parsed when somebody asks

The records are those of `datasets.jsonl`. A person's lines must stand together, and a conversation must be one person's
alone (no `group`): which part of another's text is test cannot be known from a few lines.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from client.records import BrokenLine, checked_field, json_record
from privacy.errors import DataError
from simulation.datasets import jsonl

PREFIX: Final = "stream"


@dataclass(frozen=True, eq=False)
class Indexed:
    """The people of one file, see `simulation.crowd.Source`; `places` int64 [people, 3] in the order of `names`."""

    path: Path
    names: tuple[str, ...]
    places: NDArray[np.int64]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Indexed:
        """Return the index of the file at `path`, read once, a line at a time.

        Raises DataError where it cannot be read, holds a line that is broken or of a shared conversation, a person
        whose lines do not stand together, or nobody.
        """
        found: dict[str, list[int]] = {}
        digest, start, last = hashlib.sha256(), 0, ""
        try:
            with path.open("rb") as stream:
                for number, line in jsonl.lines_of(stream, digest):
                    size = stream.tell() - start
                    if line is not None and not line.strip():
                        start += size
                        continue
                    name = _name(path, number, line)
                    if name not in found:
                        found[name] = [start, 0, number]
                    elif name != last:
                        raise DataError(f"{path.name}:{number}: {PREFIX} needs each person's lines together")
                    place = found[name]
                    place[1], last = start + size - place[0], name
                    start += size
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
        if not found:
            raise DataError(f"{path.name}: holds no people")
        names = tuple(sorted(found))
        return cls(path.resolve(), names, np.array([found[name] for name in names], np.int64), digest.hexdigest())

    @property
    def people(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def name(self, number: int) -> str:
        """Return a person's pseudonym."""
        return self.names[number]

    def number(self, name: str) -> int | None:
        """Return the number of the person of that name, None where there is none."""
        found = bisect_left(self.names, name)
        return found if found < len(self.names) and self.names[found] == name else None

    def make(self, number: int) -> Person:
        """Return the person as the file has them. Raises DataError where it was changed since it was read."""
        start, size, first = map(int, self.places[number])
        with self.path.open("rb") as stream:
            stream.seek(start)
            lines = stream.read(size).split(b"\n")
        try:
            person = jsonl.person_of(self.path.name, enumerate(lines, first))
        except (BrokenLine, IndexError):
            person = None
        if person is None or person.user != self.names[number]:
            raise DataError(f"{self.path.name}: was changed while it was in use")
        return person


def _name(path: Path, number: int, line: bytes | None) -> str:
    try:
        if line is None:
            raise BrokenLine("too long")
        record = json_record(line)
        if checked_field(record, "group", str, ""):
            raise BrokenLine("a conversation of several people (group)")
        user = checked_field(record, "user", str)
    except BrokenLine as fault:
        raise DataError(f"{path.name}:{number}: {fault}; {PREFIX} takes no such line") from None
    return jsonl.user_name(user)
