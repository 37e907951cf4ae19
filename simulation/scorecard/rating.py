"""Recommendation by rating: what a person will give, from their own history, from everybody's, and from both.

    p(r | text, person) ~ p(r | text) (h_person(r) / h(r))^w        predicted: the median of it

p(r | text) is a logistic regression over embeddings and sentiment of everybody's history (trained centrally: a
baseline of what sharing could give, no release), h are histograms of ratings, the person's smoothed with `PRIOR`
ratings of everybody. `similar` needs nobody else: ratings of the person's own nearest texts, which also explain it.
`mood` needs one number from others, a slope: the person's median moved by how much gladder the text is than theirs.
The weights w and the number of neighbours are chosen on tuning documents, by everybody's error together. In time
order: only earlier documents are looked at. The median minimises the absolute error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.documents import Document, Person
from client.encoder import Encoder
from privacy.errors import DataError
from simulation.measures.ranking import ranking_scores, rating_scores
from simulation.measures.tone import sentiment
from simulation.progress import Progress
from simulation.scorecard.person import split_history

Vector = NDArray[np.float64]
MEDIAN, SIMILAR, MOOD, EVERYBODY, BOTH = "user median", "similar", "mood", "everybody", "everybody and own"
WRONG = "wrong person"
ARMS = (MEDIAN, SIMILAR, MOOD, EVERYBODY, BOTH, WRONG)
SLOPES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
MAE, RMSE, NDCG, HIT = "MAE", "RMSE", "NDCG@3 of held-out items", "share of stars right"
PRIOR = 2.0
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SHARPNESS = (2.0, 5.0, 10.0, 20.0)
AT_ONCE = 64


@dataclass(frozen=True)
class Rated:
    """One person's rated texts: features [n, e], ratings as places in the list of values int64 [n]."""

    features: Vector
    ratings: NDArray[np.int64]


@dataclass(frozen=True)
class Rater:
    """One person's part: to learn from, for tuning, reported; oldest first."""

    user: str
    learn: Rated
    tuning: Rated
    test: Rated

    @property
    def history(self) -> Rated:
        """Return all of the history."""
        both = np.concatenate([self.learn.features, self.tuning.features])
        return Rated(both, np.concatenate([self.learn.ratings, self.tuning.ratings]))


