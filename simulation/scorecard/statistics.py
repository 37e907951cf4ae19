"""Statistics of one value a person: paired bootstrap, Holm over tasks, the worst tenth, and what may be called shown.

    value_p = 1 - nats_arm(p) / nats_reference(p)          the share of bits that the arm saves person p
    mean    = (1/n) sum_p value_p                          people count alike, however much they wrote

The interval is the expanded percentile interval of `simulation.metrics`. The p-value is that of the two-sided bootstrap
test of mean = 0: twice the smaller share of resampled means on either side of 0, ties half, with one added to both
counts (Davison, Hinkley 1997, "Bootstrap Methods and their Application", section 4.4; Efron, Tibshirani 1993, chapter
15). For fewer than `LEAST_PEOPLE` people nothing is shown, whatever the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import DataError
from simulation.metrics import expanded_tail

Vector = NDArray[np.float64]
RESAMPLES = 10_000
LEAST_PEOPLE = 8
LEVEL = 0.05
NOTABLY = 0.02  # worse by so much is counted by itself
SHOWN, SHOWN_WORSE, NOT_SHOWN = "shown", "shown to be worse", "not shown"


@dataclass(frozen=True)
class Told:
    """What the values of n people say: mean, 95 % interval, p, the mean of the worst tenth, shares of people."""

    people: int
    mean: float
    low: float | None
    high: float | None
    p: float
    median: float
    worst_decile: float
    improved: float
    worse: float
    notably_worse: float


def told(values: Sequence[float] | Vector, rng: np.random.Generator, resamples: int = RESAMPLES) -> Told:
    """Return what `values`, one a person, say. Raises DataError for none, or for one that is no number."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 0 or not np.isfinite(array).all():
        raise DataError("statistics need one finite value of each person, and one person at least")
    low, high, p = None, None, 1.0
    if n > 1:
        means = resampled_means(array, rng, resamples)
        tail = expanded_tail(n)
        low, high = (float(q) for q in np.quantile(means, [tail, 1 - tail]))
        p = p_value(means)
    return Told(
        people=n,
        mean=float(array.mean()),
        low=low,
        high=high,
        p=p,
        median=float(np.median(array)),
        worst_decile=worst_decile(array),
        improved=float(np.mean(array > 0)),
        worse=float(np.mean(array < 0)),
        notably_worse=float(np.mean(array < -NOTABLY)),
    )


def resampled_means(values: Vector, rng: np.random.Generator, resamples: int = RESAMPLES) -> Vector:
    """Return the means of `resamples` draws of n people with replacement, float64 [resamples]."""
    n = len(values)
    means: Vector = rng.multinomial(n, np.full(n, 1.0 / n), size=resamples) @ values / n
    return means


def p_value(means: Vector) -> float:
    """Return the two-sided p of a mean of zero from its resampled means; at least 2 / (resamples + 1), at most 1."""
    ties = np.isclose(means, 0.0, rtol=0, atol=1e-15)
    below = float(np.sum((means < 0) & ~ties) + ties.sum() / 2)
    above = float(np.sum((means > 0) & ~ties) + ties.sum() / 2)
    return min(1.0, 2 * (1 + min(below, above)) / (len(means) + 1))


def worst_decile(values: Vector) -> float:
    """Return the mean of the tenth of people whom it serves worst, one person at least."""
    return float(np.sort(values)[: max(1, math.ceil(len(values) / 10))].mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values in the given order: reject those at most alpha, and all of them hold together at alpha.

        p'_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))

    (Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.)
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(found: Told, adjusted: float) -> str:
    """Return "shown", "shown to be worse" or "not shown"."""
    if found.people < LEAST_PEOPLE or adjusted > LEVEL or found.low is None or found.high is None:
        return NOT_SHOWN
    if found.low > 0:
        return SHOWN
    return SHOWN_WORSE if found.high < 0 else NOT_SHOWN
