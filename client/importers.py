"""Text into the vault: which importer reads a place, what of it is new, how much was left out and why.

    place -> importer -> Text, Rated, Skipped -> vault, a batch a transaction -> Counts

A text is known by its source and key and by the hash of its words: imported again it changes nothing, a changed one
takes the place of the old, and the same words under another source are not kept twice. Cut off in the middle, an
import has kept whole batches, and the next one goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from client.forget import drop_unused_pseudonyms, mark
from client.import_git import own_address, read_commits
from client.import_lists import is_bookmarks, read_bookmarks, read_calendar
from client.import_mail import read_mails, senders
from client.import_ratings import read_ratings
from client.import_talk import is_chatgpt, is_slack, is_whatsapp, read_chatgpt, read_slack, read_whatsapp
from client.import_text import MAIL_SUFFIXES, SUFFIXES, media_type, read_notes, read_records
from client.imported import MAIL, NOTE, TALK, Event, Rated, Skipped, Text, files_below, packed_spans
from client.language import other_language
from client.vault import Vault
from privacy.canonical import sha256_hex
from privacy.errors import DataError

GIT, MAILS, RATINGS, RECORDS, NOTES = "git", "mail", "ratings", "people", "notes"
WHATSAPP, SLACK, CHATGPT, CALENDAR, BOOKMARKS = "whatsapp", "slack", "chatgpt", "calendar", "bookmarks"
BATCH = 200
HELD_BACK_ONE_IN = 5
SHOWN_SKIPS = 20
OWN, SHARED = "own", "shared"  # purposes: the person's own model; what may leave in private sums
PURPOSES = (OWN, SHARED)
PROSE = (NOTE, MAIL, TALK)  # in a commit, an event or a link the language cannot be told


@dataclass
class Counts:
    """What an import did; `skipped` counts reasons, `shown` names the first places, `foreign` is not in English."""

    kind: str
    source: int
    new: int = 0
    changed: int = 0
    same: int = 0
    others: int = 0
    foreign: int = 0
    ratings: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**vars(self), "skipped": dict(self.skipped)}


def kind_of(place: Path) -> str:
    """Return which importer reads `place`. Raises DataError, naming its media type, where none does."""
    if place.is_dir():
        if (place / ".git").exists() or ((place / "objects").is_dir() and (place / "HEAD").is_file()):
            return GIT
        if is_slack(place):
            return SLACK
        suffixes = {path.suffix.lower() for path in files_below(place)}
        return MAILS if suffixes & set(MAIL_SUFFIXES) and not suffixes & set(SUFFIXES) else NOTES
    if not place.is_file():
        raise DataError(f"{place.name}: there is no such file or folder")
    suffix = place.suffix.lower()
    if export := _export_of(place, suffix):
        return export
    for kind, ends in ((MAILS, MAIL_SUFFIXES), (RATINGS, (".csv",)), (RECORDS, (".jsonl",)), (NOTES, SUFFIXES)):
        if suffix in ends:
            return kind
    with place.open("rb") as file:
        if file.read(5) == b"From ":
            return MAILS
    known = "text, mail, git, ratings, people's records, exported chats, calendars, bookmarks"
    raise DataError(f"{place.name}: {media_type(place)} is not read, only {known}")


def _export_of(place: Path, suffix: str) -> str:
    """Return which program's export a file is by its first bytes, "" where it is none."""
    if suffix == ".txt" and is_whatsapp(place):
        return WHATSAPP
    if suffix in (".html", ".htm") and is_bookmarks(place):
        return BOOKMARKS
    if suffix == ".json" and is_chatgpt(place):
        return CHATGPT
    return CALENDAR if suffix in (".ics", ".ical") else ""


def add(
    vault: Vault,
    place: Path,
    owner: Collection[str] = (),
    report: Callable[[int], None] = lambda _done: None,
    again: bool = False,
) -> Counts:
    """Import a place and return the counts; `report` hears how many events were read.

    `owner` holds what names the owner there: addresses, a user. Raises DataError where that cannot be told, or nothing
    there is text. `again` takes back what was forgotten one by one. The vault then holds what was imported before, and
    no half of a text.
    """
    place = place.resolve()
    kind = kind_of(place)
    owner = owners(vault, place, kind, owner)
    counts = Counts(kind, _source(vault, kind, place, owner))
    if again:
        with vault.change() as rows:
            rows.execute("DELETE FROM setting WHERE name = 'tombstone'")  # old marks then match nothing
            rows.execute("DELETE FROM tombstone")
    done, events = 0, _events(place, kind, owner)
    while batch := list(islice(events, BATCH)):
        with vault.change() as rows:
            for event in batch:
                _keep(rows, event, counts)
        done += len(batch)
        report(done)
    return counts


def owners(vault: Vault, place: Path, kind: str, given: Collection[str]) -> frozenset[str]:
    """Return what names the owner in a place: what is given, else what is known from before or from the place."""
    if kind in (WHATSAPP, SLACK):
        names = frozenset(given) or frozenset(filter(None, vault.setting("addresses").split("\n")))
        next(_events(place, kind, names), None)  # raises where nobody of them speaks
        return names
    if given:
        return frozenset(given)
    known = frozenset(filter(None, vault.setting("addresses").split("\n")))
    if kind == GIT:
        here = own_address(place)
        if known or here:
            return known | ({here} - {""})
        raise DataError(f"{place.name}: say which commits are yours with --me ADDRESS")
    if kind in (NOTES, CALENDAR):
        return known  # of mails among the notes, of who organised an event
    if kind == MAILS:
        found = senders(place)
        if set(found) & {address.casefold() for address in known}:
            return known
        most = ", ".join(sorted(found, key=lambda a: -found[a])[:3])
        raise DataError(f"{place.name}: say which mails are yours with --me ADDRESS; senders here: {most}")
    return frozenset()


