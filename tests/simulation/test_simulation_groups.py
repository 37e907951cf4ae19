"""Whom it serves: a planted gap between groups is found, none is where there is none, the inactive are counted."""

from __future__ import annotations

import numpy as np
import pytest

from simulation.scorecard.groups import AMOUNT, AMOUNTS, DECLARED, gap_of, group_rows, groups_of
from simulation.scorecard.person import PersonCard
from simulation.scorecard.run import TaskCards
from simulation.scorecard.table import table_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cards(gains: list[float]) -> dict[str, PersonCard]:
    rows = [{"base": 11.0, "global": 10.0, "own": 10.0 * (1 - gain)} for gain in gains]
    return {
        f"u{i:02d}": PersonCard({arm: [("d", nats, 5)] for arm, nats in row.items()}, text_bytes={"d": 9})
        for i, row in enumerate(rows)
    }


def task_of(gains: list[float], declared: dict[str, str] | None = None) -> TaskCards:
    words = {f"u{i:02d}": 100 * i for i in range(len(gains))}
    return TaskCards("t", "file", 4, words, declared or {}, [cards(gains)])


def test_people_fall_into_thirds_by_what_they_wrote() -> None:
    groups = groups_of(task_of([0.0] * 9))
    assert set(groups) == {AMOUNT}
    assert [groups[AMOUNT][f"u{i:02d}"] for i in (0, 2, 3, 8)] == [AMOUNTS[0], AMOUNTS[0], AMOUNTS[1], AMOUNTS[2]]
    declared = {f"u{i:02d}": ("nurse", "")[i % 2] for i in range(9)}
    assert set(groups_of(task_of([0.0] * 9, declared))[DECLARED].values()) == {"nurse", "none"}


def test_who_is_left_behind_is_found() -> None:
    """People with few words lose one percent, the others gain five: the gap is six, and shown."""
    noise = rng(2).normal(0, 0.002, 15)
    task = task_of([*(noise[:5] - 0.01), *(noise[5:] + 0.05)])
    groups, gaps = group_rows(task, table_of([task], [0], rng())["rows"], rng())
    own = {row["group"]: row for row in groups if row["arm"] == "own"}
    assert own[AMOUNTS[0]]["mean"] == pytest.approx(-0.01, abs=0.003) and own[AMOUNTS[0]]["worse"] == 1.0
    assert [row["people"] for row in own.values()] == [5, 5, 5]
    gap = next(gap for gap in gaps if gap["arm"] == "own")
    assert gap["gap"] == pytest.approx(0.06, abs=0.005) and gap["said"] == "shown"


def test_a_gap_by_chance_is_not_shown() -> None:
    task = task_of(list(rng(5).normal(0.03, 0.02, 30)))
    _, gaps = group_rows(task, table_of([task], [0], rng())["rows"], rng())
    assert next(gap for gap in gaps if gap["arm"] == "own")["said"] == "not shown"


def test_a_gap_is_between_the_extreme_means() -> None:
    assert gap_of(np.array([1.0, 3.0, 5.0, 5.0, 0.0]), [2, 2, 1]) == pytest.approx(5.0)
