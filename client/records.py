"""Texts in a file of JSON lines: what of a record is whose.

One record is one document. What holds text is decided by the columns, whatever the task is called:

    turns            a list of texts, all the person's own, one a line;
                     or of pairs [who, text], who == "me" for the person: rendered as `Me: ...` and `You: ...`
    input, output    input is context, output the person's own
    title, text      both the person's own, one a line

A person's own words become own spans, everything else is context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from client.documents import Document, Span, Split
from privacy.errors import DataError

OWN_LABEL = "Me: "
PARTNER_LABEL = "You: "
TEXT_FIELDS = ("turns", "input", "output", "title", "text")
TEST_SHARE = 4  # one in so many is test, where a file does not say

_Value = TypeVar("_Value", str, int)


class BrokenLine(Exception):
    """A record that cannot be used. The message names the fault and never quotes the line."""


def read_documents(path: Path) -> list[Document]:
    """Return the documents in the file at `path`, whoever wrote them, in its order.

    For public text and for comparisons; people's own files are read by `simulation.datasets.jsonl`. A record's `split`
    is kept; where no record has one, the last quarter is test. Raises DataError at the first broken line.
    """
    documents, split = [], False
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json_record(line)
            part = checked_field(record, "split", str, "")
            if part not in ("", "history", "test"):
                raise BrokenLine("split is neither history nor test")
            documents.append(Document(str(number), spans_of(record), cast(Split, part or "history"), number))
            split = split or bool(part)
        except BrokenLine as fault:
            raise DataError(f"{path.name}:{number}: {fault}") from None
    first_test = len(documents) if split else len(documents) - len(documents) // TEST_SHARE
    return [d if i < first_test else replace(d, split="test") for i, d in enumerate(documents)]


def spans_of(record: Mapping[str, Any]) -> tuple[Span, ...]:
    """Return the spans of a record by its columns (module docstring).

    Raises BrokenLine if a column has the wrong type or none holds a word of the person's own.
    """
    spans = _turns(record["turns"]) if record.get("turns") is not None else _columns(record)
    if not any(span.target and span.text.strip() for span in spans):
        raise BrokenLine(f"no own text in {', '.join(TEXT_FIELDS)}")
    return tuple(spans)


def json_record(line: bytes) -> dict[str, Any]:
    """Return the JSON object that `line` is; raises BrokenLine, which quotes nothing of it, for all else."""
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


def checked_field(record: Mapping[str, Any], name: str, kind: type[_Value], default: _Value | None = None) -> _Value:
    """Return the field `name`, or `default` where it is missing; raises BrokenLine for another type or no default."""
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
        context = checked_field(record, "input", str, "")
        own = [checked_field(record, "output", str)]
    else:
        context = ""
        own = [checked_field(record, name, str, "") for name in ("title", "text")]
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