def _events(place: Path, kind: str, owner: Collection[str]) -> Iterator[Event]:
    match kind:
        case "git":
            yield from read_commits(place, owner)
        case "mail":
            yield from read_mails(place, owner)
        case "ratings":
            yield from read_ratings(place, owner)
        case "people":
            yield from read_records(place, owner)
        case "whatsapp":
            yield from read_whatsapp(place, owner)
        case "slack":
            yield from read_slack(place, owner)
        case "chatgpt":
            yield from read_chatgpt(place, owner)
        case "calendar":
            yield from read_calendar(place, owner)
        case "bookmarks":
            yield from read_bookmarks(place)
        case _:
            yield from read_notes(place, MAIL_SUFFIXES if owner else ())
            if owner and place.is_dir():
                yield from read_mails(place, owner)


def _source(vault: Vault, kind: str, place: Path, owner: Collection[str]) -> int:
    """Return the number of a place's source, made on its first import: for the own model, shared with nobody."""
    with vault.change() as rows:
        rows.execute(
            "INSERT OR IGNORE INTO source (kind, place, owner, added) VALUES (?, ?, ?, ?)",
            (kind, str(place), "\n".join(sorted(owner)), time.time()),
        )
        number = rows.execute("SELECT id FROM source WHERE kind = ? AND place = ?", (kind, str(place))).fetchone()[0]
        for purpose in PURPOSES:
            rows.execute(
                "INSERT OR IGNORE INTO consent VALUES (?, ?, ?, ?)", (number, purpose, purpose == OWN, time.time())
            )
        if kind in (GIT, MAILS, NOTES, SLACK) and owner:
            row = rows.execute("SELECT value FROM setting WHERE name = 'addresses'").fetchone()
            known = set(row[0].split("\n")) if row else set()
            rows.execute(
                "INSERT OR REPLACE INTO setting VALUES ('addresses', ?)",
                ("\n".join(sorted(filter(None, known | set(owner)))),),
            )
    return int(number)


def _keep(rows: Any, event: Event, counts: Counts) -> None:
    match event:
        case Text():
            _keep_text(rows, event, counts)
        case Rated():
            _keep_rating(rows, event, counts)
        case Skipped():
            _skip(event, counts)


def _keep_text(rows: Any, text: Text, counts: Counts) -> None:
    digest, source = text.sha256, counts.source
    old = rows.execute("SELECT id, sha256 FROM document WHERE source = ? AND key = ?", (source, text.key)).fetchone()
    if old and old[1] == digest:
        counts.same += 1
        return
    if rows.execute("SELECT 1 FROM tombstone WHERE mark = ?", (mark(rows, source, text.key),)).fetchone():
        _skip(Skipped("a document", "you had it forgotten; `--again` takes it back"), counts)
        return
    twin = rows.execute("SELECT id FROM document WHERE sha256 = ? AND type = ?", (digest, text.type)).fetchone()
    if twin and (text.type == MAIL or not old):
        _skip(Skipped(text.key, "the vault holds these words already"), counts)
        return
    counts.others += text.own_words == 0
    counts.foreign += text.type in PROSE and other_language("".join(span.text for span in text.spans))
    if old:
        _change_text(rows, int(old[0]), text)
        counts.changed += 1
        return
    rows.execute(
        "INSERT INTO document (source, key, type, title, written, spans, own_words, held_back, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(source, text.key, text.type, text.title, text.written, packed_spans(text.spans)),
            *(text.own_words, held_back(digest), digest),
        ),
    )
    counts.new += 1


def _change_text(rows: Any, number: int, text: Text) -> None:
    """Put new words in the place of old ones, under the same number and in the same slice.

    What was derived from the old words goes with them. An adapter that learned them still points at the number: it goes
    when that is forgotten.
    """
    for table in ("vector", "profile", "pseudonym_document"):
        rows.execute(f"DELETE FROM {table} WHERE document = ?", (number,))  # noqa: S608 - one of three names
    drop_unused_pseudonyms(rows)
    rows.execute(
        "UPDATE document SET type = ?, title = ?, written = ?, spans = ?, own_words = ?, sha256 = ? WHERE id = ?",
        (text.type, text.title, text.written, packed_spans(text.spans), text.own_words, text.sha256, number),
    )


def _keep_rating(rows: Any, rated: Rated, counts: Counts) -> None:
    rows.execute(
        "INSERT INTO item (source, key, title, about) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (source, key) DO UPDATE SET title = excluded.title, about = excluded.about",
        (counts.source, rated.key, rated.title, rated.about),
    )
    item = rows.execute("SELECT id FROM item WHERE source = ? AND key = ?", (counts.source, rated.key)).fetchone()[0]
    found = rows.execute("SELECT rating FROM interaction WHERE item = ? AND time = ?", (item, rated.time)).fetchone()
    if found and found[0] == rated.rating:
        counts.same += 1
        return
    rows.execute("INSERT OR REPLACE INTO interaction VALUES (?, ?, ?)", (item, rated.time, rated.rating))
    counts.ratings += 1


def _skip(skipped: Skipped, counts: Counts) -> None:
    counts.skipped[skipped.reason] += 1
    if len(counts.shown) < SHOWN_SKIPS:
        counts.shown.append(f"{skipped.place}: {skipped.reason}")


def held_back(digest: bytes) -> int:
    """Return 1 for one text in five, by its words alone: the slice on which choices are scored, never trained on."""
    return int(int(sha256_hex(b"confide/held-back/1\x00" + digest)[:8], 16) % HELD_BACK_ONE_IN == 0)
