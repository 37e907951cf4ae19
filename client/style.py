"""How a person writes, whatever they write about: twenty figures of style, each a bounded function of their text.

The figures are those that stylometry has long used (Mosteller, Wallace 1963; Stamatatos 2009, "A survey of modern
authorship attribution methods", section 2): lengths, punctuation, capitals, function words. Each rate is put against a
typical value of English prose and its spread, both constants of this file, so that nothing is learned from people.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE_END: Final = re.compile(r"[.!?]+\s|\n")
_FUNCTION_WORDS: Final = frozenset(
    _WORD.findall(
        "the of and to a in that it is was i for on you he be with as by at have are this not but had his they from "
        "she which or we an there her were one do been all their has would will what if can when so my no up out them "
        "some me more about into your just like"
    )
)
_LONG = 8  # letters of a long word
_SPREADS = 1.5  # a rate so many spreads from the typical one is written as tanh(1)


@dataclass(frozen=True)
class Reading:
    """A person's texts as one, counted once."""

    texts: tuple[str, ...]

    @cached_property
    def whole(self) -> str:
        """Return the texts, one a line."""
        return "\n".join(self.texts)

    @cached_property
    def words(self) -> list[str]:
        """Return all words as written."""
        return _WORD.findall(self.whole)

    @cached_property
    def small(self) -> list[str]:
        """Return all words in lower case."""
        return [word.lower() for word in self.words]

    @cached_property
    def sentences(self) -> list[str]:
        """Return what stands between the ends of sentences, and of texts."""
        return [sentence.strip() for sentence in _SENTENCE_END.split(self.whole) if sentence.strip()]

    def marks(self, characters: str) -> float:
        """Return how many of `characters` there are for each word."""
        return sum(self.whole.count(each) for each in characters) / max(1, len(self.words))

    def share(self, kind: Callable[[str], bool]) -> float:
        """Return the share of the words as written that are of a kind."""
        return sum(map(kind, self.words)) / max(1, len(self.words))

    def letters(self, kind: Callable[[str], bool]) -> float:
        """Return the share of the characters that are of a kind."""
        return sum(map(kind, self.whole)) / max(1, len(self.whole))


@dataclass(frozen=True)
class Figure:
    """One figure of style: what is measured, its typical value and its spread."""

    name: str
    of: Callable[[Reading], float]
    typical: float
    spread: float

    def bounded(self, reading: Reading) -> float:
        """Return the figure in (-1, 1), 0 where it is typical."""
        return math.tanh((self.of(reading) - self.typical) / self.spread / _SPREADS)


FIGURES: Final = (
    Figure("letters in a word", lambda r: sum(map(len, r.words)) / max(1, len(r.words)), 4.4, 0.6),
    Figure("different words", lambda r: len(set(r.small)) / max(1, len(r.words)) ** 0.75, 2.0, 0.7),
    Figure("words in a sentence", lambda r: math.log1p(len(r.words) / max(1, len(r.sentences))), 2.5, 0.5),
    Figure("words in a text", lambda r: math.log1p(len(r.words) / max(1, len(r.texts))), 4.0, 1.2),
    Figure("commas", lambda r: r.marks(","), 0.05, 0.04),
    Figure("full stops", lambda r: r.marks("."), 0.07, 0.04),
    Figure("exclamation marks", lambda r: r.marks("!"), 0.01, 0.02),
    Figure("question marks", lambda r: r.marks("?"), 0.01, 0.02),
    Figure("semicolons and colons", lambda r: r.marks(";:"), 0.005, 0.008),
    Figure("dashes and brackets", lambda r: r.marks("-–—()"), 0.02, 0.02),
    Figure("quotation marks", lambda r: r.marks('"“”'), 0.01, 0.02),
    Figure("digits", lambda r: r.letters(str.isdigit), 0.005, 0.01),
    Figure("capital letters", lambda r: r.letters(str.isupper), 0.03, 0.03),
    Figure("words in capitals", lambda r: r.share(lambda w: len(w) > 1 and w.isupper()), 0.01, 0.05),
    Figure(
        "sentences begun small",
        lambda r: sum(s[0].islower() for s in r.sentences) / max(1, len(r.sentences)),
        0.1,
        0.25,
    ),
    Figure("shortened words", lambda r: r.share(lambda w: "'" in w or "’" in w), 0.02, 0.02),
    Figure("long words", lambda r: r.share(lambda w: len(w) >= _LONG), 0.15, 0.08),
    Figure("I", lambda r: r.small.count("i") / max(1, len(r.small)), 0.03, 0.03),
    Figure("you", lambda r: sum(w in ("you", "your") for w in r.small) / max(1, len(r.small)), 0.015, 0.02),
    Figure("function words", lambda r: sum(w in _FUNCTION_WORDS for w in r.small) / max(1, len(r.small)), 0.5, 0.08),
)


def style_of(texts: Sequence[str]) -> Vector:
    """Return the figures of all `texts` together over the root of their number, float64 [20], of norm below 1.

    Zeros for no word. A person's style is not the mean of the styles of single texts: rates need length.
    """
    reading = Reading(tuple(text for text in texts if text.strip()))
    if not reading.words:
        return np.zeros(len(FIGURES))
    return np.array([figure.bounded(reading) for figure in FIGURES]) / math.sqrt(len(FIGURES))
