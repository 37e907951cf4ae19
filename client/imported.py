"""What an importer yields: texts whose words are the owner's or others', ratings, and what was left out and why."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from client.documents import Span
from privacy.canonical import sha256_hex
from privacy.errors import DataError

NOTE, MAIL, CODE, TALK, RATING = "note", "mail", "code", "talk", "rating"
EVENT, BOOKMARK = "event", "bookmark"
TYPES = (NOTE, MAIL, CODE, TALK, RATING, EVENT, BOOKMARK)
MAX_BYTES = 64 * 2**20
# What the first bytes of a file say, whatever it is called: PDF, PNG, JPEG, GIF, ZIP, gzip, RTF, PostScript, SQLite.
_NO_TEXT = (b"%PDF-", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"PK\x03\x04", b"\x1f\x8b", b"{\\rtf", b"%!PS", b"SQLite ")


@dataclass(frozen=True, slots=True)
class Text:
    """One text. `key` is the same at every import of its source; `written` in seconds since 1970, None if unknown."""

    key: str
    type: str
    title: str
    written: float | None
    spans: tuple[Span, ...]

    @property
    def own_words(self) -> int:
        """Return the number of the owner's own words."""
        return sum(len(span.text.split()) for span in self.spans if span.own)

    @property
    def sha256(self) -> bytes:
        """Return the hash of what was said by whom; where it lay and when does not count."""
        return bytes.fromhex(sha256_hex(packed_spans(self.spans).encode()))


@dataclass(frozen=True, slots=True)
class Rated:
    """What the owner thought of one thing at one time."""

    key: str
    title: str
    about: str
    rating: float
    time: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out: its place in the source and the reason, never its text."""

    place: str
    reason: str


Event = Text | Rated | Skipped


def packed_spans(spans: Iterable[Span]) -> str:
    """Return spans as one JSON text; `unpacked_spans` is its inverse."""
    return json.dumps([[span.text, int(span.own), int(span.loss)] for span in spans], ensure_ascii=False)


def unpacked_spans(text: str) -> tuple[Span, ...]:
    """Return the spans that `packed_spans` wrote."""
    return tuple(Span(words, bool(own), bool(loss)) for words, own, loss in json.loads(text))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises DataError, naming the file alone, if it is too long or unreadable."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path.name}: longer than {MAX_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None


def decoded(data: bytes) -> str:
    """Return a text file's characters: UTF-8, UTF-16 with its mark, else Windows-1252; ValueError for no text."""
    if data.startswith(_NO_TEXT):
        raise ValueError
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data:
        raise ValueError
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order of name; hidden ones and links that lead out are passed over."""
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        if path.resolve().is_relative_to(root):
            yield path
