"""Calendars (iCalendar, RFC 5545) and browser bookmarks (the HTML file that every browser exports).

An event is the owner's words where nobody or the owner organised it, else somebody else's. A bookmark's title is the
words of the page's author: it is found and quoted, and trains nothing. The iCalendar layout follows its standard, the
bookmark file the layout that browsers share by custom; neither was tried on a real export yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from icalendar import Calendar

from client.documents import Span
from client.imported import BOOKMARK, EVENT, Event, Skipped, Text, decoded, read_bytes
from privacy.errors import DataError

_MARK = "NETSCAPE-Bookmark-file"


def is_bookmarks(place: Path) -> bool:
    """Return whether an HTML file is a browser's export of bookmarks."""
    with place.open("rb") as file:
        return _MARK.encode() in file.read(200)


def read_calendar(place: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the events of a calendar file. Raises DataError where it is none."""
    try:
        calendars = Calendar.from_ical(read_bytes(place), multiple=True)
    except ValueError:
        calendars = []
    if not any(calendar.name == "VCALENDAR" for calendar in calendars):
        raise DataError(f"{place.name}: is no iCalendar file")
    mine = {each.casefold() for each in owner}
    number = 0
    for calendar in calendars:
        for entry in calendar.walk("VEVENT"):
            number += 1
            said = [str(entry.get(name) or "").strip() for name in ("SUMMARY", "LOCATION", "DESCRIPTION")]
            if not any(said):
                yield Skipped(f"{place.name}: event {number}", "holds no words")
                continue
            organiser = str(entry.get("ORGANIZER") or "").casefold().removeprefix("mailto:")
            key = f"{entry.get('UID') or number}/{entry.get('RECURRENCE-ID') and entry.decoded('RECURRENCE-ID')}"
            text = "\n".join(filter(None, said))
            own = not organiser or organiser in mine
            yield Text(key, EVENT, said[0] or "event", _second(entry), (Span(text, own=own),))


def read_bookmarks(place: Path) -> Iterator[Event]:
    """Yield the bookmarks of a browser's export, each with the folders it lies in."""
    reader = _Bookmarks()
    try:
        reader.feed(decoded(read_bytes(place)))
    except ValueError:
        raise DataError(f"{place.name}: holds bytes that are no text") from None
    reader.close()
    for address, title, folders, added in reader.found:
        words = "\n".join(filter(None, (title, " / ".join(folders), address)))
        yield Text(address, BOOKMARK, title or address, added, (Span(words, own=False),))


def _second(entry: Any) -> float | None:
    start = entry.decoded("DTSTART", None)
    if isinstance(start, datetime):
        return (start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp()
    if isinstance(start, date):
        return datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()
    return None


class _Bookmarks(HTMLParser):
    """Collects links with their titles, the names of the folders around them, and when they were added."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, tuple[str, ...], float | None]] = []
        self._folders: list[str] = []
        self._text, self._link, self._name = "", dict[str, str | None](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a link or a folder's name; a list opens the folder that was named last."""
        self._text = "" if tag in ("a", "h3") else self._text
        if tag == "a":
            self._link = dict(attrs)
        elif tag == "dl":
            self._folders.append(self._name)
            self._name = ""

    def handle_data(self, data: str) -> None:
        """Take the words of a title."""
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        """End a link, a folder's name, or a folder."""
        if tag == "h3":
            self._name = self._text.strip()
        elif tag == "dl" and self._folders:
            self._folders.pop()
        elif tag == "a":
            address, added = self._link.get("href") or "", self._link.get("add_date") or ""
            if address.startswith(("http://", "https://")):
                folders = tuple(filter(None, self._folders))
                self.found.append((address, self._text.strip(), folders, float(added) if added.isdigit() else None))
