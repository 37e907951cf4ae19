"""The question: what follows from it, what it refuses to be, and that its hash pins all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import canonical_json
from privacy.errors import ConfigError, WireError
from privacy.query import RING_LIMIT, Cohort, Limits, Query, Sampling, fraction_text, parse_fraction

Ask = Callable[..., Query]
OTHER: dict[str, object] = {
    "federation": "other",
    "campaign": "second",
    "round": 2,
    "attempt": 1,
    "purpose": "train.persona",
    "slots": 2,
    "slot_dim": 51,
    "clip_norm": Fraction(1, 11),
    "noise_multiplier": Fraction(2),
    "cohort": Cohort(101),
    "transport": "off",
    "release_sha256": "d" * 64,
    "basis_sha256": "d" * 64,
    "policy_sha256": "d" * 64,
    "ledger_head": "d" * 64,
    "objective": "reply-only",
    "limits": Limits(512, 3),
    "directory_sha256": "d" * 64,
    "replayed_noise": True,
    "sampling": Sampling(1000, Fraction(1, 10)),
    "choice": "nearest",
}
UNSHAPING = ("ledger_head", "policy_sha256", "directory_sha256")


@pytest.mark.parametrize(("invited", "honest"), [(10, 6), (30, 18), (50, 29), (100, 57), (500, 284), (1000, 567)])
def test_honest_survivors_known_answers(invited: int, honest: int) -> None:
    assert Cohort(invited).honest == honest


@given(st.integers(1, 2**20))
def test_cohort_keeps_two_thirds_and_a_few_honest(invited: int) -> None:
    cohort = Cohort(invited)
    assert 3 * cohort.min_survivors > 2 * invited
    assert cohort.min_survivors <= invited
    assert 1 <= cohort.honest <= cohort.min_survivors


@pytest.mark.parametrize(
    ("invited", "z", "log2_clip"),
    [(10, "8", 23), (30, "4", 24), (50, "4", 24), (100, "2", 23), (100, "1", 24), (500, "1", 21), (1000, "1", 21)],
)
def test_integer_clip_known_answers(asked: Ask, invited: int, z: str, log2_clip: int) -> None:
    assert asked(cohort=Cohort(invited), noise_multiplier=Fraction(z)).integer_clip == 2**log2_clip


@given(st.integers(1, 2000), st.fractions(Fraction(1, 10), 20, max_denominator=1000))
def test_ring_holds_and_noise_is_never_below_the_claim(asked: Ask, invited: int, z: Fraction) -> None:
    query = asked(cohort=Cohort(invited), noise_multiplier=z)
    clip, honest = query.integer_clip, query.cohort.honest
    room = RING_LIMIT - invited * clip
    assert room > 0 and room**2 * honest >= (12 * z * clip) ** 2 * invited
    twice = RING_LIMIT - 2 * invited * clip
    assert clip == 2**30 or twice < 0 or twice**2 * honest < (24 * z * clip) ** 2 * invited
    variance_of_honest_sum = honest * Fraction(query.sigma) ** 2
    assert variance_of_honest_sum >= (z * clip) ** 2
    assert Fraction(query.sigma - 1) ** 2 * honest < (z * clip) ** 2
    assert query.rho == 1 / (2 * z**2)


def test_layout(asked: Ask) -> None:
    assert (asked().dim, asked().weighted) == (50, False)
    query = asked(slots=3, slot_dim=4)
    assert (query.dim, query.weighted, query.weight) == (15, True, Fraction(1, 40))
    slots, weights = query.split(np.arange(15.0))
    assert weights is not None
    assert slots.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert weights.tolist() == [12, 13, 14]
    assert asked().split(np.zeros(50))[1] is None
    with pytest.raises(ConfigError):
        query.split(np.zeros(14))


@pytest.mark.parametrize("changes", [{"transport": "off"}, {"replayed_noise": True}])
def test_without_fresh_noise_nothing_is_claimed(asked: Ask, changes: dict[str, Any]) -> None:
    assert asked().private and asked().rho == Fraction(1, 2)
    assert not asked(**changes).private
    assert asked(**changes).rho is None


def test_off_needs_no_noise_but_ideal_does(asked: Ask) -> None:
    assert asked(transport="off", noise_multiplier=Fraction(0)).sigma == 0
    for z in (Fraction(0), Fraction(1, 10**7)):
        with pytest.raises(ConfigError, match="noise_multiplier"):
            asked(noise_multiplier=z)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "a b"},
        {"campaign": ""},
        {"objective": "causal-lm"},
        {"objective": ["next-token"]},
        {"objective": "centroid-sums"},
        {"purpose": "train.retriever"},
        {"choice": "random", "slots": 2},
        {"choice": None},
        {"round": -1},
        {"round": True},
        {"attempt": 2**25},
        {"purpose": "train.other"},
        {"purpose": ["train.global"]},
        {"slots": 0},
        {"slot_dim": 2**24 + 1},
        {"slots": 2**13, "slot_dim": 2**13},
        {"clip_norm": Fraction(0)},
        {"clip_norm": Fraction(-1)},
        {"clip_norm": 0.1},
        {"clip_norm": Fraction(1, 10**18)},
        {"noise_multiplier": Fraction(-1)},
        {"noise_multiplier": 1.0},
        {"noise_multiplier": Fraction(10**9)},
        {"cohort": 100},
        {"limits": None},
        {"transport": "masked"},
        {"transport": "Ideal"},
        {"transport": "masked", "directory_sha256": "d" * 64, "cohort": Cohort(1)},
        {"transport": "masked", "directory_sha256": "d" * 64, "cohort": Cohort(2**14 + 1)},
        {"directory_sha256": "D" * 64},
        {"release_sha256": "A" * 64},
        {"ledger_head": ""},
        {"replayed_noise": 1},
    ],
)
def test_refused_settings(asked: Ask, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        asked(**changes)


@pytest.mark.parametrize(
    "make", [lambda: Cohort(0), lambda: Cohort(2**21), lambda: Limits(0, 1), lambda: Limits(1, -1)]
)
def test_refused_parts(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_every_field_changes_hash_and_event(asked: Ask) -> None:
    assert set(OTHER) == {field.name for field in fields(Query)}
    variants = [asked(), *(asked(**{name: value}) for name, value in OTHER.items())]
    assert len({query.sha256 for query in variants}) == len(variants)
    shaping = [asked(), *(asked(**{k: v}) for k, v in OTHER.items() if k not in UNSHAPING)]
    assert len({query.event_id("d1") for query in shaping}) == len(shaping)


def test_a_replayed_campaign_has_the_same_events_whatever_its_keys_and_times(asked: Ask) -> None:
    other_run = asked(**{name: OTHER[name] for name in UNSHAPING})
    assert other_run.sha256 != asked().sha256
    assert other_run.event_id("d1") == asked().event_id("d1")
    assert asked().event_id("d1") != asked().event_id("d2")
    for device in ("", "a/b", "d\u0131"):
        with pytest.raises(ConfigError):
            asked().event_id(device)


@pytest.mark.parametrize("name", OTHER)
def test_round_trip(asked: Ask, name: str) -> None:
    query = asked(**{name: OTHER[name]})
    copy = Query.from_bytes(query.to_bytes())
    assert copy == query and copy.to_bytes() == query.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "confide-query/1"},
        {"extra": 1},
        {"round": None},
        {"clip_norm": "2/20"},
        {"clip_norm": "0.1"},
        {"clip_norm": "1"},
        {"clip_norm": " 1/10"},
        {"clip_norm": "-1/10"},
        {"clip_norm": "01/10"},
        {"clip_norm": "\u0661/10"},
        {"clip_norm": ["1/10"]},
        {"cohort": 100},
        {"cohort": {"invited": 100, "honest": 100}},
        {"cohort": {"invited": "100"}},
        {"limits": {"own_tokens": 1}},
        {"federation": ["test"]},
        {"purpose": {}},
    ],
)
def test_bytes_of_no_query_are_refused(asked: Ask, change: dict[str, Any]) -> None:
    data = canonical_json(json.loads(asked().to_bytes()) | change)
    with pytest.raises((WireError, ConfigError)):
        Query.from_bytes(data)


def test_missing_field_other_bytes_and_length_are_refused(asked: Ask) -> None:
    data = json.loads(asked().to_bytes())
    for name in data:
        with pytest.raises(WireError):
            Query.from_bytes(canonical_json({key: value for key, value in data.items() if key != name}))
    for other in (b"", b"null", b"[]", asked().to_bytes() + b"\n", b'"' + b"x" * 9000 + b'"'):
        with pytest.raises(WireError):
            Query.from_bytes(other)


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_changed_byte_never_passes_as_the_same_query(asked: Ask, at: int, value: int) -> None:
    data = bytearray(asked().to_bytes())
    at %= len(data)
    changed = data[at] != value
    data[at] = value
    try:
        query = Query.from_bytes(bytes(data))
    except (WireError, ConfigError):
        assert changed
    else:
        assert (query.sha256 != asked().sha256) == changed


@given(st.fractions(0, max_denominator=10**9).filter(lambda value: value.numerator < 10**18))
def test_fractions_have_one_form(value: Fraction) -> None:
    assert parse_fraction(fraction_text(value)) == value
