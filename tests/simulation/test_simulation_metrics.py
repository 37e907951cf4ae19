"""Gains against hand-made sums, intervals against people whose true gain is known, and refusals of unfair pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import DataError
from simulation import metrics
from simulation.metrics import (
    Score,
    bits_per_token,
    compare,
    comparisons,
    expanded_tail,
    pair,
    person_rows,
    relative_gain,
    summarise,
)
from simulation.report_schema import interval_of

LN2 = math.log(2)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scores(**bits: tuple[float, int]) -> list[Score]:
    """One document a person: (bits in all, tokens)."""
    return [Score(user, "d", total * LN2, tokens) for user, (total, tokens) in bits.items()]


def test_bits_are_weighted_by_tokens() -> None:
    arm = [Score("a", "1", 6 * LN2, 2), Score("a", "2", 4 * LN2, 2), Score("b", "1", 50 * LN2, 16)]
    assert bits_per_token(arm) == pytest.approx(60 / 20)
    with pytest.raises(DataError):
        bits_per_token([Score("a", "1", 0.0, 0)])


def test_arms_by_hand() -> None:
    arms = {
        "base": scores(a=(40, 10), b=(60, 10), c=(100, 20)),
        "global": scores(a=(38, 10), b=(61, 10), c=(91, 20)),
        "own": scores(a=(36, 10), b=(62, 10)),
    }
    found = summarise(arms, rng())
    assert found["base"]["bits_per_token"] == pytest.approx(5.0)
    assert interval_of(found["base"]) == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["global"]["bits_per_token"] == pytest.approx(190 / 40)
    assert found["global"]["relative_gain"] == pytest.approx(0.05)
    assert found["global"]["compared_with"] == "base"
    assert found["global"]["users_improved"] == pytest.approx(2 / 3)
    assert found["global"]["users_worse"] == 1
    assert (found["global"]["users"], found["global"]["tokens"]) == (3, 40)
    assert found["own"]["compared_with"] == "global"
    assert (found["own"]["users_improved"], found["own"]["users_worse"]) == (0.5, 1)


def test_an_arm_on_fewer_people_is_compared_on_those_only() -> None:
    arms = {
        "base": scores(a=(40, 10), b=(1000, 10)),
        "global": scores(a=(30, 10), b=(10, 10)),
        "own": scores(a=(20, 10)),
    }
    own = summarise(arms, rng())["own"]
    assert own["relative_gain"] == pytest.approx(0.5)
    assert own["base_bits_per_token"] == pytest.approx(4.0)
    assert (own["users"], own["users_compared"], own["tokens"]) == (1, 1, 10)
    against_global = compare(arms, "own", "global", rng())
    assert against_global["relative_gain"]["value"] == pytest.approx(1 / 3)
    assert (against_global["users"], against_global["tokens"]) == (1, 10)


def test_an_arm_on_fewer_documents_is_compared_on_those_only() -> None:
    base = [Score("a", "1", 10.0, 2), Score("a", "2", 1000.0, 5), Score("b", "1", 10.0, 2)]
    own = [Score("a", "1", 8.0, 2), Score("b", "1", 9.0, 2), Score("b", "3", 1.0, 1)]
    paired = pair(own, base)
    assert paired.users == ("a", "b")
    assert paired.nats.tolist() == [8.0, 9.0]
    assert paired.nats_against.tolist() == [10.0, 10.0]
    assert paired.tokens.tolist() == [2, 2]
    assert relative_gain(paired, rng())["value"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    "arm",
    [
        [Score("a", "1", 1.0, 3)],
        [Score("a", "1", 1.0, 2), Score("a", "1", 1.0, 2)],
        [Score("a", "1", math.nan, 2)],
        [Score("a", "1", math.inf, 2)],
        [Score("a", "1", -1.0, 2)],
        [Score("a", "1", 1.0, -2)],
    ],
    ids=["other tokens", "twice", "nan", "infinite", "negative", "negative tokens"],
)
def test_unfair_or_impossible_scores_are_refused(arm: list[Score]) -> None:
    with pytest.raises(DataError):
        pair(arm, [Score("a", "1", 1.0, 2)])


def test_one_person_has_a_gain_but_no_interval() -> None:
    arms = {"base": scores(a=(40, 10)), "global": scores(a=(30, 10))}
    gain = interval_of(summarise(arms, rng())["global"])
    assert gain is not None
    assert gain["value"] == pytest.approx(0.25)
    assert (gain["low"], gain["high"]) == (None, None)


def test_nobody_in_common_is_no_gain() -> None:
    arms = {"base": scores(a=(40, 10)), "own": scores(b=(30, 10)), "global": scores(b=(31, 10))}
    own = summarise(arms, rng())["own"]
    assert own["relative_gain"] is None
    assert own["base_bits_per_token"] is None
    assert summarise(arms, rng())["global"]["users_improved"] is None
    with pytest.raises(DataError):
        compare(arms, "own", "base", rng())
    assert [row["against"] for row in comparisons(arms, rng(), pairs=[("own", "base"), ("own", "global")])] == [
        "global"
    ]


def test_without_global_the_reference_is_base() -> None:
    arms = {"base": scores(a=(40, 10), b=(40, 10)), "own": scores(a=(41, 10), b=(30, 10))}
    own = summarise(arms, rng())["own"]
    assert (own["compared_with"], own["users_improved"], own["users_worse"]) == ("base", 0.5, 1)


def test_equal_is_neither_better_nor_worse() -> None:
    arms = {"global": scores(a=(40, 10), b=(40, 10)), "own": scores(a=(40, 10), b=(40, 10))}
    row = compare(arms, "own", "global", rng())
    assert (row["users_improved"], row["users_worse"]) == (0.0, 0)
    assert row["relative_gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def people_with_gain(seed: int, people: int, gain: float, spread: float) -> tuple[list[Score], list[Score]]:
    """Two arms whose ratio of expected totals is 1 - gain: gains are independent of how much a person writes."""
    draw = rng(seed)
    tokens = draw.integers(100, 1000, size=people)
    against = tokens * draw.normal(4.5, 0.4, size=people) * LN2
    nats = against * (1 - draw.normal(gain, spread, size=people))
    users = [f"u{index:03d}" for index in range(people)]

    def arm(total: np.ndarray) -> list[Score]:
        return [Score(u, "d", float(x), int(n)) for u, x, n in zip(users, total, tokens, strict=True)]

    return arm(nats), arm(against)


@pytest.mark.statistical
@pytest.mark.parametrize("people", [16, 100])
def test_the_interval_covers_the_truth_as_often_as_it_says(people: int) -> None:
    """600 federations with a true gain of 5 %: 91 to 97.5 % of the intervals hold it, those cut by a fifth do not.

    Measured: 93 to 94 %. The seeds are fixed; fresh ones would miss the bounds about once in 40 (binomial, sd 1 %).
    """
    trials, held, held_short = 600, 0, 0
    for seed in range(trials):
        gain = relative_gain(pair(*people_with_gain(seed, people, 0.05, 0.03)), rng(seed), resamples=500)
        assert gain["low"] is not None
        assert gain["high"] is not None
        held += gain["low"] <= 0.05 <= gain["high"]
        held_short += abs(gain["value"] - 0.05) <= 0.4 * (gain["high"] - gain["low"])
    assert 0.91 <= held / trials <= 0.975
    assert held_short / trials < 0.91, "an interval shortened by a fifth must not pass"


def test_an_exchangeable_arm_is_no_better() -> None:
    """Whose score is called own and whose wrong is a coin: the interval covers zero, and a real gain leaves it."""
    nats, against = people_with_gain(3, 60, 0.0, 0.03)
    flip = rng(4).random(60) < 0.5
    own = [b if swap else a for a, b, swap in zip(nats, against, flip, strict=True)]
    wrong = [a if swap else b for a, b, swap in zip(nats, against, flip, strict=True)]
    null = compare({"own": own, "wrong_person": wrong}, "own", "wrong_person", rng())["relative_gain"]
    assert null["low"] is not None
    assert null["high"] is not None
    assert null["low"] < 0 < null["high"]
    real, base = people_with_gain(3, 60, 0.02, 0.03)
    found = compare({"own": real, "wrong_person": base}, "own", "wrong_person", rng())["relative_gain"]
    assert found["low"] is not None
    assert found["low"] > 0


def test_pairing_is_what_makes_the_interval_short() -> None:
    """People differ by 10 % in how hard they are, gains by 0.3 %: only a paired interval is narrower than 1 %."""
    gain = relative_gain(pair(*people_with_gain(1, 40, 0.05, 0.003)), rng())
    assert gain["low"] is not None
    assert gain["high"] is not None
    assert gain["high"] - gain["low"] < 0.005


def test_people_are_resampled_not_documents() -> None:
    """The same total from 4 people with many documents each must not look like 400 independent ones."""
    own, base = people_with_gain(2, 4, 0.05, 0.03)
    split = [[Score(s.user, str(k), s.nats / 100, 7) for s in arm for k in range(100)] for arm in (own, base)]
    whole, parts = relative_gain(pair(own, base), rng()), relative_gain(pair(*split), rng())
    assert parts["low"] == pytest.approx(whole["low"])
    assert parts["high"] == pytest.approx(whole["high"])


def test_draws_in_parts_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    paired = pair(*people_with_gain(0, 20, 0.05, 0.03))
    whole = relative_gain(paired, rng(), resamples=301)
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 20 * 50)
    assert relative_gain(paired, rng(), resamples=301) == whole


def test_the_order_of_arms_and_scores_changes_nothing() -> None:
    own, base = people_with_gain(0, 12, 0.05, 0.03)
    there = summarise({"base": base, "global": own}, rng(9))
    assert summarise({"global": own[::-1], "base": base[::-1]}, rng(9)) == there
    assert summarise({"base": base, "global": own}, rng(10)) != there, "the interval must come from the generator"


def test_tail_known_answers() -> None:
    """t_{0.975, 15} = 2.13145: Phi(-sqrt(16/15) * 2.13145) = 0.01386; normal for many."""
    assert expanded_tail(16) == pytest.approx(0.01386, abs=2e-5)
    assert expanded_tail(10**6) == pytest.approx(0.025, abs=1e-5)
    assert expanded_tail(2) < 1e-60


PEOPLE = st.tuples(st.floats(0.5, 9), st.floats(0.5, 9), st.integers(1, 500))


@given(st.dictionaries(st.text(max_size=3), PEOPLE, min_size=1), st.floats(0.1, 10))
def test_gain_does_not_depend_on_the_unit(rows: dict[str, tuple[float, float, int]], unit: float) -> None:
    arm = [Score(user, "d", a * n, n) for user, (a, _, n) in rows.items()]
    against = [Score(user, "d", b * n, n) for user, (_, b, n) in rows.items()]
    scaled = [[Score(s.user, s.document, s.nats * unit, s.tokens) for s in scores] for scores in (arm, against)]
    plain = relative_gain(pair(arm, against), rng(), resamples=50)
    other = relative_gain(pair(*scaled), rng(), resamples=50)
    assert other["value"] == pytest.approx(plain["value"], abs=1e-9)
    assert other["low"] == (plain["low"] if plain["low"] is None else pytest.approx(plain["low"], abs=1e-9))
    assert (plain["low"] is None) == (len(rows) == 1)


def test_a_row_of_a_person_can_be_read_across() -> None:
    arms = {
        "base": [Score("b", "1", 8 * LN2, 2), Score("b", "2", 90 * LN2, 9), Score("a", "1", 12 * LN2, 3)],
        "own": [Score("b", "1", 6 * LN2, 2)],
    }
    assert person_rows(arms, {"b": 77}) == [
        {"user": "a", "tokens": 0, "test_tokens": 3, "bits": {"base": pytest.approx(4.0)}},
        {"user": "b", "tokens": 77, "test_tokens": 2, "bits": {"base": pytest.approx(4.0), "own": pytest.approx(3.0)}},
    ]
    with pytest.raises(DataError):
        person_rows({"base": [Score("a", "1", 1.0, 3)], "own": [Score("a", "1", 1.0, 2)]}, {})
    assert person_rows({"base": [Score("a", "1", 1.0, 3)], "own": [Score("a", "2", 1.0, 3)]}, {}) == []
