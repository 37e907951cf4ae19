"""What a server may do with personas: all of it from noisy counts and noisy means, so all of it free of privacy.

Who belongs to which persona never reaches this file: a device scores all of them and answers in one slot of a vector
whose every number is noisy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.query import Query

Vector = NDArray[np.float64]
PUBLISH_DEVIATIONS = 4.0
COLLAPSED_SHARE = 0.9
WORD_DEVIATIONS = 4.0


@dataclass(frozen=True)
class Event:
    """What became of a persona: `kind` is "merged" (into `other`) or "split" (of `other`), `persona` its number."""

    kind: str
    persona: int
    other: int
    round: int = 0


def count_deviation(query: Query, survivors: int) -> float:
    """Return the deviation of the noise on a persona's count of members, 0 where nothing private was added.

    Each count is a sum over survivors of weights w with noise z c / sqrt(honest) each; in units of w that is
    4 z sqrt(survivors / honest) for w = c / 4.
    """
    if not query.private:
        return 0.0
    return query.sigma * math.sqrt(survivors) / (query.scale * float(query.weight))


def published(counts: Vector, deviation: float, floor: float) -> list[int]:
    """Return the personas whose noisy count is at least four of its deviations and at least `floor`."""
    least = max(PUBLISH_DEVIATIONS * deviation, floor)
    return [k for k, count in enumerate(counts) if count >= least]


def collapsed(counts: Vector, deviation: float, floor: float) -> bool:
    """Return whether the personas have become one: one can be published, and it holds nine tenths of what was counted.

    Counts below zero are noise and count as nothing. With no persona that stands out of the noise nothing can be said:
    False.
    """
    found = published(counts, deviation, floor)
    total = float(np.maximum(counts, 0.0).sum())
    return len(found) == 1 and total > 0 and float(counts[found[0]]) >= COLLAPSED_SHARE * total


def tended(
    personas: Vector, counts: Vector, deviation: float, floor: float, apart: float, rng: np.random.Generator
) -> tuple[Vector, list[Event]]:
    """Return the personas [K, d] after merging and splitting, and what was done; the number K never changes.

    Two personas nearer than half of `apart` are merged into the first, in proportion to their counts. A persona that is
    certainly below `floor` (by two deviations) is retired. Either leaves its slot to a half of the largest persona,
    `apart` from it in a random direction, if that is certainly large enough for two; else the slot is left as it is.
    """
    result, left, events = personas.copy(), counts.astype(float).copy(), list[Event]()
    free = [k for k in range(len(result)) if left[k] + 2 * deviation < floor]
    for j in range(len(result)):
        for i in range(j):
            if not {i, j} & set(free) and np.linalg.norm(result[i] - result[j]) < apart / 2:
                both = max(left[i], 0.0) + max(left[j], 0.0)
                part = max(left[j], 0.0) / both if both > 0 else 0.5
                result[i] += part * (result[j] - result[i])
                left[i], left[j] = both, 0.0
                free.append(j)
                events.append(Event("merged", j, i))
    for k in free:
        largest = int(np.argmax(left))
        if k == largest or left[largest] - 2 * deviation < 2 * floor:
            continue
        direction = rng.standard_normal(result.shape[1])
        result[k] = result[largest] + apart * direction / np.linalg.norm(direction)
        left[k] = left[largest] = left[largest] / 2
        events.append(Event("split", k, largest))
    return result, events


def shrunk(means: Vector, noise: Vector) -> Vector:
    """Return rows [K, e] made shorter by what noise of deviation `noise` [K] adds to their length (James, Stein 1961).

    A row m becomes m max(0, 1 - (e - 2) noise^2 / |m|^2): unbiased in length where the noise is what was added. Rows no
    longer than their noise become zero. Lengths above 1, which no mean of unit vectors has, are cut to 1.
    """
    squares = (means**2).sum(axis=1)
    keep = 1 - (means.shape[1] - 2) * noise**2 / np.where(squares > 0, squares, 1.0)
    rows = means * np.maximum(keep, 0.0)[:, None]
    cut: Vector = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    return cut


def telling_words(
    counts: Vector, members: Vector, deviation: float, words: Sequence[str], most: int
) -> list[list[str]]:
    """Return for each persona the words that it uses more than the others, the most telling first, at most `most`.

    `counts` [K, V] are noisy (the deviation of each is `deviation`), `members` [K] the noisy counts of people. The
    score of a word is its rate in the persona less its rate in all others together, in deviations of that difference;
    what is below four of them may be noise and is not named.
    """
    found: list[list[str]] = []
    for k in range(len(counts)):
        others = [j for j in range(len(counts)) if j != k]
        inside, outside = max(float(members[k]), 1.0), max(float(members[others].sum()), 1.0)
        rate, elsewhere = counts[k] / inside, counts[others].sum(axis=0) / outside
        noise = deviation * math.sqrt(1 / inside**2 + len(others) / outside**2)
        # Somebody who uses w words adds w^-1/2 to each, w^1/2 in all: the mean of that says how large one mark is.
        mark, mark_elsewhere = (1 / max(1.0, float(each.sum())) for each in (rate, elsewhere))
        sampling = np.sqrt(np.maximum(rate, 0) * mark / inside + np.maximum(elsewhere, 0) * mark_elsewhere / outside)
        score = (rate - elsewhere) / np.maximum(np.hypot(noise, sampling), 1e-12)
        order = np.argsort(-score)[:most]
        found.append([words[i] for i in order if score[i] >= WORD_DEVIATIONS])
    return found
