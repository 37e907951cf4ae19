"""Known answers of sampled mechanisms, and the second accountant itself: dp-accounting against formulas of our own."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.special import gammaln, logsumexp

from privacy.accounting import epsilon_gdp, epsilon_zcdp, noise_multiplier_for, rho_for_epsilon, rho_of
from privacy.record import RecordCharge

# q, z, T, delta; epsilon by Mironov 2017, by dp-accounting's RDP, by its PLD. The published figures of the first five
# are 1.26 (Abadi et al. 2016), 2.92, 3.01, 1.19 and 7.10 (TensorFlow Privacy).
SAMPLED = [
    (0.01, 4.0, 10_000, 1e-5, 1.2586, 1.0355, 0.9470),
    (256 / 60000, 1.12, 14_062, 1e-5, 2.9222, 2.5186, 2.3102),
    (256 / 60000, 1.1, 14_062, 1e-5, 3.0083, 2.5966, 2.3817),
    (256 / 60000, 1.3, 3_515, 1e-5, 1.1921, 0.9544, 0.8645),
    (256 / 60000, 0.7, 10_546, 1e-5, 7.1013, 6.3195, 5.6394),
    (250 / 60000, 1.1, 14_400, 1e-5, 2.9699, 2.5617, 2.3496),
    (0.01, 0.8, 1_000, 1e-5, 4.3388, 3.6956, 3.1410),
    (0.004, 1.0, 1_000, 1e-6, 1.6557, 1.3057, 0.8136),
    (0.1, 1.0, 100, 1e-5, 8.8004, 7.9039, 7.0466),
    (0.1, 1.0, 200, 1e-6, 13.2502, 12.2933, 11.2347),
    (1.0, 1.0, 1, 1e-5, 5.2985, 4.7285, 4.3772),
    (1.0, 10.0, 100, 1e-5, 5.2985, 4.7285, 4.3772),
    (1.0, 5.0, 50, 1e-5, 7.7862, 7.0774, 6.5730),
    (1.0, 2.0, 10, 1e-6, 9.5615, 8.8469, 8.3062),
    (1.0, 1.0, 100, 1e-5, 98.0259, 96.1163, 91.8173),
]
ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]


def event_of(q: float, z: float, count: int) -> DpEvent:
    step = GaussianDpEvent(z) if q == 1 else PoissonSampledDpEvent(q, GaussianDpEvent(z))
    return SelfComposedDpEvent(step, count)


@pytest.mark.parametrize(("q", "z", "count", "delta", "classic", "rdp", "pld"), SAMPLED)
def test_dp_accounting_gives_the_figures_that_everybody_publishes(
    q: float, z: float, count: int, delta: float, classic: float, rdp: float, pld: float
) -> None:
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event_of(q, z, count))
    assert accountant.get_epsilon(delta) == pytest.approx(rdp, abs=2e-3)
    tight = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    tight.compose(event_of(q, z, count))
    assert tight.get_epsilon(delta) == pytest.approx(pld, abs=1e-3)
    assert RecordCharge("x", z, q, count, 1.0, delta).epsilon() == pytest.approx(pld, abs=1e-3)
    old = min(r + math.log(1 / delta) / (a - 1) for a, r in zip(ORDERS, rdp_curve(q, z, count), strict=True))
    assert old == pytest.approx(classic, rel=2e-3)
    assert pld <= rdp <= classic


def rdp_curve(q: float, z: float, count: int) -> list[float]:
    """Return the RDP of `count` sampled Gaussians at ORDERS, by dp-accounting."""
    accountant = RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event_of(q, z, count))
    return [float(value) for value in accountant._rdp]


def own_rdp(q: float, z: float, order: int) -> float:
    """Return the RDP of one sampled Gaussian at an integer order (Mironov, Talwar, Zhang 2019, eq. 6), by itself.

    1/(a-1) log sum_k C(a, k) (1-q)^(a-k) q^k exp(k(k-1) / (2 z^2))
    """
    k = np.arange(order + 1)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(order == k, 0.0, (order - k) * math.log1p(-q) if q < 1 else -np.inf)
    terms = binomial + rest + k * math.log(q) + k * (k - 1) / (2 * z * z)
    return float(logsumexp(terms)) / (order - 1)


def test_a_published_rdp_value_and_a_calibration() -> None:
    accountant = RdpAccountant([3.14159])
    accountant.compose(GaussianDpEvent(2.71828))
    assert float(accountant._rdp[0]) == pytest.approx(0.2125843, abs=1e-7)
    assert 3.14159 * float(rho_of(Fraction("2.71828"))) == pytest.approx(0.2125843, abs=1e-7)
    assert RecordCharge("x", 0.58626, 0.01, 1000, 1.0, 1e-5).epsilon() == pytest.approx(8, abs=2e-3)


def test_the_trap_of_replace_one_is_known() -> None:
    """RDP takes z as relative to the doubled sensitivity, PLD does not: one call, two meanings."""
    for accountant, epsilon in (
        (RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE), 4.7285),
        (PLDAccountant(NeighboringRelation.REPLACE_ONE), 9.9973),
    ):
        accountant.compose(GaussianDpEvent(1.0))
        assert accountant.get_epsilon(1e-5) == pytest.approx(epsilon, abs=1e-3)


@pytest.mark.statistical
def test_ten_thousand_random_configurations_agree_with_dp_accounting() -> None:
    """Relative 1e-6: our zCDP against RDP over fine orders at q = 1, our sampled RDP at integer orders otherwise."""
    rng = np.random.default_rng(20261125)
    worst_full = worst_sampled = 0.0
    integers = [2, 3, 5, 8, 16, 32, 64]
    for _ in range(5_000):
        z = Fraction(int(rng.integers(300, 30_000)), 1000)
        count, delta = int(rng.integers(1, 500)), float(10 ** -rng.uniform(3, 11))
        rho = count * rho_of(z)
        best = best_order(float(rho), delta)
        accountant = RdpAccountant(best)
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(float(z)), count))
        theirs = float(accountant.get_epsilon(delta))
        worst_full = max(worst_full, abs(epsilon_zcdp(rho, delta) - theirs) / theirs)
        assert epsilon_gdp(rho, delta) <= theirs * (1 + 1e-9)
    for _ in range(5_000):
        q, noise, count = float(10 ** rng.uniform(-4, -0.01)), float(rng.uniform(0.5, 10)), int(rng.integers(1, 5000))
        accountant = RdpAccountant(integers, NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(event_of(q, noise, count))
        for order, theirs in zip(integers, accountant._rdp, strict=True):
            mine = count * own_rdp(q, noise, order)
            worst_sampled = max(worst_sampled, abs(mine - theirs) / max(abs(float(theirs)), 1e-9))
    assert worst_full < 1e-6, worst_full
    assert worst_sampled < 1e-6, worst_sampled


def best_order(rho: float, delta: float) -> list[float]:
    """Return orders so dense around the best one that the accountant's minimum over them is the true one."""
    excess = math.sqrt(math.log(1 / delta) / rho)
    return [1 + excess * factor for factor in np.exp(np.linspace(-2.5, 2.5, 4001))]


def test_properties_that_every_accountant_keeps() -> None:
    assert epsilon_zcdp(rho_for_epsilon(8, 1e-6), 1e-6) <= 8
    for first, second in (((1, 3), (2, 5)), ((4, 1), (1, 1))):
        rho = sum((count * rho_of(Fraction(z)) for z, count in (first, second)), Fraction(0))
        back = sum((count * rho_of(Fraction(z)) for z, count in (second, first)), Fraction(0))
        assert epsilon_gdp(rho, 1e-6) == epsilon_gdp(back, 1e-6)
        one = noise_multiplier_for(rho, 1)
        assert rho_of(one) <= rho
