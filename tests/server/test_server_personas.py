"""What a server makes of noisy counts and means: which personas are published, merged, split, described."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from privacy.errors import ConfigError
from privacy.objective import METRICS, METRICS_NORM
from privacy.query import Cohort, Query
from server.personas import Event, collapsed, count_deviation, published, shrunk, telling_words, tended
from server.plan import CampaignPlan, Step
from server.state import RoundSum, advanced, first_state
from tests.server.test_server_campaign import PERSONAS, PLAN

FULL = replace(
    PERSONAS,
    rounds=4,
    clustering=2,
    portrait_dim=5,
    encoder_dim=5,
    words=7,
    measure=True,
    retriever_rounds=1,
    retriever_rank=2,
)


def query_of(step: Step, plan: CampaignPlan = FULL, invited: int = 1000, transport: str = "off") -> Query:
    return Query(
        federation=plan.federation,
        campaign=plan.campaign,
        round=0,
        attempt=0,
        purpose=step.purpose,
        slots=step.slots,
        slot_dim=step.slot_dim,
        clip_norm=plan.clip_norm,
        noise_multiplier=step.noise_multiplier,
        cohort=Cohort(invited),
        transport=transport,
        release_sha256="a" * 64,
        basis_sha256="b" * 64,
        policy_sha256="c" * 64,
        ledger_head="d" * 64,
        objective=step.objective,
        limits=plan.limits,
        choice=step.choice,
    )


# -- the plan -------------------------------------------------------------------------------------------------------


def test_a_plan_asks_its_queries_in_order_under_one_budget() -> None:
    asked = [(s.purpose, s.choice, s.slots, s.slot_dim) for s in FULL.steps]
    assert asked == [
        *[("cluster.persona", "nearest", 2, 5)] * 2,
        ("train.global", "least-loss", 1, 6),
        ("train.persona", "nearest", 2, 6),
        ("train.global", "least-loss", 1, 6),
        ("train.persona", "least-loss", 2, 6),
        ("train.retriever", "least-loss", 1, 4),
        ("describe.persona", "least-loss", 2, 7),
        ("measure.adapters", "least-loss", 2, len(METRICS)),
    ]
    assert FULL.rho == Fraction(9, 2)
    cheap = replace(FULL, noise={"measure.adapters": Fraction(3), "cluster.persona": Fraction(1, 3)})
    assert cheap.rho == 6 * Fraction(1, 2) + Fraction(1, 18) + 2 * Fraction(9, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"personas": 0},
        {"clustering": -1},
        {"persona_choice": "declared"},
        {"objective": "centroid-sums"},
        {"noise": {"train.other": Fraction(1)}},
        {"clustering": 0, "persona_choice": "nearest"},
    ],
)
def test_a_plan_whose_queries_do_not_fit_together_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(FULL, **changes)  # type: ignore[arg-type]


def test_every_step_starts_from_rows_of_its_own_layout() -> None:
    state = first_state(FULL)
    shapes = [state.rows(step).shape for step in FULL.steps]
    assert shapes == [(2, 5), (2, 5), (1, 6), (2, 11), (1, 6), (2, 6), (1, 4 + 10), (2, 6), (3, 6)]
    assert np.array_equal(state.rows(FULL.steps[3])[:, 6:], state.centroids)
    assert np.array_equal(state.rows(FULL.steps[-1])[1:], state.core + state.personas)
    for directions in (state.centroids, state.directions):
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)


# -- what sums give -------------------------------------------------------------------------------------------------


def mean_of(query: Query, slots: np.ndarray, members: list[int], survivors: int) -> RoundSum:
    """Return the exact mean of a round in which `members` people answered each slot with what `slots` says."""
    share = np.array(members) / survivors
    parts = [np.asarray(slots) * share[:, None]]
    vector = np.concatenate([np.ravel(parts[0]), *([float(query.weight) * share] if query.weighted else [])])
    return RoundSum(query, survivors, vector)


def test_centroids_become_the_means_of_their_members() -> None:
    query, state = query_of(FULL.steps[0]), first_state(FULL)
    wanted = np.array([[0.6, 0.0, 0.3, 0.0, 0.1], [0.0, 0.5, 0.0, 0.2, 0.0]])
    after = advanced(FULL, state, mean_of(query, query.figure * wanted, [600, 400], 1000))
    np.testing.assert_allclose(after.centroids, wanted, atol=1e-12)
    np.testing.assert_allclose(after.persona_counts, [600, 400])
    assert after.events == () and after.count_deviation == 0 and np.array_equal(after.core, state.core)


def test_a_cluster_that_nobody_joined_takes_half_of_the_largest() -> None:
    query, state = query_of(FULL.steps[0]), first_state(FULL)
    wanted = np.array([[0.6, 0.0, 0.3, 0.0, 0.1], [0.0] * 5])
    after = advanced(FULL, state, mean_of(query, query.figure * wanted, [1000, 0], 1000))
    assert after.events == (Event("split", 1, 0),)
    assert np.linalg.norm(after.centroids[1] - after.centroids[0]) == pytest.approx(0.05)


def test_words_and_figures_are_read_back_in_their_own_units() -> None:
    words, figures = FULL.steps[-2], FULL.steps[-1]
    query, rates = query_of(words), np.linspace(0, 1, 14).reshape(2, 7)
    after = advanced(FULL, first_state(FULL), mean_of(query, query.figure * rates, [300, 700], 1000))
    np.testing.assert_allclose(after.words, rates * [[300], [700]])
    np.testing.assert_allclose(after.word_counts, [300, 700])
    query, told = query_of(figures), np.linspace(0, 1, 2 * len(METRICS)).reshape(2, -1)
    mean = mean_of(query, query.figure / METRICS_NORM * told, [500, 500], 1000)
    np.testing.assert_allclose(advanced(FULL, first_state(FULL), mean).figures, told)
    single = replace(PLAN, measure=True)
    query = query_of(single.steps[-1], single)
    mean = RoundSum(query, 1000, query.figure / METRICS_NORM * told[1])
    np.testing.assert_allclose(advanced(single, first_state(single), mean).figures, told[1:])


# -- counts ---------------------------------------------------------------------------------------------------------


def test_a_persona_is_published_at_four_deviations_and_the_floor() -> None:
    counts = np.array([40.0, 39.0, 15.0, -3.0])
    assert published(counts, 10.0, 16) == [0]
    assert published(counts, 0.0, 15) == [0, 1, 2]
    assert published(counts, 0.0, 16) == [0, 1]


def test_a_large_slot_of_nobody_is_hardly_ever_published() -> None:
    """10^5 empty personas under noise: 4 deviations leave 3.2 in 10^5, so more than 20 come once in 10^8."""
    query = query_of(FULL.steps[3], transport="ideal")
    deviation = count_deviation(query, 1000)
    noise = np.random.default_rng(3).normal(0, deviation, 10**5)
    assert deviation == pytest.approx(4 * np.sqrt(1000 / 567), rel=1e-3)
    assert len(published(noise, deviation, 1)) < 20


@pytest.mark.parametrize(
    ("counts", "deviation", "said"),
    [
        ([990, 10], 2.0, True),
        ([700, 300], 2.0, False),
        ([95, 3, -20], 2.0, True),
        ([95, 40, -20], 20.0, False),  # one is published, but the other may well be there
        ([10, 3], 5.0, False),  # nothing stands out of the noise: nothing is said
    ],
)
def test_collapse_is_seen(counts: list[float], deviation: float, said: bool) -> None:
    assert collapsed(np.array(counts, float), deviation, 16) is said


def test_near_personas_merge_and_the_largest_is_split_into_the_free_slot() -> None:
    personas = np.array([[0.0, 0.0], [0.004, 0.0], [1.0, 0.0]])
    after, events = tended(personas, np.array([300.0, 100.0, 500.0]), 2.0, 16, 0.02, np.random.default_rng(1))
    assert events == [Event("merged", 1, 0), Event("split", 1, 2)]
    np.testing.assert_allclose(after[0], [0.001, 0.0])
    assert np.linalg.norm(after[1] - after[2]) == pytest.approx(0.02) and np.array_equal(after[2], personas[2])


def test_personas_are_left_alone_where_noise_could_explain_what_is_seen() -> None:
    personas = np.array([[0.0, 0.0], [1.0, 0.0]])
    for counts, deviation in (([10.0, 500.0], 20.0), ([10.0, 60.0], 20.0), ([4.0, 20.0], 0.0)):
        after, events = tended(personas, np.array(counts), deviation, 16, 0.02, np.random.default_rng(1))
        assert events == [] and np.array_equal(after, personas), (counts, deviation)


def test_shrinking_takes_off_the_length_that_noise_adds() -> None:
    """300 dimensions, length 0.5 under noise that alone is 0.87 long: what is left is far nearer to the truth."""
    rng, truth = np.random.default_rng(2), np.zeros(300)
    truth[0] = 0.5
    noisy = truth + rng.normal(0, 0.05, (200, 300))
    shrunken = shrunk(noisy, np.full(200, 0.05))
    assert np.linalg.norm(noisy, axis=1).mean() > 0.95
    along = shrunken @ truth / 0.5
    assert ((shrunken - truth) ** 2).sum(1).mean() < 0.3 * ((noisy - truth) ** 2).sum(1).mean()
    assert 0 < along.mean() < 0.5
    assert not shrunk(np.zeros((2, 3)), np.ones(2)).any()
    np.testing.assert_allclose(np.linalg.norm(shrunk(np.full((1, 4), 9.0), np.zeros(1))), 1)


def test_telling_words_stand_out_of_noise_and_chance() -> None:
    words = ["tea", "goal", "river", "music"]
    members = np.array([300.0, 700.0])
    counts = np.array([[60.0, 3.0, 30.0, 31.0], [20.0, 140.0, 70.0, 71.0]])
    assert telling_words(counts, members, 1.0, words, 3) == [["tea"], ["goal"]]
    assert telling_words(counts, members, 200.0, words, 3) == [[], []]
    swapped = telling_words(counts[::-1], members[::-1], 1.0, words, 3)
    assert swapped == [["goal"], ["tea"]]


def test_noise_alone_names_hardly_any_word() -> None:
    """2,000 words that nobody uses, twice, under noise of deviation 5: four deviations let 3 in 10^5 through."""
    rng = np.random.default_rng(5)
    found = telling_words(rng.normal(0, 5, (2, 2000)), np.array([400.0, 600.0]), 5.0, ["w"] * 2000, 50)
    assert sum(map(len, found)) <= 2


def test_words_that_one_kind_uses_more_are_named_whatever_a_person_adds_to_each() -> None:
    """Two kinds of 250 people, 400 words used by one in ten; the first kind uses ten of these four times as often."""
    rng = np.random.default_rng(3)
    words = [f"word{place}" for place in range(400)]
    chances = np.full((2, 400), 0.1)
    chances[0, :10] = 0.4
    counts = np.zeros((2, 400))
    for kind in range(2):
        used = rng.random((250, 400)) < chances[kind]
        counts[kind] = (used / np.sqrt(used.sum(axis=1, keepdims=True))).sum(axis=0)
    first, second = telling_words(counts, np.array([250.0, 250.0]), 0.5, words, 20)
    assert set(first) == set(words[:10]) and second == []
    noisy = telling_words(counts + rng.normal(0, 2.5, counts.shape), np.array([250.0, 250.0]), 2.5, words, 20)
    assert set(noisy[0]) <= set(words[:10]) and noisy[1] == []
