"""A summary of what was found, in the person's own sentences: where a model is too small to write one.

    next = argmax_s  sum_{t in s and q} idf(t) + CENTRAL sum_{t in s} idf(t) n_t / |s|  -  what was said already

For the task at hand (q) first, for the whole of what was found second; greedy, so that no sentence says the same again
(maximal marginal relevance: Carbonell, Goldstein 1998). idf is over the sentences found.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from client.lexical import words
from client.library import Passage

CENTRAL, REPEATED = 0.3, 0.7
LEAST_WORDS, MOST_WORDS = 4, 40
_END = re.compile(r"(?<=[.!?…])\s+|\n+")


def extracts(found: Sequence[Passage], query: str, most: int) -> list[Passage]:
    """Return at most `most` sentences out of the passages, each as a passage of its own, the weightiest first.

    A sentence is the passage's text between two ends, neither very short nor very long.
    """
    rows = [(passage, text) for passage in found for text in _sentences(passage.text)]
    terms = [set(words(text)) for _, text in rows]
    counts = Counter(term for each in terms for term in each)
    idf = {term: math.log((len(rows) + 1) / (n + 0.5)) for term, n in counts.items()}
    asked = set(words(query))
    weights = [_weight(each, asked, counts, idf) for each in terms]
    chosen: list[int] = []
    said: Counter[str] = Counter()
    while len(chosen) < min(most, len(rows)):
        left = [i for i in range(len(rows)) if i not in chosen]
        best = max(left, key=lambda i: (weights[i] - REPEATED * _shared(terms[i], said, idf), -i))
        chosen.append(best)
        said.update(terms[best])
    return [replace(rows[i][0], text=rows[i][1]) for i in chosen]


def _sentences(text: str) -> list[str]:
    parts = [part.strip() for part in _END.split(text)]
    return [part for part in parts if LEAST_WORDS <= len(part.split()) <= MOST_WORDS]


def _weight(terms: set[str], asked: set[str], counts: Counter[str], idf: dict[str, float]) -> float:
    if not terms:
        return 0.0
    central = sum(idf[term] * (counts[term] - 1) for term in terms) / len(terms)
    return sum(idf[term] for term in terms & asked) + CENTRAL * central


def _shared(terms: set[str], said: Counter[str], idf: dict[str, float]) -> float:
    return sum(idf[term] for term in terms if said[term])
