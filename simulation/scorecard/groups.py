"""Whom it serves and whom it hurts: gains by how much a person has written and by declared group; the inactive counted.

    gap = largest minus smallest mean gain over the groups that have `LEAST_PEOPLE` people

Groups by amount are thirds of the people scored. The gap's p-value is that of a permutation test: the share of random
assignments of people to groups of the same sizes whose gap is as large (with one added to both counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from simulation.scorecard.run import TaskCards
from simulation.scorecard.statistics import LEVEL, NOT_SHOWN, SHOWN
from simulation.scorecard.table import Row

ARMS = ("global", "hybrid@4", "own", "all", "all_trusted", "chosen")
LEAST_PEOPLE = 3
PERMUTATIONS = 2000
AMOUNTS = ("few words", "some words", "many words")
AMOUNT, DECLARED = "amount of text", "declared group"


class Group(TypedDict):
    """The people of one group under one arm: how many, mean gain, share made worse; words of history at most."""

    task: str
    by: str
    group: str
    arm: str
    people: int
    mean: float
    worse: float


class Gap(TypedDict):
    """The gap between groups under one arm, and whether it is shown."""

    task: str
    by: str
    arm: str
    gap: float
    p: float
    said: str


def groups_of(task: TaskCards) -> dict[str, dict[str, str]]:
    """Return by each grouping the group of every person: thirds by own words, and declared personas where there are."""
    order = sorted(task.words, key=lambda user: (task.words[user], user))
    thirds = {user: AMOUNTS[place * len(AMOUNTS) // len(order)] for place, user in enumerate(order)}
    found = {AMOUNT: thirds}
    if any(task.declared.values()):
        found[DECLARED] = {user: name or "none" for user, name in task.declared.items()}
    return found


def group_rows(task: TaskCards, rows: Sequence[Row], rng: np.random.Generator) -> tuple[list[Group], list[Gap]]:
    """Return the groups of a task under the arms of note, and the gaps between them."""
    groups, gaps = [], []
    for row in rows:
        if row["task"] != task.task or row["arm"] not in ARMS:
            continue
        for by, of in groups_of(task).items():
            here = _split(row["values"], of)
            groups += [_group(row, by, name, values) for name, values in here.items()]
            large = {name: values for name, values in here.items() if len(values) >= LEAST_PEOPLE}
            if len(large) > 1:
                gaps.append(_gap(row, by, list(large.values()), rng))
    return groups, gaps


def _split(values: Mapping[str, float], of: Mapping[str, str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for user, value in values.items():
        if user in of:
            found.setdefault(of[user], []).append(value)
    order = {name: place for place, name in enumerate(AMOUNTS)}
    return dict(sorted(found.items(), key=lambda pair: (order.get(pair[0], 0), pair[0])))


def _group(row: Row, by: str, name: str, values: Sequence[float]) -> Group:
    return {
        "task": row["task"],
        "by": by,
        "group": name,
        "arm": row["arm"],
        "people": len(values),
        "mean": float(np.mean(values)),
        "worse": float(np.mean([value < 0 for value in values])),
    }


def _gap(row: Row, by: str, groups: Sequence[Sequence[float]], rng: np.random.Generator) -> Gap:
    sizes = [len(values) for values in groups]
    everybody = np.concatenate([np.asarray(values, dtype=np.float64) for values in groups])
    gap = gap_of(everybody, sizes)
    as_large = sum(gap_of(rng.permutation(everybody), sizes) >= gap - 1e-12 for _ in range(PERMUTATIONS))
    p = (1 + as_large) / (1 + PERMUTATIONS)
    said = SHOWN if p <= LEVEL else NOT_SHOWN
    return {"task": row["task"], "by": by, "arm": row["arm"], "gap": gap, "p": p, "said": said}


def gap_of(values: np.ndarray[tuple[int], np.dtype[np.float64]], sizes: Sequence[int]) -> float:
    """Return the largest minus the smallest mean of consecutive groups of the given sizes."""
    means = [float(part.mean()) for part in np.split(values, np.cumsum(sizes)[:-1])]
    return max(means) - min(means)
