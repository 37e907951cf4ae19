"""People from a file of JSON lines: `{"user": "u1", "task": "...", "split": "history|test", "i": 0, ...}`.

One record is one document; which columns hold text, and whose it is, stands in `client.records`.

`i` is the place in time inside a user (the line number where it is missing). Without a `split`, the last quarter of a
user's records are test. `alternatives` are texts that the person might have chosen and did not. `group` names a
conversation that several users share: if one of its records is test, all are. A broken line is reported by number and
left out.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from client.documents import Document, Person, Split, own_words
from client.records import BrokenLine, checked_field, json_record, spans_of
from privacy.errors import DataError
from simulation.datasets.loaded import Loaded

MAX_LINE_BYTES = 1 << 20
MAX_WARNINGS = 200
SAFE_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(slots=True)
class _Reading:
    """What is known while the file streams by."""

    name: str
    strict: bool
    drafts: dict[str, list[tuple[Document, bool]]] = field(default_factory=lambda: defaultdict(list))
    warnings: list[str] = field(default_factory=list)
    broken: int = 0
    renamed: set[str] = field(default_factory=set)
    personas: dict[str, str] = field(default_factory=dict)

    def warn(self, number: int, fault: str) -> None:
        message = f"{self.name}:{number}: {fault}; left out"
        if self.strict:
            raise DataError(message)
        self.broken += 1
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(message)


def load(path: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return everybody in the file at `path`: first those with `min_test` test records, then by own history words.

    Reads the file once, a line at a time. Raises DataError if it cannot be opened or, with `strict`, at the
    first broken line.
    """
    reading = _Reading(path.name, strict)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            for number, line in lines_of(stream, digest):
                _read_line(reading, number, line)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
    return _loaded(reading, min_test, digest.hexdigest())


def load_records(
    name: str,
    records: Iterable[tuple[int, Mapping[str, Any] | BrokenLine]],
    min_test: int,
    strict: bool,
    digest: hashlib._Hash,
) -> Loaded:
    """Return everybody in records of this module's form, made from another source called `name`, as `load` does.

    Each comes with its number there; a broken one is reported by it. `digest` has seen the source when they end.
    """
    reading = _Reading(name, strict)
    for place, (number, record) in enumerate(records, 1):  # one line of the source may hold several records
        try:
            if isinstance(record, BrokenLine):
                raise record
            _take(reading, place, record)
        except BrokenLine as fault:
            reading.warn(number, str(fault))
    return _loaded(reading, min_test, digest.hexdigest())


def person_of(name: str, lines: Iterable[tuple[int, bytes]]) -> Person:
    """Return the person of whom all these lines of a file called `name` are. Raises BrokenLine, IndexError for none."""
    reading = _Reading(name, strict=False)
    for number, line in lines:
        if line.strip():
            _take(reading, number, json_record(line))
    return _loaded(reading, 0, "").people[0]


def user_name(user: str) -> str:
    """Return `user` if it is a plain short name, else `user-` and 12 hex digits of its SHA-256.

    Names become file names and stand in reports, so an address or a path must not pass through. The hash
    is a stable label, not a secret: whoever guesses the address can check the guess.
    """
    if SAFE_USER.fullmatch(user):
        return user
    return "user-" + hashlib.sha256(user.encode()).hexdigest()[:12]


def lines_of(stream: BinaryIO, digest: hashlib._Hash) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number, line); None for a line over the limit, of which no more than a block is ever held."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        digest.update(line)
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
            digest.update(line)
        yield number, None


def _read_line(reading: _Reading, number: int, line: bytes | None) -> None:
    try:
        if line is None:
            raise BrokenLine(f"longer than {MAX_LINE_BYTES} bytes")
        if line.strip():
            _take(reading, number, json_record(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line))
    except BrokenLine as fault:
        reading.warn(number, str(fault))


def _take(reading: _Reading, number: int, record: Mapping[str, Any]) -> None:
    user = checked_field(record, "user", str)
    if not user:
        raise BrokenLine("no user")
    name = user_name(user)
    document = _document(record, name, number)
    reading.drafts[name].append(document)
    reading.personas[name] = checked_field(record, "persona", str, "") or reading.personas.get(name, "")
    reading.renamed |= {name} - {user}


def _document(record: Mapping[str, Any], user: str, number: int) -> tuple[Document, bool]:
    """Return the record's document, and whether the record said itself which part it belongs to."""
    split = checked_field(record, "split", str, "")
    if split not in ("", "history", "test"):
        raise BrokenLine("split is neither history nor test")
    order = checked_field(record, "i", int, number)
    spans = spans_of(record)
    group = checked_field(record, "group", str, "")
    others = record.get("alternatives") or ()
    if not isinstance(others, (list, tuple)) or not all(isinstance(text, str) for text in others):
        raise BrokenLine("alternatives is not a list of texts")
    part = cast(Split, split or "history")
    return Document(f"{user}.{number}", spans, part, order, group, tuple(others)), bool(split)


def _loaded(reading: _Reading, min_test: int, sha256: str) -> Loaded:
    drafts = {user: _with_split(records) for user, records in reading.drafts.items()}
    test_groups = {d.group for documents in drafts.values() for d in documents if d.split == "test"}
    people, moved = [], 0
    for user, documents in drafts.items():
        settled = tuple(replace(d, split="test") if d.group in test_groups else d for d in documents)
        moved += sum(a.split != b.split for a, b in zip(settled, documents, strict=True))
        people.append(Person(user, settled, reading.personas.get(user, "")))
    people.sort(key=lambda p: (len(p.test) < min_test, -own_words(p.history), p.user))
    if reading.broken > len(reading.warnings):
        reading.warnings.append(f"{reading.name}: {reading.broken - len(reading.warnings)} more broken lines")
    counts = {
        "broken_lines": reading.broken,
        "renamed_users": len(reading.renamed),
        "documents_moved_to_test_with_their_group": moved,
    }
    return Loaded(tuple(people), tuple(reading.warnings), counts, sha256)


def _with_split(records: list[tuple[Document, bool]]) -> list[Document]:
    """Return a user's documents in time order; of those without a split, the last quarter are test."""
    records = sorted(records, key=lambda record: record[0].order)
    unsplit = [document.id for document, has_split in records if not has_split]
    last = len(unsplit) - (max(1, round(len(unsplit) / 4)) if len(unsplit) > 1 else 0)
    test = set(unsplit[last:])
    return [replace(document, split="test") if document.id in test else document for document, _ in records]
