"""The text that one person put into their agent's folder: `people.jsonl`, or plain files under `text/`.

A line of `people.jsonl` is a record as in `client.records`, with a `user` where the file holds several people's. Of a
plain file every word is the person's own. All of it is history: a device keeps no test set for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from client.documents import Document, Span
from client.records import BrokenLine, checked_field, json_record, spans_of
from privacy.errors import DataError

LINES, FOLDER = "people.jsonl", "text"
SUFFIXES = (".txt", ".md")
MAX_BYTES = 64 * 2**20


def own_documents(home: Path, person: str) -> list[Document]:
    """Return the documents of `person` in `home`, in the order of the file, then of the names of plain files.

    A record without a `user` is the person's. Raises DataError for a broken line, without quoting it.
    """
    found: list[Document] = []
    if (home / LINES).exists():
        found += _from_lines(home / LINES, person)
    for path in sorted((home / FOLDER).rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            text = _read(path).decode(errors="replace")
            found.append(Document(f"text-{len(found)}", (Span(text, own=True),), "history", len(found)))
    return found


def _from_lines(path: Path, person: str) -> Iterator[Document]:
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json_record(line)
            if checked_field(record, "user", str, person) != person:
                continue
            order = checked_field(record, "i", int, number)
            if checked_field(record, "split", str, "history") == "history":
                yield Document(f"line-{number}", spans_of(record), "history", order)
        except BrokenLine as fault:
            raise DataError(f"{path.name}:{number}: {fault}") from None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path.name}: longer than {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
