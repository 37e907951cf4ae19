"""Attacks work where nothing protects, fall to what is allowed where something does, and are red where it is broken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import confide
from privacy.audit.bounds import normal_tail
from privacy.errors import ConfigError
from simulation.attacks import attributes, facts, inversion, matching, persona, release
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


@pytest.mark.slow
def test_a_text_longer_than_the_rank_is_read_by_matching_its_gradient(tmp_path: Path) -> None:
    """28 characters; at 1 in 27 by chance, 5 right ones would be found by guessing once in two hundred times."""
    size = inversion.Size(people=2, rank=8, characters=14)
    found = matching.attack_by_matching(tmp_path, ROOT, rng(), size)
    assert found.has_teeth and found.unprotected.value > 5 / 28
    assert found.protected.value < found.unprotected.value
    assert found.holds


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


def invented_traits(draws: np.random.Generator, people: int) -> attributes.Traits:
    """Return people who name what they like; half of them like one of two things, and nobody else does."""
    common = ("tea", "rain", "books", "trains", "walks", "bread")
    holds = np.arange(people) % 2 == 0
    texts = {
        f"person-{i}": (f"i like {' '.join(draws.choice(common, 3))} and {'sailing' if own else 'chess'}",)
        for i, own in enumerate(holds)
    }
    return attributes.Traits(texts, holds, "likes sailing")


def test_a_trait_is_told_by_words_until_they_are_taken_out(tmp_path: Path) -> None:
    def scrub(texts: Sequence[str]) -> list[str]:
        return [text.rsplit(" ", 1)[0] for text in texts]

    words, updates = attributes.attack_traits(tmp_path, ROOT, invented_traits(rng(), 12), scrub)
    assert words.unprotected.value == 1.0
    assert words.protected.value < 0.8
    assert updates.holds
    assert updates.protected.low <= updates.chance


def test_the_guess_of_a_person_never_rests_on_that_persons_own_trait() -> None:
    """Leave one out: with the trait of one person turned round, the guess of that person stays."""
    draws = np.random.default_rng(8)
    rows, holds = draws.normal(size=(14, 30)), np.arange(14) % 3 == 0
    texts = [" ".join(draws.choice(["a", "b", "c", "d", "e", "f"], 3)) for _ in range(14)]
    for i in range(14):
        turned = holds.copy()
        turned[i] = not turned[i]
        assert attributes.by_ridge(rows, holds)[i] == attributes.by_ridge(rows, turned)[i]
        assert attributes.by_words(texts, holds)[i] == attributes.by_words(texts, turned)[i]


def test_facts_are_read_ranked_and_too_few_are_refused(tmp_path: Path) -> None:
    profiles = tmp_path / "profiles.jsonl"
    lines = [{"user": f"p{i}", "profile": {"privacy_info": f"Fact {i}; Other {i}; Third"}} for i in range(6)]
    profiles.write_text("\n".join(json.dumps(line) for line in [*lines, {"user": "q", "profile": {}}]))
    found = facts.read_facts(profiles, "privacy_info")
    assert found[0] == ("Fact 0", "Other 0")
    assert len(found) == 6
    size = release.Size(people=3, others=3, rank=8, training=Training(rounds=1, steps=1))
    attack = facts.attack_facts(tmp_path, ROOT, rng(), found, size)
    assert attack.allowed >= 0.5
    with pytest.raises(ConfigError, match="6 people"):
        facts.attack_facts(tmp_path, ROOT, rng(), found, release.Size())


@pytest.mark.parametrize("family", ["trait", "facts"])
def test_attacks_that_need_files_say_so(family: str) -> None:
    assert confide.run(confide.confide, ["audit", "attacks", "--only", family]) == 2


def test_profiles_that_are_none_are_refused(tmp_path: Path) -> None:
    people, profiles = tmp_path / "people.jsonl", tmp_path / "profiles.jsonl"
    people.write_text('{"user": "ann", "text": "hello"}\n')
    profiles.write_text('{"user": "ann", "profile": {"age": 40}}\n')
    with pytest.raises(ConfigError, match="fewer than ten"):
        attributes.read_traits(people, profiles, "age")
    profiles.write_text("no json")
    with pytest.raises(ConfigError, match="lines of user"):
        attributes.read_traits(people, profiles, "age")


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
