"""Bounds of the audits: values of the papers, what exact counting says, and that the error is what is stated."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from privacy.audit.bounds import (
    all_right_epsilon,
    all_right_mu,
    binomial_tail,
    chi_squared_p_value,
    chi_squared_quantile,
    deviation_bound,
    gaussian_mu,
    kolmogorov_p_value,
    least_right,
    normal_tail,
    one_run_epsilon,
    one_run_p_value,
    seen_shortfall,
    upper_limit,
)
from privacy.errors import ConfigError


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "expected"),
    [
        (100, 100, 100, 0.0, 3.4930),
        (100, 100, 100, 1e-5, 3.4902),
        (1000, 1000, 1000, 0.0, 5.8091),
        (1000, 1000, 1000, 1e-5, 5.7823),
        (400, 400, 360, 0.0, 1.917),
    ],
)
def test_one_run_bounds_are_those_of_an_independent_computation(
    canaries: int, guesses: int, right: int, delta: float, expected: float
) -> None:
    assert one_run_epsilon(canaries, guesses, right, delta, 0.05) == pytest.approx(expected, abs=6e-4)


def test_with_delta_zero_the_p_value_is_a_plain_binomial_tail_counted_exactly() -> None:
    chance = Fraction(3, 4)  # e^epsilon / (1 + e^epsilon) at epsilon = log 3
    exact = sum(math.comb(20, k) * chance**k * (1 - chance) ** (20 - k) for k in range(17, 21))
    assert one_run_p_value(20, 20, 17, math.log(3), 0.0) == pytest.approx(float(exact), rel=1e-12)
    assert binomial_tail(20, 0.75, 17) == pytest.approx(float(exact), rel=1e-12)


def test_the_part_of_delta_is_the_worst_average_below_the_count() -> None:
    masses = [math.comb(6, k) * 0.5**6 for k in range(7)]
    worst = max(sum(masses[5 - i : 5]) / i for i in range(1, 6))
    expected = masses[5] + masses[6] + 2 * 10 * 1e-3 * worst
    assert one_run_p_value(10, 6, 5, 0.0, 1e-3) == pytest.approx(expected, rel=1e-12)


def test_more_right_guesses_never_show_less_and_none_show_nothing() -> None:
    shown = [one_run_epsilon(64, 32, right, 1e-5, 0.05) for right in range(33)]
    assert shown == sorted(shown)
    assert shown[0] == shown[16] == 0.0
    assert shown[-1] == all_right_epsilon(64, 32, 1e-5, 0.05)


def test_as_many_right_guesses_as_are_named_refute_a_claim_and_one_fewer_do_not() -> None:
    needed = least_right(256, 128, 0.93, 1e-5, 0.001)
    assert one_run_epsilon(256, 128, needed, 1e-5, 0.001) >= 0.93 > one_run_epsilon(256, 128, needed - 1, 1e-5, 0.001)
    assert least_right(4, 4, 5.0, 0.0, 0.001) == 5


def test_limits_of_a_probability_cover_it_at_the_stated_rate_counted_exactly() -> None:
    for truth in (0.02, 0.3, 0.8):
        masses = [math.comb(40, k) * truth**k * (1 - truth) ** (40 - k) for k in range(41)]
        missed = sum(mass for k, mass in enumerate(masses) if upper_limit(k, 40, 0.05) < truth)
        assert missed <= 0.05
    assert upper_limit(0, 40, 0.05) == pytest.approx(1 - 0.05 ** (1 / 40), abs=1e-9)
    assert upper_limit(40, 40, 0.05) == 1.0


@pytest.mark.parametrize(("hits", "trials", "error"), [(-1, 4, 0.1), (5, 4, 0.1), (0, 0, 0.1), (1, 4, 0.0)])
def test_counts_that_cannot_be_have_no_limit(hits: int, trials: int, error: float) -> None:
    with pytest.raises(ConfigError):
        upper_limit(hits, trials, error)


def test_a_gaussian_of_mu_one_is_not_refuted_and_of_mu_two_is() -> None:
    trials = 4000

    def shown(mu: float) -> float:
        wrong = round(trials * normal_tail(mu / 2))
        return gaussian_mu(wrong, trials, wrong, trials, 0.01)

    assert 0.85 < shown(1.0) < 1.0 < 1.85 < shown(2.0) < 2.0 < all_right_mu(trials, trials, 0.01)


def test_quantiles_of_chi_squared_are_those_of_scipy() -> None:
    expected = {1e-4: 3767.9151, 0.05: 3948.2705, 0.5: 4095.3333, 0.999: 4381.4049}  # scipy's chi2.ppf(p, 4096)
    for probability, value in expected.items():
        assert chi_squared_quantile(probability, 4096) == pytest.approx(value, rel=1e-5)
    assert chi_squared_p_value(4096, 4096) > 0.9
    assert chi_squared_p_value(4096 * 1.1, 4096) < 1e-4 > chi_squared_p_value(4096 * 0.9, 4096)


def test_noise_seen_bounds_the_deviation_from_above_and_power_is_stated_below_one() -> None:
    assert 1 < deviation_bound(10_000.0, 10_000, 0.01) < 1.02
    assert 0.97 < seen_shortfall(10_000, 0.01) < 1


def test_the_shape_test_takes_a_gaussian_and_refuses_what_is_near_it() -> None:
    sample = np.random.default_rng(3).normal(size=20_000)
    assert kolmogorov_p_value(sample) > 0.01
    assert kolmogorov_p_value(sample * 0.9) < 1e-4 > kolmogorov_p_value(sample * 1.1)
    assert kolmogorov_p_value(np.random.default_rng(3).uniform(-1.7, 1.7, 20_000)) < 1e-4
