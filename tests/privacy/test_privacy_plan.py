"""The plan says what a run then shows: the same accounting, and noise as it is really added."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from privacy.accounting import epsilon_zcdp
from privacy.answer import make_answer, noisy_mean, slotted_update
from privacy.errors import ConfigError
from privacy.plan import METRICS_ONLY, STAY_LOCAL, WORTH_IT, Campaign, largest_dim, noise_ratio, plan, usable_ratio
from privacy.plan_cli import plan as command
from privacy.query import Cohort, Limits, Query


@pytest.mark.parametrize(("people", "ratio"), [(16, 5.0), (124, 0.7), (1700, 0.05)])
def test_figures_of_the_design(people: int, ratio: float) -> None:
    """Epsilon 8, 4,480 numbers, two participations, delta 1e-6, nobody drops out: noise against the clip."""
    found = plan(Campaign(people, epsilon=8.0, delta=1e-6, dropout=0.0, dim=4480, alpha=0.5))
    assert found.noise_to_clip == pytest.approx(ratio, rel=0.08)
    assert found.noise_ratio == pytest.approx(2 * found.noise_to_clip)
    assert found.epsilon <= 8.0
    assert found.epsilon == pytest.approx(8.0, rel=1e-4)


def test_verdicts() -> None:
    assert plan(Campaign(1700, epsilon=8.0)).verdict == WORTH_IT
    assert plan(Campaign(16, epsilon=8.0)).verdict == METRICS_ONLY
    assert plan(Campaign(10, epsilon=0.5)).verdict == STAY_LOCAL
    assert plan(Campaign(1700, epsilon=8.0, dropout=0.4)).verdict == STAY_LOCAL


def test_a_known_case_in_all_its_figures() -> None:
    found = plan(Campaign(100, noise_multiplier=Fraction(1), delta=1e-6, rounds=1, dropout=0.1, dim=1000, alpha=0.5))
    assert (found.cohort.invited, found.cohort.min_survivors, found.cohort.honest) == (100, 67, 57)
    assert found.survivors == 90
    assert found.rho == Fraction(1, 2)
    assert found.epsilon_gdp == pytest.approx(4.887, abs=1e-3)
    assert found.epsilon == epsilon_zcdp(Fraction(1, 2), 1e-6)
    assert found.sybil_floor_epsilon == pytest.approx(epsilon_zcdp(Fraction(57, 2), 1e-6))
    assert found.noise_ratio == pytest.approx(2 * math.sqrt(1000 / (90 * 57)))
    assert found.bytes_up == 4 * 1000 + 256
    assert found.verdict == WORTH_IT
    assert found.suggestions == ()


def test_masks_take_the_server_to_the_releases_epsilon_and_leave_the_sybil_floor() -> None:
    clear, masked = (plan(Campaign(100, epsilon=8.0, transport=transport)) for transport in ("ideal", "masked"))
    assert masked.server_epsilon == masked.epsilon == clear.epsilon
    assert clear.server_epsilon == clear.sybil_floor_epsilon == masked.sybil_floor_epsilon > 50
    for transport in ("ideal", "masked"):
        text = " ".join(run("--people", "100", "--epsilon", "8", "--transport", transport)[1].split())
        assert "Sybil floor" in text and "against the server" in text
        assert ("honest directory of keys" in text) == (transport == "masked")
    assert isinstance(run("--people", "100", "--epsilon", "8", "--transport", "off")[2], ConfigError)


def test_people_are_spread_over_rounds() -> None:
    campaign = Campaign(1660, epsilon=8.0, rounds=12, participations=3)
    assert campaign.cohort.invited == 415
    assert plan(campaign).rho == 3 / (2 * campaign.z**2)


CAMPAIGNS = st.builds(
    Campaign,
    people=st.integers(10, 5000),
    epsilon=st.floats(0.5, 12),
    rounds=st.integers(1, 6),
    dropout=st.sampled_from([0.0, 0.1, 0.2]),
    personas=st.integers(1, 4),
    dim=st.integers(1, 20_000),
    alpha=st.floats(0.1, 1.0),
)


@settings(deadline=None, max_examples=60)
@given(CAMPAIGNS)
def test_plans_are_consistent(campaign: Campaign) -> None:
    found = plan(campaign)
    assert found.epsilon <= (campaign.epsilon or 0) + 1e-9
    assert found.epsilon_gdp <= found.epsilon <= found.sybil_floor_epsilon + 1e-12
    if found.largest_dim:
        assert noise_ratio(replace(campaign, dim=min(found.largest_dim, 2**24))) <= 0.2 * (1 + 1e-9)
    assert noise_ratio(replace(campaign, dim=found.largest_dim + 1)) > 0.2 or found.largest_dim >= 2**24
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == found.verdict


def test_what_would_do_does() -> None:
    campaign = Campaign(24, epsilon=4.0, rounds=2)
    found = plan(campaign)
    assert found.verdict != WORTH_IT
    more, smaller, larger = found.suggestions
    people = int(more.split()[2].replace(",", ""))
    assert plan(replace(campaign, people=people, delta=campaign.delta_used)).verdict == WORTH_IT
    dim = int(smaller.split()[3].replace(",", ""))
    assert plan(replace(campaign, dim=dim)).verdict == WORTH_IT
    assert plan(replace(campaign, dim=dim + 1)).verdict != WORTH_IT
    assert dim == largest_dim(campaign, usable_ratio(campaign))
    epsilon = float(larger.split()[3])
    assert plan(replace(campaign, epsilon=epsilon + 0.1)).verdict == WORTH_IT


def test_a_lost_third_is_told() -> None:
    found = plan(Campaign(100, epsilon=8.0, dropout=0.4))
    assert "at most 33%" in found.suggestions[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"people": 0, "epsilon": 1.0},
        {"people": 10},
        {"people": 10, "epsilon": 1.0, "noise_multiplier": Fraction(1)},
        {"people": 10, "noise_multiplier": Fraction(0)},
        {"people": 10, "epsilon": 1.0, "rounds": 0},
        {"people": 10, "epsilon": 1.0, "rounds": 2, "participations": 3},
        {"people": 10, "epsilon": 1.0, "dropout": 1.0},
        {"people": 10, "epsilon": 1.0, "personas": 0},
        {"people": 10, "epsilon": 1.0, "dim": 0},
        {"people": 10, "epsilon": 1.0, "alpha": 0.0},
        {"people": 10, "epsilon": 1.0, "delta": 0.0},
        {"people": 10, "epsilon": -1.0},
        {"people": 10, "epsilon": float("nan")},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        plan(Campaign(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(("personas", "dim"), [(1, 4480), (2, 2000)])
def test_the_predicted_noise_ratio_is_that_of_a_round(personas: int, dim: int) -> None:
    """Real clip, rounding, noise, ring and dropout; steps made so that their mean has the length that was planned."""
    campaign = Campaign(60, noise_multiplier=Fraction(1), rounds=1, dropout=0.1, personas=personas, dim=dim, alpha=0.5)
    query = Query(
        federation="fed", campaign="c", round=0, attempt=0, purpose="train.persona", slots=personas, slot_dim=dim,
        clip_norm=Fraction(1, 10), noise_multiplier=Fraction(1), cohort=Cohort(60), transport="ideal",
        release_sha256="0" * 64, basis_sha256="0" * 64, policy_sha256="0" * 64, ledger_head="0" * 64,
        objective="next-token", limits=Limits(1, 1),
    )  # fmt: skip
    survivors, room = campaign.survivors, float(query.clip_norm) * (math.sqrt(15) / 4 if personas > 1 else 1.0)
    common = np.random.default_rng(0).normal(size=dim)
    common /= np.linalg.norm(common)
    answers, exact = [], np.zeros(query.dim)
    for device in range(survivors):
        other = np.random.default_rng(device + 1).normal(size=dim)
        other -= common * (other @ common)
        step = room * (0.5 * common + math.sqrt(0.75) * other / np.linalg.norm(other))
        vector = slotted_update(step, query, device % personas)
        answers.append(make_answer(vector, query, f"d{device}", bytes([device]) * 32))
        exact += vector / survivors
    noise = (noisy_mean(query, answers) - exact)[:dim]
    signal = 0.5 * room * (math.ceil(survivors / personas) / survivors)
    assert np.linalg.norm(noise) / signal == pytest.approx(noise_ratio(campaign), rel=0.05)


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(command)
    outcome = CliRunner().invoke(app, list(arguments))
    return outcome.exit_code, outcome.stdout, outcome.exception


def test_the_command_prints_a_table_or_one_json_object() -> None:
    status, text, _ = run("--people", "124", "--epsilon", "8")
    assert status == 0
    assert "per user at delta 1e-06" in " ".join(text.split())
    assert WORTH_IT in text
    status, text, _ = run("--people", "16", "--epsilon", "8", "--json")
    value = json.loads(text)
    assert (status, value["verdict"], value["cohort"]["honest"]) == (0, METRICS_ONLY, 10)
    status, text, _ = run("--people", "16", "--noise-multiplier", "3/2", "--json")
    assert json.loads(text)["noise_multiplier"] == 1.5
    assert isinstance(run("--people", "16", "--noise-multiplier", "x")[2], ConfigError)
    assert isinstance(run("--people", "16")[2], ConfigError)


# Campaigns of docs/utility.md, four rounds of everybody: people, epsilon, rank, gain over that of rank 8 without noise.
MEASURED = [(1700, 8.0, 8, 5.67 / 5.68), (1700, 8.0, 16, 6.61 / 5.68), (1700, 8.0, 32, 7.18 / 5.68)]


@pytest.mark.parametrize(("people", "epsilon", "rank", "gain"), MEASURED)
def test_what_a_rank_is_worth_is_what_campaigns_gained(people: int, epsilon: float, rank: int, gain: float) -> None:
    campaign = Campaign(people=people, epsilon=epsilon, delta=1e-6, rounds=4, dropout=0.0)
    [found] = [each for each in plan(campaign).by_rank if each.rank == rank]
    assert found.worth == pytest.approx(gain, abs=0.1)


def test_more_people_carry_more_numbers_and_fewer_carry_less() -> None:
    best = [
        max(plan(Campaign(people=people, epsilon=8.0, rounds=4)).by_rank, key=lambda each: each.worth).rank
        for people in (100, 700, 5000)
    ]
    assert best == sorted(best) and best[0] < best[-1]
    sent = [each.bytes_up for each in plan(Campaign(people=700, epsilon=8.0)).by_rank]
    assert sent == sorted(sent)
