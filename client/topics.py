"""What a person writes about, by their own passages: a profile from all of it down to each type of data.

    weight(t) = n_t ln(N / n_t)   over the N own passages, n_t of which hold the term t, two at least

Made in memory from the index whenever it is needed, so that forgetting a text needs no second place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable

from client.lexical import words
from client.library import Passage
from client.prompt import About

MOST = 8
LEAST_PASSAGES = 2


def about_of(passages: Iterable[Passage], attributes: dict[str, str], common: Collection[str] = ()) -> About:
    """Return what is known of a person: attributes as given, topics over all own passages and by type.

    `common` holds words that everybody uses, such as an encoder's list; they are no topic. Words with a digit are none
    either: a profile goes into prompts, and numbers are what one would not want there.
    """
    left_out = set(common)
    by_type: dict[str, list[set[str]]] = {}
    for passage in passages:
        if passage.own:
            found = {word for word in words(passage.text) if word.isalpha() and len(word) > 3}
            by_type.setdefault(passage.type, []).append(found - left_out)
    everything = [found for rows in by_type.values() for found in rows]
    typed = tuple((kind, topics(rows)) for kind, rows in sorted(by_type.items()))
    return About(attributes, topics(everything), typed)


def topics(rows: Collection[set[str]]) -> tuple[str, ...]:
    """Return at most `MOST` words, the weightiest first, equals by the alphabet."""
    counts = Counter(word for row in rows for word in row)
    weights = {w: n * math.log(len(rows) / n) for w, n in counts.items() if n >= LEAST_PASSAGES}
    return tuple(sorted((w for w in weights if weights[w] > 0), key=lambda w: (-weights[w], w))[:MOST])
