"""Recommendation by ranking: which item a person takes next, from popularity, from their history, from its order.

An item is what a rated document is about (its text before a number), else its own words. In time order: for every test
document the person's earlier documents alone are known. Candidates are all items where there are `MOST_CANDIDATES` at
most (but what somebody has had who never takes anything twice), else the item taken and others drawn that the person
has not had.

    popularity   how many of the others' histories hold it, in the clear
    similar      mean cosine of its `NEAREST` own nearest items, newer ones weighing more: needs nobody else
    sequential   P(item | the item before it) over everybody's histories, in the clear, backing off to popularity
    together     ln P of `sequential` + w `similar`; w is chosen on tuning documents, by everybody's NDCG
    wrong person `together` with the next person's history

Sampled candidates make all figures larger than among all items and may change their order (Krichene, Rendle 2020, KDD).
`similar` explains itself by the own items that are nearest, see `explained_items`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.documents import Document, Person
from client.encoder import Encoder
from privacy.errors import DataError
from simulation.measures.ranking import ranking_scores
from simulation.progress import Progress
from simulation.scorecard.person import split_history

Vector = NDArray[np.float64]
Values = dict[str, dict[str, dict[str, float]]]
POPULARITY, SIMILAR, SEQUENTIAL, TOGETHER, WRONG = "popularity", "similar", "sequential", "together", "wrong person"
ARMS = (POPULARITY, SIMILAR, SEQUENTIAL, TOGETHER, WRONG)
K = 10
NDCG, HIT = f"NDCG@{K} of the next item", f"hit ratio@{K} of the next item"
NDCG_3, HIT_1 = "NDCG@3 of the next item", "hit ratio@1 of the next item"
MOST_CANDIDATES = 100
NEAREST, FADING, BACK_OFF = 3, 0.9, 1.0
WEIGHTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Taker:
    """One person's items as places in the catalogue, oldest first: to learn from, for tuning, reported."""

    user: str
    learn: tuple[int, ...]
    tuning: tuple[int, ...]
    test: tuple[int, ...]


class Catalogue:
    """All items with their embeddings [n, e], and what everybody's histories say of them, one person's left out."""

    def __init__(self, items: Sequence[str], takers: Sequence[Taker], encoder: Encoder) -> None:
        self.items, self.vectors = list(items), encoder.encode(list(items)).astype(np.float64)
        self._had = Counter(item for t in takers for item in set(t.learn + t.tuning))
        self._next: dict[int, Counter[int]] = defaultdict(Counter)
        for taker in takers:
            for before, after in _steps(taker):
                self._next[before][after] += 1

    def popularity(self, without: Taker) -> Vector:
        """Return how many of the others' histories hold each item, [n]."""
        counts = np.array([self._had[i] for i in range(len(self.items))], dtype=np.float64)
        counts[list(set(without.learn + without.tuning))] -= 1
        return counts

    def sequential(self, before: int | None, without: Taker) -> Vector:
        """Return the chance of each item after `before` in the others' histories, [n]."""
        popularity = self.popularity(without) + 0.01
        back: Vector = popularity / popularity.sum()
        if before is None:
            return back
        counts = np.array([self._next[before][i] for i in range(len(self.items))], dtype=np.float64)
        for one, after in _steps(without):
            if one == before:
                counts[after] -= 1
        chances: Vector = (counts + BACK_OFF * back) / (counts.sum() + BACK_OFF)
        return chances

    def similar(self, history: Sequence[int]) -> Vector:
        """Return how near each item is to a history, oldest first, [n]; zeros without one."""
        if not history:
            return np.zeros(len(self.items))
        fading = FADING ** np.arange(len(history))[::-1]
        likeness = self.vectors @ self.vectors[list(history)].T * fading
        near: Vector = np.sort(likeness, axis=1)[:, -NEAREST:].mean(axis=1)
        return near


def _steps(taker: Taker) -> list[tuple[int, int]]:
    history = taker.learn + taker.tuning
    return list(itertools.pairwise(history))


def item_of(document: Document) -> str:
    """Return the item of a document: what a number was given to, else the person's own words."""
    own = document.own_text.strip()
    try:
        float(own)
    except ValueError:
        return own
    return document.text.removesuffix(document.own_text).strip()


