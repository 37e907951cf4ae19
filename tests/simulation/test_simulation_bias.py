"""Whom it hurts: bias by invented attributes, echoes of planted opinions, and steering as the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulation.progress import Progress
from simulation.scorecard import planted_people
from simulation.scorecard.arms import BY_NAME
from simulation.scorecard.bias import ATTRIBUTES, BIAS_ARMS, NOTHING, bias_of
from simulation.scorecard.criteria import ECHO
from simulation.scorecard.evaluate import questions, scorecard
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.reader import Rows


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def answers(margins: list[float]) -> Rows:
    """Ten facts and four harmless questions whose right answers are likelier by so many nats."""
    kinds = ["facts"] * 10 + ["refusal"] * 4
    rows: Rows = []
    for i, (kind, margin) in enumerate(zip(kinds, margins, strict=True)):
        rows += [(f"{kind}/{i}/right", 2.0, 2), (f"{kind}/{i}/wrong", 2.0 + margin, 2)]
    return rows


def told(by_value: dict[str, list[float]]) -> dict[str, dict[str, Rows]]:
    return {"global": {key: answers(margins) for key, margins in by_value.items()}}


def test_who_is_served_worse_is_found() -> None:
    """By hand: one value of three answers half of the facts wrongly and refuses half; the others none."""
    worse = [2.0, -2.0] * 7
    found = bias_of(told({NOTHING: [2.0] * 14, "age=a": [2.0] * 14, "age=b": [2.0] * 14, "age=c": worse}), rng())
    row = next(row for row in found["rows"] if row["value"] == "c")
    assert (row["accuracy"], row["refusal"], row["margin"]) == (0.5, 0.5, 0.0)
    gaps = {gap["figure"]: gap for gap in found["gaps"]}
    assert (gaps["accuracy"]["gap"], gaps["refusal"]["gap"], gaps["margin"]["gap"]) == (0.5, 0.5, 1.0)
    assert gaps["accuracy"]["said"] == gaps["margin"]["said"] == "shown" and found["questions"] == 14
    assert gaps["refusal"]["said"] == "not shown", "four questions show nothing"


def test_no_gap_is_shown_where_there_is_none() -> None:
    """Values drawn alike: of 60 gaps in margin at most seven have p of 5 % or less (binomial, false alarm 2 %)."""
    wrong = 0
    for seed in range(60):
        drawn = {f"age={v}": rng(seed * 7 + i).normal(0.5, 1, 14).tolist() for i, v in enumerate("abc")}
        wrong += next(g for g in bias_of(told(drawn), rng(seed))["gaps"] if g["figure"] == "margin")["p"] <= 0.05
    assert wrong <= 7


def test_opinions_are_drawn_and_beliefs_are_false() -> None:
    people = planted_people.planted_people(40, 1)
    likes = [p.right for each in people for p in each.pairs if p.kind == planted_people.ECHO]
    assert 0.35 < likes.count(" Yes") / len(likes) < 0.65, "a model that always says yes is no echo"
    facts = dict(planted_people.BELIEFS)
    for each in people:
        written = " ".join(d.own_text for d in each.person.history)
        for claim, true in facts.items():
            if claim in written:
                assert planted_people.SURE[not true].format(claim) in written
                pair = next(p for p in each.pairs if claim in p.question)
                assert pair.right == (" Yes" if true else " No")


def test_steering_is_the_arm_it_steers_at_a_weight_of_its_own() -> None:
    assert BY_NAME["steered"].steer == -0.5
    same = ("core", "own", "memories", "methods", "passages", "prompt")
    assert all(getattr(BY_NAME["steered"], name) == getattr(BY_NAME["hybrid@4"], name) for name in same)


@pytest.mark.slow
def test_criteria_say_whom_it_hurts(run: Any, strangers: Path, hosts_here: Any, tmp_path: Path) -> None:
    """End to end on the tiny model: figures of every value, of echoes, and of the steered arm beside its cost."""
    folder = tmp_path / "run"
    run(folder, "rounds=1", "compare_without_noise=false")
    settings = CardSettings(
        own_tokens=60, test_documents=1, document_tokens=48, tuning_documents=0, planted_people=2, written_tokens=4,
        passage_tokens=32, bias_questions=2, encoder="hashed",
    )  # fmt: skip
    arms = ["base", "global", "hybrid@4", "steered"]
    card = scorecard(
        questions([folder], [str(strangers)]),
        arms,
        settings,
        Progress(quiet=True),
        people=2,
        criteria=True,
        open_hosts=hosts_here,
    )
    values = 1 + sum(map(len, ATTRIBUTES.values()))
    assert card["bias"]["questions"] == 8 and len(card["bias"]["rows"]) == values * len(BIAS_ARMS)
    by_arm = {arm: [r["margin"] for r in card["bias"]["rows"] if r["arm"] == arm] for arm in BIAS_ARMS}
    spread = {arm: float(np.std(margins)) for arm, margins in by_arm.items()}
    assert 0 < spread["steered"] < spread["global"], "half the weight, less of the effect"
    assert {row["arm"] for row in card["measures"] if row["measure"] == ECHO} == set(arms)
    rows = {row["arm"]: row for row in card["table"]["rows"]}
    assert rows["steered"]["values"] not in (rows["global"]["values"], rows["hybrid@4"]["values"])
    assert rows["hybrid@4"]["read_tokens"] > 0 == rows["global"]["read_tokens"]
