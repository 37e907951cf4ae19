"""A composition is a convex sum that stays on its device, kept only where text that it was not fitted to agrees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.compose import GLOBAL_ALONE, Composition, by_counts, by_portrait, fitted, prompt_of, soup
from privacy.errors import ConfigError

ADAPTERS = {
    "global": {"m": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)},
    "persona-0": {"m": np.array([[0.0, 2.0], [0.0, 0.0]], np.float32)},
    "persona-1": {"m": np.array([[0.0, 0.0], [4.0, 0.0]], np.float32)},
}
NAMES = ["persona-0", "persona-1"]


def distance_to(wanted: Composition) -> Callable[[Composition], float]:
    """Return nats that grow with the distance of a composition to the wanted one."""

    def nats(composition: Composition) -> float:
        apart = sum((composition.personas.get(n, 0.0) - wanted.personas.get(n, 0.0)) ** 2 for n in NAMES)
        return 100 * (apart + (composition.own - wanted.own) ** 2)

    return nats


def test_a_composition_is_the_weighted_sum_of_published_cores() -> None:
    found = Composition({"persona-0": 0.5, "persona-1": 0.25}).cores(ADAPTERS)
    np.testing.assert_array_equal(found["m"], [[1, 1], [1, 1]])
    np.testing.assert_array_equal(GLOBAL_ALONE.cores(ADAPTERS)["m"], ADAPTERS["global"]["m"])
    with pytest.raises(ConfigError, match="persona-7"):
        Composition({"persona-7": 1.0}).cores(ADAPTERS)


@pytest.mark.parametrize("shares", [{"a": 0.6, "b": 0.6}, {"a": -0.1}, {"a": float("nan")}, {"a": 2.0}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Composition(shares)
    with pytest.raises(ConfigError):
        Composition(own=1.5)


def test_a_new_person_starts_from_what_is_published() -> None:
    assert by_counts({"persona-0": 30.0, "persona-1": 10.0, "persona-2": -4.0}).personas == {
        "persona-0": 0.75,
        "persona-1": 0.25,
        "persona-2": 0.0,
    }
    assert by_counts({}) == by_counts({"persona-0": -1.0}) == GLOBAL_ALONE
    centroids = {"persona-0": np.array([1.0, 0.0]), "persona-1": np.array([0.0, 1.0])}
    near = by_portrait(np.array([0.9, 0.1]), centroids).personas
    assert near["persona-0"] > 0.99 and sum(near.values()) == pytest.approx(1)
    between = by_portrait(np.array([0.5, 0.5]), centroids).personas
    assert between["persona-0"] == pytest.approx(0.5)
    assert by_portrait(np.zeros(2), centroids) == by_portrait(np.ones(2), {}) == GLOBAL_ALONE


@given(st.dictionaries(st.sampled_from([*NAMES, "persona-2"]), st.floats(0, 1e6), min_size=1))
def test_a_soup_keeps_the_proportions_of_the_wishes(wishes: dict[str, float]) -> None:
    if sum(wishes.values()) == 0:
        with pytest.raises(ConfigError):
            soup(wishes)
        return
    shares = soup(wishes).personas
    assert sum(shares.values()) == pytest.approx(1)
    for name, wish in wishes.items():
        assert shares[name] == pytest.approx(wish / sum(wishes.values()))
    with pytest.raises(ConfigError):
        soup({**wishes, "persona-0": -1.0})


@pytest.mark.parametrize(
    "wanted",
    [GLOBAL_ALONE, Composition({"persona-1": 1.0}), Composition({"persona-0": 0.5, "persona-1": 0.5})],
)
def test_what_serves_both_halves_of_the_text_is_found(wanted: Composition) -> None:
    nats = distance_to(wanted)
    found = fitted(NAMES, nats, nats)
    assert nats(found) == pytest.approx(0, abs=1e-9)
    with_own = Composition(wanted.personas, 1.0)
    assert fitted(NAMES, nats, distance_to(with_own), own=True).own == 1.0
    assert fitted(NAMES, nats, nats, own=True).own == 0.0


def test_a_prompt_says_what_the_release_says_of_the_persona() -> None:
    told = {"persona-0": "bread, river", "persona-1": ""}
    assert "bread, river" in prompt_of(Composition({"persona-0": 0.6, "persona-1": 0.4}), told)
    for composition in (GLOBAL_ALONE, Composition({"persona-0": 0.4}), Composition({"persona-1": 1.0})):
        assert prompt_of(composition, told) == ""
    assert prompt_of(Composition({"persona-9": 1.0}), told) == ""


def test_what_only_one_half_of_the_text_likes_is_not_kept() -> None:
    likes, dislikes = distance_to(Composition({"persona-0": 1.0})), distance_to(GLOBAL_ALONE)
    assert fitted(NAMES, likes, dislikes) == GLOBAL_ALONE
    assert fitted([], likes, dislikes) == GLOBAL_ALONE
    start = Composition({"persona-0": 0.7, "persona-1": 0.3})
    assert fitted(NAMES, likes, distance_to(start), start) == start
