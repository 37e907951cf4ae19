"""Attacks work where nothing protects, fall to what is allowed where something does, and are red where it is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.audit.bounds import normal_tail
from simulation.attacks import inversion, persona, release
from simulation.attacks.federation import Training
from simulation.attacks.outcome import Attack, Success, allowed_guess, allowed_pair, ranking, share
from simulation.attacks.tiny import tiny_model
from simulation.mechanism.planting import planted

ROOT = bytes(range(32))


def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def test_a_share_has_wilsons_interval_and_stays_within_zero_and_one() -> None:
    found = share(13, 40, "told")
    assert (found.low, found.high) == pytest.approx((0.2008, 0.4798), abs=1e-3)
    assert share(0, 10, "told").low == pytest.approx(0.0, abs=1e-12)
    assert share(10, 10, "told").high == pytest.approx(1.0, abs=1e-12)


def test_the_interval_of_a_ranking_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(5)
    truth = normal_tail(-1 / np.sqrt(2))
    inside = [ranking(draws.normal(1, 1, 30), draws.normal(0, 1, 30), "people") for _ in range(400)]
    covered = sum(each.low <= truth <= each.high for each in inside)
    assert 360 <= covered <= 395
    assert abs(np.mean([each.value for each in inside]) - truth) < 0.01


def test_what_is_allowed_is_what_the_best_test_between_two_gaussians_reaches() -> None:
    draws, mu, trials = np.random.default_rng(6), 1.3, 200_000
    right = (draws.normal(mu, 1, trials) > mu / 2).mean() / 2 + (draws.normal(0, 1, trials) <= mu / 2).mean() / 2
    assert right == pytest.approx(allowed_pair(mu), abs=0.004)
    threshold = -np.quantile(draws.normal(0, 1, trials), 0.1)  # a test that finds by chance one time in ten
    assert (draws.normal(mu, 1, trials) > threshold).mean() == pytest.approx(allowed_guess(mu, 0.1), abs=0.01)
    assert allowed_guess(0.0, 0.25) == pytest.approx(0.25)


def test_an_attack_without_teeth_says_so_and_one_beyond_what_is_allowed_is_red() -> None:
    weak, strong = Success(0.5, 0.4, 0.6, "weak"), Success(0.95, 0.9, 1.0, "strong")
    assert not Attack("a", "t", weak, weak, 0.5, 0.7, "").has_teeth
    assert Attack("a", "t", strong, weak, 0.5, 0.7, "").holds
    assert not Attack("a", "t", strong, strong, 0.5, 0.7, "").holds
    assert json.loads(json.dumps(Attack("a", "t", strong, weak, 0.5, 0.7, "").as_dict()))["teeth"] is True


def test_a_persona_is_told_in_the_clear_and_by_chance_from_a_masked_vector(tmp_path: Path) -> None:
    found = persona.attack_persona(tmp_path, ROOT, rng(), persona.Size(people=24, rounds=2, rank=8))
    assert found.unprotected.value == 1.0
    assert found.holds
    assert found.protected.low <= found.chance


def test_a_short_text_is_read_from_a_bare_update_and_not_from_what_the_server_has(tmp_path: Path) -> None:
    found = inversion.attack_update(tmp_path, ROOT, rng(), inversion.Size(people=3))
    assert found.unprotected.value > 0.85
    assert found.protected.value < 0.2
    assert found.holds


def test_a_text_of_more_positions_than_the_rank_is_not_read_by_the_span_check(tmp_path: Path) -> None:
    """Why the check needs short texts, and why it says nothing about long ones."""
    found = inversion.attack_update(tmp_path, ROOT, rng(), inversion.Size(people=3, rank=8, characters=16))
    assert found.unprotected.value < 0.5


def test_attacks_on_a_release_run_to_their_end_at_a_size_that_shows_nothing(tmp_path: Path) -> None:
    size = release.Size(people=3, others=3, candidates=4, rank=8, training=Training(rounds=1, steps=1))
    found = release.attack_release(tmp_path, ROOT, rng(), size)
    assert [each.name for each in found] == ["membership", "record", "exposure", "extraction"]
    assert all(each.allowed >= each.chance for each in found)


def test_the_same_seed_makes_the_same_tiny_model(tmp_path: Path) -> None:
    one, two = (tiny_model(tmp_path / name, 8) for name in ("one", "two"))
    assert all(
        (a == b).all() for a, b in zip(one.net.state_dict().values(), two.net.state_dict().values(), strict=True)
    )


@pytest.mark.slow
def test_releases_are_attacked_with_teeth_and_hold_and_without_noise_they_do_not(tmp_path: Path) -> None:
    found = {each.name: each for each in release.attack_release(tmp_path / "as-it-is", ROOT, rng(), release.Size())}
    assert found["membership"].has_teeth
    assert found["record"].has_teeth
    assert found["exposure"].has_teeth
    assert all(each.holds for each in found.values())
    with planted("no-noise"):
        broken = release.attack_release(tmp_path / "no-noise", ROOT, rng(), release.Size())
    assert not broken[0].holds
