"""Any table of what people rated, chose or wrote, read by a map of its columns (TOML in `maps/`).

    [table]    path, format (csv, json), separator, quote, columns (where the file has no header), encoding
    [items]    the same for what is rated, and `key`: the column that both tables share
    [record]   user, time, time_format (unix, unix_ms, or as strptime writes it), split
               input, output or text: templates such as "{title} ({genres})" of columns of both tables
    [each]     column, separator: a column holds a list of items, one record each (news that somebody clicked)
    [wide]     from, drop: one column a question; each answer is a record with {question} and {answer}
    [flags]    user_text, numeric, categorical, timestamps, filtered

The table is streamed; items, where there are any, are held. A record becomes a document as in `datasets.jsonl`.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Any

from client.records import BrokenLine
from privacy.errors import DataError
from simulation.datasets.json_stream import elements
from simulation.datasets.jsonl import load_records
from simulation.datasets.loaded import Loaded

FLAGS = ("user_text", "numeric", "categorical", "timestamps", "filtered")
FROM_DOCUMENTATION, RUN_ON_FILES = "layout from documentation", "run on the real files"
MAPS = Path(__file__).with_name("maps")
Record = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Where one table lies and how it is written; `columns` only where its first line is no header."""

    path: str
    format: str = "csv"
    separator: str = ","
    quote: str = '"'
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    key: str = ""


@dataclass(frozen=True)
class ColumnMap:
    """One data set: its tables, what of a row is whose, and what is known about it."""

    name: str
    title: str
    licence: str
    where: str
    marked: str
    flags: Mapping[str, bool]
    table: Table
    record: Mapping[str, str]
    items: Table | None = None
    each: Mapping[str, str] | None = None
    wide: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: Path) -> ColumnMap:
        """Return the map in a TOML file. Raises DataError that names the file and the fault."""
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
            tables = {name: _table(tree[name]) for name in ("table", "items") if name in tree}
            found = cls(
                name=path.stem,
                **{name: str(tree[name]) for name in ("title", "licence", "where", "marked")},
                flags=dict(tree["flags"]),
                table=tables["table"],
                record=dict(tree["record"]),
                items=tables.get("items"),
                each=tree.get("each"),
                wide=tree.get("wide"),
            )
        except OSError as error:
            raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path.name}: is no column map ({error})") from None
        if set(found.flags) != set(FLAGS) or "user" not in found.record:
            raise DataError(f"{path.name}: needs the flags {', '.join(FLAGS)} and the column of the user")
        return found


def _table(tree: Mapping[str, Any]) -> Table:
    return Table(**{**tree, "columns": tuple(tree.get("columns", ()))})


def load(spec: ColumnMap, folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of a data set whose files lie in `folder`; nobody is left out for being inactive.

    Raises DataError for a file that is not there, with where to get it.
    """
    digest = hashlib.sha256()
    items = _items(spec, folder, digest)
    records = _records(spec, _rows(spec, spec.table, folder, digest), items)
    return load_records(spec.name, records, min_test, strict, digest)


def _items(spec: ColumnMap, folder: Path, digest: hashlib._Hash) -> dict[str, Record]:
    if spec.items is None:
        return {}
    wanted = {field for template in spec.record.values() for _, field, _, _ in Formatter().parse(template) if field}
    return {
        row[spec.items.key]: {name: value for name, value in row.items() if name in wanted}
        for _, row in _rows(spec, spec.items, folder, digest)
        if not isinstance(row, BrokenLine) and spec.items.key in row
    }


def _rows(
    spec: ColumnMap, table: Table, folder: Path, digest: hashlib._Hash
) -> Iterator[tuple[int, Record | BrokenLine]]:
    path = folder / table.path
    if not path.is_file():
        raise DataError(f"{spec.name}: {table.path} is not in the folder; get it from {spec.where}")
    if table.format == "json":
        for number, value in elements(path, digest):
            if isinstance(value, dict):
                yield number, {name: _text(each) for name, each in value.items()}
            else:
                yield number, value if isinstance(value, BrokenLine) else BrokenLine("not a JSON object")
        return
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    with path.open(encoding=table.encoding, errors="replace", newline="") as stream:
        lines = _seen(stream, digest)
        rows = _split(lines, table)
        header = list(table.columns) or next(rows, [])
        for number, row in enumerate(rows, 1 if table.columns else 2):
            if len(row) != len(header):
                yield number, BrokenLine(f"{len(row)} columns where {len(header)} are")
            else:
                yield number, dict(zip(header, row, strict=True))


def _split(lines: Iterator[str], table: Table) -> Iterator[list[str]]:
    if len(table.separator) > 1:  # MovieLens writes "::", which the csv module does not know
        return (line.rstrip("\r\n").split(table.separator) for line in lines)
    if not table.quote:
        return csv.reader(lines, delimiter=table.separator, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=table.separator, quotechar=table.quote)


def _seen(stream: Any, digest: hashlib._Hash) -> Iterator[str]:
    for line in stream:
        digest.update(line.encode())
        yield line


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _records(
    spec: ColumnMap, rows: Iterator[tuple[int, Record | BrokenLine]], items: Mapping[str, Record]
) -> Iterator[tuple[int, dict[str, Any] | BrokenLine]]:
    key = spec.items.key if spec.items else ""
    for number, row in rows:
        if isinstance(row, BrokenLine):
            yield number, row
            continue
        for one in _unfolded(spec, row):
            both = {**items.get(one.get(key, ""), {}), **one} if key else one
            try:
                yield number, _record(spec, both, number)
            except BrokenLine as fault:
                yield number, fault


def _unfolded(spec: ColumnMap, row: Record) -> Iterator[Record]:
    """Yield the records in one row: one, or one for each item of a list, or one for each answered question."""
    if spec.each is not None:
        for value in row.get(spec.each["column"], "").split(spec.each["separator"]):
            if value:
                yield {**row, spec.each["as"]: value}
    elif spec.wide is not None:
        for question, answer in row.items():
            if question not in spec.wide["drop"] and answer.strip():
                yield {**row, "question": question, "answer": answer}
    else:
        yield row


def _record(spec: ColumnMap, row: Record, number: int) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for name in ("input", "output", "text", "title"):
        if name in spec.record:
            try:
                filled[name] = spec.record[name].format_map(row).strip()
            except (KeyError, IndexError, ValueError):
                raise BrokenLine(f"a column of the template {name} is missing") from None
    user = row.get(spec.record["user"], "")
    if split := row.get(spec.record.get("split", ""), ""):
        filled["split"] = split
    return {"user": user, "i": _time(spec, row, number), **filled}


def _time(spec: ColumnMap, row: Record, number: int) -> int:
    """Return when a record was made, in seconds, or its number where the data set knows no time."""
    column, form = spec.record.get("time", ""), spec.record.get("time_format", "unix")
    if not column:
        return number
    try:
        if form in ("unix", "unix_ms"):
            return int(float(row[column]) / (1000 if form == "unix_ms" else 1))
        return int(datetime.strptime(row[column], form).replace(tzinfo=UTC).timestamp())
    except (KeyError, ValueError, OverflowError):
        raise BrokenLine(f"no time in the column {column}") from None
