"""The elements of a JSON array one after the other, without holding the array; or the objects of JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.records import BrokenLine
from privacy.errors import DataError

BLOCK = 1 << 20
MOST_OF_ONE = 1 << 26
_SPACE = " \t\r\n"


def elements(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, Any | BrokenLine]]:
    """Yield (number, value) of the array in the file at `path`, or of its lines where it begins with no `[`.

    `digest` takes all bytes. A broken line is yielded as BrokenLine; a broken array ends with DataError, since nothing
    tells where its next element begins. Raises DataError where the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(1)
            while head and head.decode("latin-1") in _SPACE:
                head = stream.read(1)
        yield from _array(path, digest) if head == b"[" else _lines(path, digest)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name}: not valid UTF-8") from None


def _lines(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, Any | BrokenLine]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            digest.update(line)
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, BrokenLine("not JSON")


def _array(path: Path, digest: hashlib._Hash) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as stream:
        text, number, ended = _more(stream, digest).lstrip(_SPACE)[1:], 0, False
        while True:
            text = text.lstrip(_SPACE + ",")
            if text.startswith("]"):
                while _more(stream, digest):
                    pass
                return
            try:
                value, end = decoder.raw_decode(text)
                if end == len(text) and not ended:  # a number may go on in the next block
                    raise ValueError
                text, number = text[end:], number + 1
                yield number, value
            except ValueError:
                block = _more(stream, digest)
                ended = not block
                if ended or len(text) > MOST_OF_ONE:
                    raise DataError(f"{path.name}: the array breaks off after element {number}") from None
                text += block


def _more(stream: Any, digest: hashlib._Hash) -> str:
    block: str = stream.read(BLOCK)
    digest.update(block.encode())
    return block
