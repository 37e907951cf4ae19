"""A person's history as memories: searched by everything that a document says, shown by what the person wrote in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from client.documents import Document
from client.encoder import Encoder
from client.lexical import words
from client.library import PASSAGE_WORDS, Passage
from client.prompt import About
from client.retrieve import DENSE, Shelf
from client.style import FIGURES, style_of
from client.topics import about_of
from simulation.scorecard.arms import EXTENDED

KIND = "text"
DAY_S = 86_400.0
KEY_WORDS = 2 * PASSAGE_WORDS
STYLE_FIGURES = 4
COMMON_WORDS = 3000


class Memories:
    """One person's history, oldest first. A document is one memory: its first `PASSAGE_WORDS` own words are shown.

    With `dated` a document's order is its day, which the memory then shows. `extended` is a researcher's retriever.
    """

    def __init__(
        self, history: Sequence[Document], encoder: Encoder, dated: bool = False, extended: Any = None
    ) -> None:
        self._encoder, self._shelf = encoder, Shelf()
        kept = [d for d in history if d.own_text.strip()]
        keys = [_cut(d.text, KEY_WORDS) for d in kept]
        days = [DAY_S * d.order if dated else None for d in kept]
        self.passages = [_passage(i, _cut(d.own_text, PASSAGE_WORDS), days[i]) for i, d in enumerate(kept)]
        vectors = encoder.encode(keys)
        for i, (key, vector) in enumerate(zip(keys, vectors, strict=True)):
            self._shelf.add(_passage(i, key, days[i]), vector)
        self._extended: Any = extended(keys, encoder) if extended is not None else None
        texts = [d.own_text for d in kept]
        attributes = {"style": style} if (style := style_in_words(texts)) else {}
        self.about: About = about_of(self.passages, attributes, encoder.common_words(COMMON_WORDS))

    def search(self, query: str, methods: Sequence[str], k: int) -> list[Passage]:
        """Return at most k memories, best first; the newest where no word of the query is known."""
        if EXTENDED in methods:
            return [self.passages[int(place)] for place in self._extended.search(query, k)]
        vector = self._encoder.encode([query])[0] if DENSE in methods and words(query) else None
        _, rows = self._shelf.ranked(query, vector, methods)
        found = [row for row, _ in rows[:k]]
        found += [row for row in reversed(range(len(self.passages))) if row not in found][: k - len(found)]
        return [self.passages[row] for row in found]


def style_in_words(texts: Sequence[str]) -> str:
    """Return the figures in which a person's writing is farthest from typical prose, "more commas, fewer digits"."""
    style = style_of(texts)
    order = np.argsort(-np.abs(style), kind="stable")[:STYLE_FIGURES].tolist()
    return ", ".join(f"{'more' if style[i] > 0 else 'fewer'} {FIGURES[i].name}" for i in order if style[i] != 0)


def _passage(number: int, text: str, written: float | None) -> Passage:
    return Passage(number, 0, KIND, "", written, text, own=True)


def _cut(text: str, most: int) -> str:
    """Return the first `most` words of a text with its line ends."""
    pieces = text.strip().split(" ")
    return " ".join(pieces[:most])
