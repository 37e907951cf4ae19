"""What of held-out documents is scored, and what may be known before the first own word is."""

from __future__ import annotations

from collections.abc import Sequence

from client.documents import Document
from client.model import Encoded


def opening(document: Document) -> str:
    """Return the text before the first target: all that may be known when the first own word is predicted."""
    first = next(iter(document.target_ranges()), (len(document.text), 0))[0]
    return document.text[:first]


def up_to(documents: Sequence[Encoded], own_tokens: int) -> list[Encoded]:
    """Return the first documents whose own tokens sum to at most `own_tokens`, one at least."""
    chosen: list[Encoded] = []
    total = 0
    for document in documents:
        if chosen and total + document.own_tokens > own_tokens:
            continue
        chosen.append(document)
        total += document.own_tokens
    return chosen
