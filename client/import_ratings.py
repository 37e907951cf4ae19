"""Ratings as rows of a CSV file: a thing, how it was rated, when; titles from `movies.csv` beside it where that is."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.imported import Event, Rated, Skipped, decoded, read_bytes
from privacy.errors import DataError

# The names of columns in published sets and exports, the first that a file has counts.
ITEM = ("movieid", "item_id", "itemid", "item", "asin", "isbn", "book_id", "id", "title", "name")
SCORE = ("rating", "score", "stars", "your rating", "my rating", "overall")
TIME = ("timestamp", "time", "date", "date rated", "rated_at", "date read")
USER = ("userid", "user_id", "user", "reviewerid")
TITLE = ("title", "name", "movie", "book")
ABOUT = ("genres", "genre", "description", "authors", "author", "category")


def read_ratings(path: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the ratings of one person. Raises DataError for a file without the columns, or with several people."""
    titles = {row.get("movieid", ""): row for row in _rows(path.parent / "movies.csv")}
    users: set[str] = set()
    kept: list[Event] = []
    for number, row in enumerate(_rows(path), 2):
        item, score = _first(row, ITEM), _first(row, SCORE)
        if item is None or score is None:
            raise DataError(f"{path.name}: no column of {', '.join(ITEM)} and one of {', '.join(SCORE)}")
        user = _first(row, USER) or ""
        users.add(user)
        if owner and user and user not in owner:
            continue
        known = {**row, **titles.get(item, {})}
        rating = _number(score)
        if rating is None:
            kept.append(Skipped(f"{path.name}:{number}", "the rating is no number"))
            continue
        title, about = _first(known, TITLE) or item, _first(known, ABOUT) or ""
        kept.append(Rated(item, title, about, rating, _time(_first(row, TIME) or "")))
    if len(users) > 1 and not users & set(owner):
        raise DataError(f"{path.name}: holds {len(users)} people: say which is you with --me USER")
    yield from kept


def _rows(path: Path) -> Iterator[Mapping[str, str]]:
    if not path.exists():
        return
    try:
        for row in csv.DictReader(io.StringIO(decoded(read_bytes(path)))):
            yield {str(name).strip().casefold(): str(value or "").strip() for name, value in row.items()}
    except (csv.Error, ValueError):
        raise DataError(f"{path.name}: not a table of comma-separated values") from None


def _first(row: Mapping[str, str], names: Collection[str]) -> str | None:
    return next((row[name] for name in names if row.get(name)), None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _time(text: str) -> float:
    """Return seconds since 1970 of a number or an ISO date, 0 where it is neither."""
    value = _number(text)
    if value is not None:
        return value / 1000 if value > 1e11 else value
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
