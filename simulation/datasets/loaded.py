"""What every loader returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from client.documents import Person


@dataclass(frozen=True, slots=True)
class Loaded:
    """People in a stable order, what was wrong with the source, what was counted, and the source's SHA-256.

    A warning names file, line and fault, never the text.
    """

    people: tuple[Person, ...]
    warnings: tuple[str, ...]
    counts: Mapping[str, int]
    sha256: str
