"""Bounds that an audit may state from counts and residuals: confidence limits first, epsilon from them, never more.

Everything here is one-sided and holds with the stated error: a lower bound on epsilon (or mu) that is above the claim
refutes the claim, except with that probability. One below it proves nothing. `all_right` functions give the ceiling,
the largest bound that so many trials could ever show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError

_NORMAL: Final = NormalDist()
MAX_EPSILON: Final = 50.0


def quantile(probability: float) -> float:
    """Return the standard normal quantile of `probability`, within the range that a float distinguishes."""
    return _NORMAL.inv_cdf(min(max(probability, 1e-300), 1 - 1e-16))


def normal_tail(value: float) -> float:
    """Return Pr[N(0, 1) >= value]."""
    return math.erfc(value / math.sqrt(2)) / 2


def log_binomial(trials: int, probability: float) -> NDArray[np.float64]:
    """Return log Pr[Bin(trials, probability) = k] for k = 0 .. trials, float64 [trials + 1]."""
    counts = np.arange(trials + 1)
    if probability <= 0 or probability >= 1:
        certain = 0 if probability <= 0 else trials
        return np.where(counts == certain, 0.0, -np.inf)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways = logs[trials] - logs - logs[::-1]
    found: NDArray[np.float64] = ways + counts * math.log(probability) + (trials - counts) * math.log1p(-probability)
    return found


def binomial_tail(trials: int, probability: float, least: int) -> float:
    """Return Pr[Bin(trials, probability) >= least]."""
    return min(1.0, float(np.exp(log_binomial(trials, probability)[max(0, least) :]).sum())) if least <= trials else 0.0


def upper_limit(hits: int, trials: int, error: float) -> float:
    """Return the one-sided upper limit of a probability after `hits` in `trials` (Clopper, Pearson 1934).

    The true probability is above it with at most `error`. Raises ConfigError for counts that cannot be.
    """
    if not 0 <= hits <= trials or trials < 1 or not 0 < error < 1:
        raise ConfigError(f"{hits} of {trials} trials at error {error} make no confidence limit")
    if hits == trials:
        return 1.0
    return _least(lambda p: 1 - binomial_tail(trials, p, hits + 1) <= error, hits / trials, 1.0)


def gaussian_mu(false_positives: int, outs: int, misses: int, ins: int, error: float) -> float:
    """Return a lower bound on mu of any mu-GDP mechanism whose attack made these errors; 0 where none is shown.

        mu >= Phi^-1(1 - alpha_up) - Phi^-1(beta_up)        (Dong, Roth, Su 2022; Nasr et al. 2023)

    alpha_up and beta_up are upper limits of the two error rates, each at error / 2. Trials must be independent and the
    threshold fixed before them.
    """
    alpha = upper_limit(false_positives, outs, error / 2)
    beta = upper_limit(misses, ins, error / 2)
    return max(0.0, quantile(1 - alpha) - quantile(beta)) if alpha < 1 and beta < 1 else 0.0


def all_right_mu(outs: int, ins: int, error: float) -> float:
    """Return the ceiling of `gaussian_mu`: no error in all trials."""
    return gaussian_mu(0, outs, 0, ins, error)


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return the probability that an (epsilon, delta)-DP run lets so many of the guesses be right, at most.

        Pr[Bin(r, q) >= v] + 2 m delta max_i Pr[v > Bin(r, q) >= v - i] / i,   q = e^epsilon / (1 + e^epsilon)

    Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846), Theorem 5.2: m canaries, each in or out by an independent fair
    coin, r guesses of which v are right. Nothing is assumed of the mechanism or of how the guesses are made.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ConfigError(f"{right} right of {guesses} guesses on {canaries} canaries")
    masses = np.exp(log_binomial(guesses, 1 / (1 + math.exp(-epsilon))))
    beyond = float(masses[right:].sum())
    below = np.cumsum(masses[:right][::-1])
    worst = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, beyond + 2 * canaries * delta * worst)


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, error: float) -> float:
    """Return the largest epsilon that `one_run_p_value` refutes at `error`: a lower bound; 0 where none is refuted."""
    if one_run_p_value(canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    return _least(lambda e: one_run_p_value(canaries, guesses, right, e, delta) > error, 0.0, MAX_EPSILON)


def all_right_epsilon(canaries: int, guesses: int, delta: float, error: float) -> float:
    """Return the ceiling of `one_run_epsilon`: every guess right."""
    return one_run_epsilon(canaries, guesses, guesses, delta, error)


def least_right(canaries: int, guesses: int, epsilon: float, delta: float, error: float) -> int:
    """Return how many right guesses refute `epsilon` at `error`; guesses + 1 where none would."""
    for right in range(guesses + 1):
        if one_run_p_value(canaries, guesses, right, epsilon, delta) <= error:
            return right
    return guesses + 1


def chi_squared_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of chi squared with `freedom` degrees, by Wilson and Hilferty 1931.

    Off by less than one part in 10^4 from 1,000 degrees on and down to tails of 10^-6; audits use thousands.
    """
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + quantile(probability) * math.sqrt(spread)) ** 3)


def chi_squared_p_value(value: float, freedom: int) -> float:
    """Return the two-sided p-value of a chi squared `value`, by the same approximation."""
    spread = 2 / (9 * freedom)
    score = ((max(value, 1e-300) / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    return min(1.0, 2 * normal_tail(abs(score)))


def deviation_bound(sum_of_squares: float, freedom: int, error: float) -> float:
    """Return the upper confidence limit of the deviation of Gaussian noise from its `sum_of_squares`.

    The deviation is above it with probability `error`: an audit that sees too little noise states this.
    """
    return math.sqrt(sum_of_squares / chi_squared_quantile(error, freedom))


def seen_shortfall(freedom: int, error: float, power: float = 0.8) -> float:
    """Return the ratio of deviations, below 1, that the two-sided test at `error` finds with probability `power`."""
    return math.sqrt(chi_squared_quantile(error / 2, freedom) / chi_squared_quantile(power, freedom))


def kolmogorov_p_value(sample: NDArray[np.float64]) -> float:
    """Return the p-value of `sample` [n] against N(0, 1): sup |F_n - Phi|, by Kolmogorov's limit; n > 1,000."""
    ordered = np.sort(sample)
    inside = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered.tolist()])
    steps = np.arange(len(ordered))
    gap = float(max((inside - steps / len(ordered)).max(), ((steps + 1) / len(ordered) - inside).max()))
    scaled = gap * (math.sqrt(len(ordered)) + 0.12 + 0.11 / math.sqrt(len(ordered)))
    if scaled < 0.2:
        return 1.0
    signed = (math.copysign(math.exp(-2 * (k * scaled) ** 2), k % 2 - 0.5) for k in range(1, 100))
    return min(1.0, max(0.0, 2 * sum(signed)))


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return where a condition that is false at `low` and true above some point begins to hold, to 2^-50."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low
