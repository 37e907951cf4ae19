"""Server steps: what each is by hand, what noise does to it, and that nothing is changed in place."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.errors import ConfigError
from privacy.schedule import share_left
from server.optimizer import FedAdam, FedAvg, Optimizer, schedule

OPTIMIZERS = [FedAvg(), FedAvg(2.5, 0.9), FedAdam(0.02), FedAdam(0.2, 0.0, 0.0, 1e-6)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_step_changes_nothing_in_place_and_keeps_shapes(optimizer: Optimizer) -> None:
    rng = np.random.default_rng(0)
    weights, velocity = rng.standard_normal(7), np.zeros(7)
    for _ in range(3):
        mean = rng.standard_normal(7)
        before = weights.copy(), velocity.copy(), mean.copy()
        after, kept = optimizer.step(weights, velocity, mean)
        for array, copy in zip((weights, velocity, mean), before, strict=True):
            np.testing.assert_array_equal(array, copy)
        assert after.shape == weights.shape and after.dtype == np.float64 and not np.array_equal(after, weights)
        weights, velocity = after, kept


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_zero_mean_from_nothing_moves_nothing(optimizer: Optimizer) -> None:
    weights = np.arange(5.0)
    np.testing.assert_array_equal(optimizer.step(weights, np.zeros(5), np.zeros(5))[0], weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_means_of_one_direction_lead_down_it(optimizer: Optimizer) -> None:
    weights, velocity, target = np.zeros(4), np.zeros(4), np.array([1.0, -2.0, 0.5, 0.25])
    for _ in range(200):
        weights, velocity = optimizer.step(weights, velocity, 0.02 * (target - weights))
    assert np.linalg.norm(weights - target) < np.linalg.norm(target) / 2


def test_momentum_adds_earlier_means() -> None:
    first, velocity = FedAvg(2.0, 0.5).step(np.zeros(2), np.zeros(2), np.array([1.0, 0.0]))
    second, _ = FedAvg(2.0, 0.5).step(first, velocity, np.array([0.0, 1.0]))
    np.testing.assert_allclose(second, [3.0, 2.0])


def test_adam_steps_have_one_length_whatever_the_means() -> None:
    rng = np.random.default_rng(1)
    for scale in (1e-6, 1.0, 1e3):
        weights, _ = FedAdam(0.01).step(np.zeros(400), np.zeros(400), scale * rng.standard_normal(400))
        assert np.linalg.norm(weights) == pytest.approx(0.01)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_a_share_shortens_the_step_and_nothing_else(optimizer: Optimizer) -> None:
    mean = np.array([1.0, -0.5, 0.25])
    whole, kept = optimizer.step(np.zeros(3), np.zeros(3), mean)
    part, same = optimizer.step(np.zeros(3), np.zeros(3), mean, 0.25)
    np.testing.assert_allclose(part, whole / 4)
    np.testing.assert_array_equal(kept, same)


def test_the_share_falls_from_one_to_the_last() -> None:
    assert [share_left(number, 5, 0.2) for number in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert share_left(0, 1, 0.2) == 1


def test_adam_does_not_blow_up_numbers_that_hold_less() -> None:
    mean = np.array([1.0] * 50 + [1e-9] * 50)
    weights, _ = FedAdam(0.01).step(np.zeros(100), np.zeros(100), mean)
    assert np.abs(weights[50:]).max() < 1e-6 * weights[:50].min()


@pytest.mark.parametrize("wrong", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"second": 1.0}, {"floor": 0.0}])
def test_values_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FedAdam(**wrong)


@pytest.mark.parametrize("rounds", [1, 2, 4, 5, 8, 16, 64])
def test_the_schedule_spends_one_length_over_any_number_of_rounds(rounds: int) -> None:
    rate, last = schedule("avg", rounds, 0.08)
    steps = [0.08 * rate * share_left(number, rounds, last) for number in range(rounds)]
    assert max(steps) <= 0.28 + 1e-12
    assert sum(steps) == pytest.approx(min(1.3, 0.28 * rounds * (1 + last) / 2))
    assert schedule("adam", rounds, 0.08)[0] == pytest.approx(0.38 * 0.08 * rate)
