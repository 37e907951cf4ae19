"""Coins of devices: fair, secret, thrown once; what they are worth is stated for one reader and enforced for nobody."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from privacy.accounting import epsilon_zcdp, rho_of, statement
from privacy.canonical import canonical_json
from privacy.errors import ConfigError, WireError
from privacy.query import Cohort, Query, Sampling
from privacy.sampling import ASSUMES, epsilon_sampled, sampled_rounds, takes_part

Ask = Callable[..., Query]


def sampled(asked: Ask, round_: int = 1, people: int = 1000, rate: str = "1/10", cap: int = 130, **more: Any) -> Query:
    return asked(round=round_, sampling=Sampling(people, Fraction(rate)), cohort=Cohort(cap), **more)


def test_the_known_answers_of_a_hundred_rounds(asked: Ask) -> None:
    """N = 1000, q = 0.1, z = 1, T = 100, delta 1e-5: 7.80 with a cap of 130, 7.05 without one."""
    rounds = [sampled(asked, number) for number in range(100)]
    assert epsilon_sampled(rounds, 1e-5) == pytest.approx(7.7973, abs=1e-3)
    free = [replace(query, cohort=Cohort(1000)) for query in rounds]
    assert epsilon_sampled(free, 1e-5) == pytest.approx(7.0466, abs=1e-3)


def test_a_coin_is_thrown_once_and_no_wording_of_the_question_throws_it_again(asked: Ask) -> None:
    keys = [bytes([number]) * 32 for number in range(40)]
    first = [takes_part(key, sampled(asked, rate="1/2"), "d") for key in keys]
    for again in (
        sampled(asked, rate="1/2", attempt=3),
        sampled(asked, rate="1/2", noise_multiplier=Fraction(2), ledger_head="9" * 64, policy_sha256="8" * 64),
        sampled(asked, rate="1/2", cap=200, slot_dim=7),
    ):
        assert [takes_part(key, again, "d") for key in keys] == first
    for other in (sampled(asked, 2, rate="1/2"), sampled(asked, rate="1/2", campaign="x")):
        assert [takes_part(key, other, "d") for key in keys] != first
    assert [takes_part(key, sampled(asked, rate="1/2"), "e") for key in keys] != first
    assert 5 < sum(first) < 35


def test_a_coin_that_must_say_yes_does(asked: Ask) -> None:
    for number in range(50):
        assert takes_part(bytes([number]) * 32, asked(), "d")
        assert takes_part(bytes([number]) * 32, sampled(asked, rate="1/1"), "d")
        assert not takes_part(bytes([number]) * 32, sampled(asked, rate="1/100000000000000"), "d")


@pytest.mark.statistical
def test_coins_fall_as_often_as_the_rate_says(asked: Ask) -> None:
    """20,000 devices a rate; a fair coin fails at 4.9 deviations once in a million runs, one of 0.9 q always."""
    count = 20_000
    for rate in ("1/10", "1/3"):
        query = sampled(asked, people=count, rate=rate)
        yes = sum(takes_part(number.to_bytes(32, "big"), query, "d") for number in range(count))
        q = float(Fraction(rate))
        deviation = math.sqrt(count * q * (1 - q))
        assert abs(yes - count * q) < 4.9 * deviation
        assert abs(yes - count * 0.9 * q) > 4.9 * deviation or q < 0.2


def test_the_statement_keeps_its_headline_and_says_against_whom(asked: Ask) -> None:
    rounds = [sampled(asked, number) for number in range(4)]
    mine = rounds[:2]  # the busiest device's coin said yes twice
    told = statement(mine, deltas=(1e-5,), released=rounds)
    plain = statement(mine, deltas=(1e-5,))
    assert {name: value for name, value in told.items() if name != "sampled"} == plain
    assert told["amplification"] == "none"
    assert told["epsilon"] == {repr(1e-5): epsilon_zcdp(2 * rho_of(Fraction(1)), 1e-5)}
    row = told["sampled"]
    assert isinstance(row, dict)
    assert row["holds_against"] == ASSUMES and "Not against the server" in ASSUMES
    assert (row["rounds"], row["rate"], row["people"]) == (4, [0.1], 1000)
    assert row["epsilon"] == {repr(1e-5): epsilon_sampled(rounds, 1e-5)}


def test_nothing_is_stated_unless_every_round_was_sampled_once_with_noise(asked: Ask) -> None:
    good = [sampled(asked, number) for number in range(3)]
    cases: list[list[Query]] = [
        [],
        [*good, asked(round=9)],
        [*good, replace(good[0], attempt=1)],  # two sums of one throw
        [*good[:2], replace(good[2], transport="off")],
        [*good[:2], replace(good[2], replayed_noise=True)],
    ]
    for bad in cases:
        assert not sampled_rounds(bad)
        with pytest.raises(ConfigError):
            epsilon_sampled(bad, 1e-5)
        assert "sampled" not in statement(good, deltas=(1e-5,), released=bad)


def test_a_query_without_sampling_keeps_its_bytes_and_with_it_has_one_form(asked: Ask) -> None:
    assert b"sampling" not in asked().to_bytes()
    query = sampled(asked)
    assert Query.from_bytes(query.to_bytes()) == query
    value = json.loads(query.to_bytes())
    assert value["sampling"] == {"people": 1000, "rate": "1/10"}
    forms: list[object] = [
        None,
        {},
        {"people": 1000},
        {"people": 1000, "rate": "2/20"},
        {"people": "1", "rate": "1/10"},
        [],
    ]
    for bad in forms:
        with pytest.raises((WireError, ConfigError)):
            Query.from_bytes(canonical_json({**value, "sampling": bad}))
    for changes in (
        {"sampling": Sampling(129, Fraction(1, 10)), "cohort": Cohort(130)},
        {"sampling": {"people": 1000, "rate": "1/10"}},
    ):
        with pytest.raises(ConfigError):
            asked(**changes)
    for people, rate in ((0, Fraction(1, 2)), (5, Fraction(0)), (5, Fraction(3, 2)), (5, 0.5)):
        with pytest.raises(ConfigError):
            Sampling(people, rate)  # type: ignore[arg-type]