def rating_values(
    people: Sequence[Person], encoder: Encoder, tuning_documents: int, progress: Progress
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Return measure -> arm -> person -> value on test documents, and the settings that tuning chose.

    A document is rated where its own words are a number. Raises DataError for fewer than two people who have rated.
    """
    values, raters = _raters(people, encoder, tuning_documents, progress)
    if len(raters) < 2:
        raise DataError("rating needs two people with rated history and a rated test document")
    chosen = _tuned(raters, len(values), values)
    model = _model([r.history for r in raters], len(values))
    share = _histogram(np.concatenate([r.history.ratings for r in raters]), len(values))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for i, rater in enumerate(raters):
        other = raters[(i + 1) % len(raters)]
        chances = _chances(rater, rater.history, other.history, rater.test, model, share, chosen)
        truth = values[rater.test.ratings]
        for arm, distribution in chances.items():
            predicted = values[_medians(distribution)]
            if arm in (MEDIAN, MOOD):
                predicted = _moved(rater.history, rater.test, values, chosen["slope"] if arm == MOOD else 0.0)
            errors = rating_scores(truth.tolist(), predicted.tolist())
            expected = predicted if arm == MOOD else distribution @ values
            row = {MAE: errors.mae, RMSE: errors.rmse, HIT: float(np.mean(predicted == truth))}
            if len(truth) > 1 and (truth > 0).any():
                row[NDCG] = ranking_scores(truth.tolist(), expected.tolist(), 3).ndcg
            for measure, value in row.items():
                found.setdefault(measure, {}).setdefault(arm, {})[rater.user] = value
    return found, chosen


def _raters(people: Sequence[Person], encoder: Encoder, tuning: int, progress: Progress) -> tuple[Vector, list[Rater]]:
    kept = [(p, [*map(list, split_history(_rated(p.history), tuning)), _rated(p.test)]) for p in people]
    kept = [(p, parts) for p, parts in kept if parts[0] and parts[2]]
    everything = [d for _, parts in kept for part in parts for d in part]
    values = np.array(sorted({_number(d) for d in everything}), dtype=np.float64)
    texts = [d.text.removesuffix(d.own_text).strip() for d in everything]
    rows: list[Vector] = []
    with progress.task("reading rated texts", len(texts)) as step:
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            mood = np.array([[sentiment(text)] for text in some])
            rows.append(np.hstack([encoder.encode(some).astype(np.float64), mood]))
            for _ in some:
                step()
    features = np.concatenate(rows) if rows else np.zeros((0, 1))
    raters, at = [], 0
    for person, parts in kept:
        rated = []
        for part in parts:
            places = np.searchsorted(values, [_number(d) for d in part]).astype(np.int64)
            rated.append(Rated(features[at : at + len(part)], places))
            at += len(part)
        raters.append(Rater(person.user, *rated))
    return values, raters


def _rated(documents: Sequence[Document]) -> tuple[Document, ...]:
    found = []
    for document in documents:
        try:
            _number(document)
        except ValueError:
            continue
        found.append(document)
    return tuple(found)


def _number(document: Document) -> float:
    return float(document.own_text.strip())


def _model(parts: Sequence[Rated], values: int) -> Any:
    """Return a function features [n, e] -> chances [n, values]; the share of each rating where one alone is known."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([part.features for part in parts])
    ratings = np.concatenate([part.ratings for part in parts])
    known = np.unique(ratings)
    if len(known) < 2:
        return lambda rows: np.tile(_histogram(ratings, values), (len(rows), 1))
    fitted = LogisticRegression(C=3.0, max_iter=400).fit(features, ratings)

    def chances(rows: Vector) -> Vector:
        found = np.full((len(rows), values), 1e-6)
        found[:, fitted.classes_] = fitted.predict_proba(rows)
        return found

    return chances


def _histogram(ratings: NDArray[np.int64], values: int) -> Vector:
    counts: Vector = np.bincount(ratings, minlength=values).astype(np.float64) + 0.5
    shares: Vector = counts / counts.sum()
    return shares


def _own_histogram(ratings: NDArray[np.int64], share: Vector) -> Vector:
    counts: Vector = np.bincount(ratings, minlength=len(share)).astype(np.float64) + PRIOR * share
    shares: Vector = counts / counts.sum()
    return shares


def _medians(distribution: Vector) -> NDArray[np.int64]:
    cumulated = np.cumsum(distribution / distribution.sum(1, keepdims=True), axis=1)
    places: NDArray[np.int64] = np.argmax(cumulated >= 0.5 - 1e-12, axis=1).astype(np.int64)
    return places


def _nearest(history: Rated, features: Vector, sharpness: float, share: Vector) -> Vector:
    """Return the person's ratings weighted by exp(sharpness cosine), with `PRIOR` of their own histogram."""
    likeness = features[:, :-1] @ history.features[:, :-1].T
    weights = np.exp(sharpness * (likeness - likeness.max(axis=1, keepdims=True)))
    votes = np.zeros((len(features), len(share)))
    for place, rating in enumerate(history.ratings.tolist()):
        votes[:, rating] += weights[:, place]
    return votes + _own_histogram(history.ratings, share)


def _chances(
    rater: Rater, own: Rated, other: Rated, asked: Rated, model: Any, share: Vector, chosen: Mapping[str, float]
) -> dict[str, Vector]:
    text = model(asked.features)
    return {
        MEDIAN: np.tile(_own_histogram(own.ratings, share), (len(asked.ratings), 1)),
        MOOD: np.tile(_own_histogram(own.ratings, share), (len(asked.ratings), 1)),
        SIMILAR: _nearest(own, asked.features, chosen["sharpness"], share),
        EVERYBODY: text,
        BOTH: text * (_own_histogram(own.ratings, share) / share) ** chosen["weight"],
        WRONG: text * (_own_histogram(other.ratings, share) / share) ** chosen["weight"],
    }


def _tuned(raters: Sequence[Rater], count: int, values: Vector) -> dict[str, float]:
    """Return the weight of the own histogram and the sharpness of likeness with the least error on tuning documents."""
    asked = [r for r in raters if len(r.tuning.ratings)]
    if not asked:
        return {"weight": 0.5, "sharpness": 5.0, "slope": 1.0}
    model = _model([r.learn for r in raters], count)
    share = _histogram(np.concatenate([r.learn.ratings for r in raters]), count)

    def error(arm: str, chosen: Mapping[str, float]) -> float:
        total = []
        for rater in asked:
            found = _chances(rater, rater.learn, rater.learn, rater.tuning, model, share, chosen)[arm]
            total.append(float(np.abs(values[_medians(found)] - values[rater.tuning.ratings]).mean()))
        return float(np.mean(total))

    weight = min(WEIGHTS, key=lambda w: error(BOTH, {"weight": w, "sharpness": 5.0}))
    sharpness = min(SHARPNESS, key=lambda s: error(SIMILAR, {"weight": weight, "sharpness": s}))
    slope = min(SLOPES, key=lambda s: _error_of_slope(asked, values, s))
    return {"weight": weight, "sharpness": sharpness, "slope": slope}


def _error_of_slope(raters: Sequence[Rater], values: Vector, slope: float) -> float:
    errors = [
        np.abs(_moved(r.learn, r.tuning, values, slope) - values[r.tuning.ratings]).mean()
        for r in raters
        if len(r.learn.ratings)
    ]
    return float(np.mean(errors))


def _moved(history: Rated, asked: Rated, values: Vector, slope: float) -> Vector:
    """Return the person's median rating, moved by slope times how much gladder a text is than their median text.

    In whole steps of the values that there are, within their range; with slope 0 the median as it is.
    """
    median = float(np.median(values[history.ratings]))
    if slope == 0:
        return np.full(len(asked.ratings), median)
    gladder = asked.features[:, -1] - float(np.median(history.features[:, -1]))
    wanted = median + slope * gladder
    nearest: Vector = values[np.abs(wanted[:, None] - values[None]).argmin(axis=1)]
    return nearest


def explained(history: Sequence[Document], asked: Document, encoder: Encoder, most: int = 3) -> list[str]:
    """Return the ids of the person's own rated documents that are nearest to the one asked about, nearest first."""
    rated = _rated(history)
    if not rated:
        return []
    rows = encoder.encode([d.text.removesuffix(d.own_text).strip() for d in (*rated, asked)]).astype(np.float64)
    order = np.argsort(-(rows[:-1] @ rows[-1]), kind="stable")[:most]
    return [rated[int(place)].id for place in order]
