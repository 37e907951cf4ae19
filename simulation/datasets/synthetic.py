"""`synthetic:N`: N invented people, each made from a seed when somebody asks for them; for scale, not for utility.

    person k = f(seed, k)          the same in a federation of a hundred as in one of a million

Everybody is of one of four kinds (`persona`), which share a stock of words; each person favours a few of them. So there
is something to learn for all, for a kind and for one person, and nobody's text is anybody's.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

import numpy as np

from client.documents import Document, Person, Span, Split
from privacy.errors import DataError

PREFIX: Final = "synthetic"
RECIPE: Final = "synthetic/1"
MOST: Final = 10**7  # names have seven digits, so that their order is that of the numbers
HISTORY, TEST = 6, 2
KINDS: Final = {
    kind: words.split()
    for kind, words in (
        ("baker", "bread flour oven crust yeast butter table morning basket sugar salt dough"),
        ("sailor", "river harbour rope wind sail storm anchor deck tide gull engine chart"),
        ("gardener", "garden seed rain spade rose apple hedge bee soil pond fence ladder"),
        ("clerk", "letter lamp train ticket desk window form stamp queue folder clock bell"),
    )
}
DOINGS: Final = "like carry paint lost found keep forgot bought hear want need moved watched sold".split()  # noqa: SIM905
WHENS: Final = ("today", "again", "at last", "in winter", "before noon", "with a friend", "by mistake", "as always")
_SOURCE = re.compile(rf"{PREFIX}:([1-9][0-9_]*)(?:@([0-9]+))?")


@dataclass(frozen=True)
class Synthetic:
    """So many invented people of one seed, see `simulation.crowd.Source`."""

    people: int
    seed: int = 0

    @classmethod
    def of(cls, source: str) -> Synthetic:
        """Return the people of `synthetic:N`, or `synthetic:N@SEED`. Raises DataError for another form or too many."""
        found = _SOURCE.fullmatch(source)
        if found is None:
            raise DataError(f"{PREFIX}:N takes a number of people, {PREFIX}:N@SEED another seed, not {source[:60]!r}")
        people = int(found[1])
        if people > MOST:
            raise DataError(f"{PREFIX}: at most {MOST} people, not {people}")
        return cls(people, int(found[2] or 0))

    @property
    def sha256(self) -> str:
        """Return the hash of recipe, seed and number of people."""
        return hashlib.sha256(f"{RECIPE} {self.seed} {self.people}".encode()).hexdigest()

    def name(self, number: int) -> str:
        """Return a person's pseudonym."""
        return f"s{number:07d}"

    def number(self, name: str) -> int | None:
        """Return the number of the person of that name, None where there is none."""
        digits = name[1:]
        if not (name.startswith("s") and len(digits) == 7 and digits.isascii() and digits.isdecimal()):
            return None
        return int(digits) if int(digits) < self.people else None

    def make(self, number: int) -> Person:
        """Return person `number`: documents of two or three sentences, the last of them test."""
        rng = np.random.default_rng([self.seed, number])
        kind = list(KINDS)[int(rng.integers(len(KINDS)))]
        words = [KINDS[kind][i] for i in rng.choice(len(KINDS[kind]), 4, replace=False)]
        doings = [DOINGS[i] for i in rng.choice(len(DOINGS), 4, replace=False)]
        name = self.name(number)
        documents = []
        for i in range(HISTORY + TEST):
            picks = rng.integers(0, (4, 4, len(WHENS)), (2 + int(rng.integers(2)), 3))
            text = " ".join(f"I {doings[d]} the {words[w]} {WHENS[t]}." for d, w, t in picks) + "\n"
            split: Split = "test" if i >= HISTORY else "history"
            documents.append(Document(f"{name}.{i}", (Span(text, own=True),), split, i))
        return Person(name, tuple(documents), kind)
