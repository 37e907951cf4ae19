"""A ranking of items against what the person took: precision, recall, hit ratio, NDCG; and a prediction against truth.

All of one question (or one person); the caller means over people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.errors import DataError


@dataclass(frozen=True)
class RankingScores:
    """At k: precision (over k), recall, hit ratio (1 if any relevant item is there), NDCG with linear gains."""

    precision: float
    recall: float
    hit_ratio: float
    ndcg: float


def ranking_scores(relevance: Sequence[float], scores: Sequence[float], k: int) -> RankingScores:
    """Return the measures of one ranking; `relevance` 0 = not relevant, `scores` higher = ranked earlier.

        NDCG@k = sum_{i<=k} g_i / log2(i + 1)  over its largest value

    Among equal scores the order is the given one. (Jaervelin, Kekaelaeinen 2002; Herlocker et al. 2004, section 4.)
    Raises DataError where nothing is relevant or k is below 1.
    """
    gains = np.asarray(relevance, dtype=np.float64)
    relevant = int(np.sum(gains > 0))
    if k < 1 or not relevant or len(gains) != len(scores):
        raise DataError("a ranking needs a relevant item, one score for each item and k of at least 1")
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:k]
    found = int(np.sum(gains[order] > 0))
    return RankingScores(
        found / k, found / relevant, float(found > 0), _dcg(gains[order]) / _dcg(np.sort(gains)[::-1][:k])
    )


def _dcg(gains: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(gains @ (1 / np.log2(np.arange(2, len(gains) + 2))))


@dataclass(frozen=True)
class RatingScores:
    """Errors of predicted ratings: mean absolute, mean squared, and its root."""

    mae: float
    mse: float
    rmse: float


def rating_scores(truth: Sequence[float], predicted: Sequence[float]) -> RatingScores:
    """Return the errors of `predicted` (scikit-learn). Raises DataError for no rating or different numbers of them."""
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    if not truth or len(truth) != len(predicted):
        raise DataError("ratings need a prediction for each truth, and one at least")
    squared = float(mean_squared_error(truth, predicted))
    return RatingScores(float(mean_absolute_error(truth, predicted)), squared, math.sqrt(squared))


@dataclass(frozen=True)
class LabelScores:
    """Of predicted labels: accuracy, F1 by macro and micro mean over labels, precision and recall by macro mean."""

    accuracy: float
    f1: float
    micro_f1: float
    precision: float
    recall: float


def label_scores(truth: Sequence[str], predicted: Sequence[str]) -> LabelScores:
    """Return the scores of `predicted` (scikit-learn; a label never predicted has F1 0). Raises as `rating_scores`."""
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    if not truth or len(truth) != len(predicted):
        raise DataError("labels need a prediction for each truth, and one at least")
    macro = f1_score(truth, predicted, average="macro", zero_division=0)
    micro = f1_score(truth, predicted, average="micro", zero_division=0)
    precision = precision_score(truth, predicted, average="macro", zero_division=0)
    recall = recall_score(truth, predicted, average="macro", zero_division=0)
    accuracy = float(accuracy_score(truth, predicted))
    return LabelScores(accuracy, float(macro), float(micro), float(precision), float(recall))