def ranking_values(
    people: Sequence[Person], encoder: Encoder, tuning_documents: int, test_documents: int, progress: Progress
) -> tuple[Values, dict[str, float]]:
    """Return measure -> arm -> person -> value on the newest test documents, and what tuning chose.

    Raises DataError for fewer than two people with two items of history and a test item.
    """
    catalogue, takers = _read(people, encoder, tuning_documents, test_documents)
    weights = np.zeros(len(WEIGHTS))
    for taker in takers:
        for asked, known in _questions(taker.learn, taker.tuning):
            ranked = _scored(catalogue, taker, known, known, asked)
            weights += [ranking_scores(ranked[1], _sum(ranked[0], w).tolist(), K).ndcg for w in WEIGHTS]
    weight = WEIGHTS[int(np.argmax(weights))]
    found: Values = {}
    with progress.task("ranking items", len(takers)) as step:
        for place, taker in enumerate(takers):
            other = takers[(place + 1) % len(takers)]
            for arm, row in _measured(catalogue, taker, other, weight).items():
                for measure, value in row.items():
                    found.setdefault(measure, {}).setdefault(arm, {})[taker.user] = value
            step()
    return found, {"weight of similar": weight, "items": float(len(catalogue.items))}


def _read(people: Sequence[Person], encoder: Encoder, tuning: int, test: int) -> tuple[Catalogue, list[Taker]]:
    parts = [(p.user, [*map(_items, split_history(p.history, tuning)), _items(p.test[-test:])]) for p in people]
    kept = [(user, some) for user, some in parts if len(some[0]) > 1 and some[2]]
    if len(kept) < 2:
        raise DataError("ranking needs two people with two items of history and an item to come")
    items = sorted({item for _, some in kept for part in some for item in part})
    places = {item: place for place, item in enumerate(items)}
    takers = [Taker(user, *(tuple(places[item] for item in part) for part in some)) for user, some in kept]
    return Catalogue(items, takers, encoder), takers


def _items(documents: Sequence[Document]) -> list[str]:
    return [item for document in documents if (item := item_of(document))]


def _questions(before: Sequence[int], asked: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Return every item asked for with all that came before it."""
    return [(item, (*before, *asked[:place])) for place, item in enumerate(asked)]


def _measured(catalogue: Catalogue, taker: Taker, other: Taker, weight: float) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, list[float]]] = {}
    for asked, known in _questions(taker.learn + taker.tuning, taker.test):
        scores, truth = _scored(catalogue, taker, known, known, asked)
        wrong, _ = _scored(catalogue, taker, other.learn + other.tuning, known, asked)
        arms = {**scores, TOGETHER: _sum(scores, weight), WRONG: _sum(wrong, weight)}
        for arm, scored in arms.items():
            values = scored.tolist()
            at_k, at_3 = ranking_scores(truth, values, K), ranking_scores(truth, values, 3)
            at_1 = ranking_scores(truth, values, 1)
            row = {NDCG: at_k.ndcg, HIT: at_k.hit_ratio, NDCG_3: at_3.ndcg, HIT_1: at_1.hit_ratio}
            for measure, value in row.items():
                rows.setdefault(arm, {}).setdefault(measure, []).append(value)
    return {arm: {m: float(np.mean(values)) for m, values in row.items()} for arm, row in rows.items()}


def _scored(
    catalogue: Catalogue, taker: Taker, history: Sequence[int], had: Sequence[int], asked: int
) -> tuple[dict[str, Vector], list[float]]:
    """Return the scores of the candidates by arm, and which of them was taken."""
    some = _candidates(len(catalogue.items), asked, had, taker.user)
    scores = {
        POPULARITY: catalogue.popularity(taker)[some],
        SIMILAR: catalogue.similar(history)[some],
        SEQUENTIAL: catalogue.sequential(history[-1] if history else None, taker)[some],
    }
    return scores, [float(item == asked) for item in some]


def _candidates(items: int, asked: int, had: Sequence[int], user: str) -> list[int]:
    """Return the items to rank, in an order that says nothing of the right one."""
    rng = np.random.default_rng([items, asked, len(had), *user.encode()])
    free = np.setdiff1d(np.arange(items), [*had, asked])
    if items <= MOST_CANDIDATES:
        once = len(set(had)) == len(had) > 1 and asked not in had
        return [int(i) for i in rng.permutation([asked, *free] if once else items)]
    others = rng.choice(free, min(len(free), MOST_CANDIDATES - 1), replace=False)
    return [int(i) for i in rng.permutation([asked, *others])]


def _sum(scores: Mapping[str, Vector], weight: float) -> Vector:
    total: Vector = np.log(scores[SEQUENTIAL]) + weight * scores[SIMILAR]
    return total


def explained_items(history: Sequence[Document], item: str, encoder: Encoder, most: int = 3) -> list[str]:
    """Return the ids of the person's own documents with the items nearest to `item`, nearest first: why."""
    known = [d for d in history if item_of(d)]
    if not known:
        return []
    rows = encoder.encode([*(item_of(d) for d in known), item]).astype(np.float64)
    order = np.argsort(-(rows[:-1] @ rows[-1]), kind="stable")[:most]
    return [known[int(place)].id for place in order]
