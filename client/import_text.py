"""Notes and JSON lines as text: plain files whose every word is the owner's, records that say whose words they hold."""

from __future__ import annotations

import mimetypes
from collections.abc import Collection, Iterator
from pathlib import Path

from client.documents import Span
from client.imported import NOTE, TALK, Event, Skipped, Text, decoded, files_below, read_bytes
from client.records import BrokenLine, checked_field, json_record, spans_of
from privacy.errors import DataError

MAIL_SUFFIXES = (".mbox", ".eml")
SUFFIXES = (".txt", ".md", ".markdown", ".rst", ".org", ".text")


def read_notes(place: Path, passed_over: Collection[str] = ()) -> Iterator[Event]:
    """Yield a text file, or those below a folder; files of another type are skipped by the name of their type."""
    for path in [place] if place.is_file() else files_below(place):
        name = path.name if path == place else path.relative_to(place).as_posix()
        if path.suffix.lower() in passed_over:
            continue
        if path.suffix.lower() in MAIL_SUFFIXES:
            yield Skipped(name, "mail among notes: say which is yours with --me ADDRESS")
            continue
        if path.suffix.lower() not in SUFFIXES:
            yield Skipped(name, f"{media_type(path)} is not read, only text")
            continue
        try:
            text = decoded(read_bytes(path))
            written = path.stat().st_mtime
        except DataError as error:
            yield Skipped(name, str(error).partition(": ")[2])
        except ValueError:
            yield Skipped(name, "holds bytes that are no text")
        else:
            if text.strip():
                yield Text(name, NOTE, path.stem, written, (Span(text, own=True),))
            else:
                yield Skipped(name, "empty")


def media_type(path: Path) -> str:
    """Return the media type by a file's name, such as image/png."""
    return mimetypes.guess_type(path.name)[0] or (f"a {path.suffix} file" if path.suffix else "a file without a type")


def read_records(path: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the records of one person in a file of JSON lines; `owner` may be empty where it holds one person alone.

    Raises DataError where it holds several people and `owner` names none of them.
    """
    users, texts = set(), []
    for number, line in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json_record(line)
            user = checked_field(record, "user", str, "")
            users.add(user)
            if owner and user and user not in owner:
                continue
            order = checked_field(record, "i", int, number)
            task = checked_field(record, "task", str, TALK)
            texts.append(Text(f"{user}/{task}/{order}/{number}", TALK, task, None, spans_of(record)))
        except BrokenLine as fault:
            yield Skipped(f"{path.name}:{number}", str(fault))
    if len(users) > 1 and not users & set(owner):
        raise DataError(f"{path.name}: holds {len(users)} people: say which is you with --me USER")
    yield from texts
