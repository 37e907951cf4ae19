"""People from a file of JSON lines: `{"user": "u1", "task": "...", "split": "history|test", "i": 0, ...}`.

One record is one document. Which fields hold text is decided by the columns, whatever the task is called:

    turns            a list of texts, all the person's own, one a line;
                     or of pairs [who, text], who == "me" for the person: rendered as `Me: ...` and `You: ...`
    input, output    input is context, output the person's own
    title, text      both the person's own, one a line

`i` is the place in time inside a user (the line number where it is missing). Without a `split`, the last
quarter of a user's records are test. `group` names a conversation that several users share: if one of its
records is test, all are. A broken line is reported by number and left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from client.documents import Document, Person, Span, Split, own_words
from privacy.errors import DataError
from simulation.datasets.chitchat import OWN_LABEL, PARTNER_LABEL
from simulation.datasets.loaded import Loaded

MAX_LINE_BYTES = 1 << 20
MAX_WARNINGS = 200
SAFE_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TEXT_FIELDS = ("turns", "input", "output", "title", "text")

_Value = TypeVar("_Value", str, int)


class BrokenLine(Exception):
    """A record that cannot be used. The message names the fault and never quotes the line."""


@dataclass(slots=True)
class _Reading:
    """What is known while the file streams by."""

    name: str
    strict: bool
    drafts: dict[str, list[tuple[Document, bool]]] = field(default_factory=lambda: defaultdict(list))
    warnings: list[str] = field(default_factory=list)
    broken: int = 0
    renamed: set[str] = field(default_factory=set)

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
            for number, line in _lines(stream, digest):
                _read_line(reading, number, line)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
    return _loaded(reading, min_test, digest.hexdigest())


def user_name(user: str) -> str:
    """Return `user` if it is a plain short name, else `user-` and 12 hex digits of its SHA-256.

    Names become file names and stand in reports, so an address or a path must not pass through. The hash
    is a stable label, not a secret: whoever guesses the address can check the guess.
    """
    if SAFE_USER.fullmatch(user):
        return user
    return "user-" + hashlib.sha256(user.encode()).hexdigest()[:12]


def spans_of(record: Mapping[str, Any]) -> tuple[Span, ...]:
    """Return the spans of a record by its columns (module docstring).

    Raises BrokenLine if a column has the wrong type or none holds a word of the person's own.
    """
    spans = _turns(record["turns"]) if record.get("turns") is not None else _columns(record)
    if not any(span.target and span.text.strip() for span in spans):
        raise BrokenLine(f"no own text in {', '.join(TEXT_FIELDS)}")
    return tuple(spans)


def _lines(stream: BinaryIO, digest: hashlib._Hash) -> Iterator[tuple[int, bytes | None]]:
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
            record = _record(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            user = _field(record, "user", str)
            if not user:
                raise BrokenLine("no user")
            name = user_name(user)
            document = _document(record, name, number)
            reading.drafts[name].append(document)
            reading.renamed |= {name} - {user}
    except BrokenLine as fault:
        reading.warn(number, str(fault))


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
        # Text with a lone surrogate is valid JSON and cannot be written as UTF-8 again.
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError:
        raise BrokenLine("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise BrokenLine(f"not JSON at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise BrokenLine("not JSON") from None
    if not isinstance(record, dict):
        raise BrokenLine("not a JSON object")
    return record


def _document(record: Mapping[str, Any], user: str, number: int) -> tuple[Document, bool]:
    """Return the record's document, and whether the record said itself which part it belongs to."""
    split = _field(record, "split", str, "")
    if split not in ("", "history", "test"):
        raise BrokenLine("split is neither history nor test")
    order = _field(record, "i", int, number)
    spans = spans_of(record)
    group = _field(record, "group", str, "")
    return Document(f"{user}.{number}", spans, cast(Split, split or "history"), order, group), bool(split)


def _field(record: Mapping[str, Any], name: str, kind: type[_Value], default: _Value | None = None) -> _Value:
    value = record.get(name)
    if value is None:
        if default is None:
            raise BrokenLine(f"no {name}")
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenLine(f"{name} is not {'text' if kind is str else 'a whole number'}")
    return value


def _columns(record: Mapping[str, Any]) -> list[Span]:
    if record.get("output") is not None:
        context = _field(record, "input", str, "")
        own = [_field(record, "output", str)]
    else:
        context = ""
        own = [_field(record, name, str, "") for name in ("title", "text")]
    spans = [Span(context + "\n", own=False)] if context else []
    return spans + [Span(text + "\n", own=True) for text in own if text]


def _turns(turns: Any) -> list[Span]:
    if not isinstance(turns, list):
        raise BrokenLine("turns is not a list")
    spans: list[Span] = []
    for turn in turns:
        if isinstance(turn, str):
            spans.append(Span(turn + "\n", own=True))
        elif isinstance(turn, list) and len(turn) == 2 and all(isinstance(part, str) for part in turn):
            spans += _labelled(*turn)
        else:
            raise BrokenLine("turns holds something that is neither a text nor a pair of texts")
    return spans


def _labelled(who: str, text: str) -> list[Span]:
    if who == "me":
        return [Span(OWN_LABEL, own=False), Span(text + "\n", own=True)]
    return [Span(f"{PARTNER_LABEL}{text}\n", own=False)]


def _loaded(reading: _Reading, min_test: int, sha256: str) -> Loaded:
    drafts = {user: _with_split(records) for user, records in reading.drafts.items()}
    test_groups = {d.group for documents in drafts.values() for d in documents if d.split == "test"}
    people, moved = [], 0
    for user, documents in drafts.items():
        settled = tuple(replace(d, split="test") if d.group in test_groups else d for d in documents)
        moved += sum(a.split != b.split for a, b in zip(settled, documents, strict=True))
        people.append(Person(user, settled))
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
