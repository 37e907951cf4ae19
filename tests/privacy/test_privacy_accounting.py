"""Known answers, one contract for all accountants, and a budget that is exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from dp_accounting import ZCDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    ZcdpFilter,
    epsilon_gdp,
    epsilon_pld,
    epsilon_zcdp,
    noise_multiplier_for,
    rho_for_epsilon,
    rho_of,
    server_rho,
    statement,
    sybil_noise_multiplier,
    sybil_rho,
)
from privacy.errors import BudgetExhausted, ConfigError
from privacy.query import Cohort, Query

Accountant = Callable[[Fraction, int, float], float]
ACCOUNTANTS: dict[str, Accountant] = {
    "zcdp": lambda z, count, delta: epsilon_zcdp(count * rho_of(z), delta),
    "gdp": lambda z, count, delta: epsilon_gdp(count * rho_of(z), delta),
    "pld": epsilon_pld,
}
Z = st.fractions(Fraction(1, 2), 20, max_denominator=100)
COUNT = st.integers(1, 60)
DELTA = st.sampled_from([1e-5, 1e-6, 1e-9])


def check_monotone(accountant: Accountant, z: Fraction, count: int, delta: float) -> None:
    epsilon = accountant(z, count, delta)
    assert epsilon <= accountant(z, count + 1, delta)
    assert epsilon <= accountant(z * Fraction(9, 10), count, delta)
    assert epsilon <= accountant(z, count, delta / 2)


@pytest.fixture(params=ACCOUNTANTS)
def accountant(request: pytest.FixtureRequest) -> Accountant:
    return ACCOUNTANTS[request.param]


class TestContract:
    """What every accountant of un-amplified Gaussians must do, however it does it."""

    # z, participations, delta, exact epsilon: every un-sampled row that dp-accounting, Opacus and the closed form share
    @pytest.mark.parametrize(
        ("z", "count", "delta", "exact"),
        [
            (1, 1, 1e-5, 4.37718),
            (10, 100, 1e-5, 4.37718),
            (5, 50, 1e-5, 6.57297),
            (2, 10, 1e-6, 8.30623),
            (1, 100, 1e-5, 91.81729),
        ],
    )
    def test_never_below_the_exact_epsilon_and_near_it(
        self, accountant: Accountant, z: int, count: int, delta: float, exact: float
    ) -> None:
        epsilon = accountant(Fraction(z), count, delta)
        assert exact - 1e-5 < epsilon < 1.09 * exact

    @pytest.mark.parametrize(("z", "count", "delta"), [(1, 1, 1e-6), (3, 7, 1e-5), (2, 2, 1e-9)])
    def test_more_answers_less_noise_smaller_delta_cost_more(
        self, accountant: Accountant, z: int, count: int, delta: float
    ) -> None:
        check_monotone(accountant, Fraction(z), count, delta)

    @pytest.mark.parametrize(("z", "count", "delta"), [(2, 1, 1e-6), (4, 3, 1e-5)])
    def test_many_answers_are_one_with_less_noise(
        self, accountant: Accountant, z: int, count: int, delta: float
    ) -> None:
        together = accountant(Fraction(z), 4 * count, delta)
        assert together == pytest.approx(accountant(Fraction(z, 2), count, delta), rel=1e-4)

    def test_nothing_costs_nothing(self, accountant: Accountant) -> None:
        assert accountant(Fraction(1), 0, 1e-6) == 0

    def test_no_noise_and_no_delta_are_refused(self, accountant: Accountant) -> None:
        with pytest.raises(ConfigError):
            accountant(Fraction(0), 1, 1e-6)
        for delta in (0.0, -1e-6, 1.5, float("nan")):
            with pytest.raises(ConfigError):
                accountant(Fraction(1), 1, delta)


@given(z=Z, count=COUNT, delta=DELTA)
def test_closed_forms_are_monotone_and_the_enforced_one_is_the_larger(z: Fraction, count: int, delta: float) -> None:
    check_monotone(ACCOUNTANTS["zcdp"], z, count, delta)
    check_monotone(ACCOUNTANTS["gdp"], z, count, delta)
    rho = float(count * rho_of(z))
    classic = rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun, Steinke 2016, Prop. 1.3
    assert epsilon_gdp(rho, delta) <= epsilon_zcdp(rho, delta) <= classic


@pytest.mark.parametrize(("z", "count", "delta"), [("1", 3, 1e-6), ("13/5", 20, 1e-5), ("9", 4, 1e-9)])
def test_the_second_accountant_agrees_with_the_closed_form(z: str, count: int, delta: float) -> None:
    exact = epsilon_gdp(count * rho_of(Fraction(z)), delta)
    assert exact - 1e-9 <= epsilon_pld(Fraction(z), count, delta) <= exact * (1 + 1e-5)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(z=Z, count=COUNT, delta=DELTA)
def test_three_accountants_keep_their_order(z: Fraction, count: int, delta: float) -> None:
    zcdp, gdp, pld = (accountant(z, count, delta) for accountant in ACCOUNTANTS.values())
    assert gdp * (1 - 1e-9) <= pld <= gdp * (1 + 1e-5)
    assert pld <= zcdp


@pytest.mark.parametrize(("rho", "published"), [("0.81", 8.9223), ("0.2", 4.1675), ("2", 14.8708)])
def test_zcdp_known_answers_at_delta_1e_10(rho: str, published: float) -> None:
    """The published figures minimise over a grid of orders, so they may be larger, by a little."""
    assert published - 6e-4 < epsilon_zcdp(Fraction(rho), 1e-10) < published + 5e-5


@pytest.mark.parametrize("rho", [0.05, 0.5, 5.0])
def test_zcdp_agrees_with_dp_accounting_over_the_same_orders(rho: float) -> None:
    accountant = RdpAccountant([1 + 10 ** (k / 500) for k in range(-1000, 1000)])
    accountant.compose(ZCDpEvent(rho))
    assert epsilon_zcdp(rho, 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-5)


def test_zcdp_is_the_least_over_all_orders() -> None:
    rho, delta = 0.81, 1e-10
    orders = [1 + 10 ** (k / 200) for k in range(-600, 600)]
    grid = min(
        rho * a + math.log(1 - 1 / a) + (math.log(1 / delta) - math.log(a)) / (a - 1) for a in orders
    )  # Canonne, Kairouz, Steinke 2020, Cor. 13, by brute force
    assert grid - 1e-3 < epsilon_zcdp(rho, delta) <= grid


def test_gdp_of_the_published_gboard_figure() -> None:
    assert epsilon_gdp(Fraction("0.81"), 1e-10) == pytest.approx(8.549, abs=5e-4)


@pytest.mark.parametrize(
    ("z", "row"),
    [
        (1, [4.887, 7.286, 12.595, 19.424, 30.579, 57.849, 96.717]),
        (2, [2.254, 3.308, 5.551, 8.306, 12.595, 22.425, 35.566]),
        (4, [1.061, 1.544, 2.549, 3.747, 5.551, 9.482, 14.451]),
        (8, [0.504, 0.731, 1.197, 1.743, 2.549, 4.249, 6.312]),
        (16, [0.240, 0.348, 0.568, 0.824, 1.197, 1.969, 2.883]),
    ],
)
def test_the_unamplified_table_at_delta_1e_6(z: int, row: list[float]) -> None:
    exact = [epsilon_gdp(count * rho_of(Fraction(z)), 1e-6) for count in (1, 2, 5, 10, 20, 50, 100)]
    assert exact == pytest.approx(row, abs=6e-4)


@pytest.mark.parametrize(
    ("epsilon", "row"), [(2, [2.23, 4.99, 7.05, 9.98]), (4, [1.19, 2.67, 3.77, 5.34]), (8, [0.65, 1.46, 2.07, 2.92])]
)
def test_noise_for_a_target_at_delta_1e_6(epsilon: float, row: list[float]) -> None:
    for z, count in zip(row, (1, 5, 10, 20), strict=True):
        assert epsilon_gdp(count * rho_of(Fraction(z)), 1e-6) == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"), [(1, 1e-5, 3.73063), (0.5, 1e-6, 8.05762), (8, 1e-5, 0.60023), (20, 1e-5, 0.29004)]
)
def test_analytic_gaussian_known_answers(epsilon: float, delta: float, sigma: float) -> None:
    assert epsilon_gdp(1 / (2 * sigma**2), delta) == pytest.approx(epsilon, rel=1e-4)


def test_the_classic_formula_of_peers_under_noises() -> None:
    """sqrt(2 ln(1.25/delta)) / epsilon outside epsilon <= 1: asked for 20, it gives 25.44."""
    sigma = math.sqrt(2 * math.log(1.25 / 1e-5)) / 20
    assert epsilon_gdp(1 / (2 * sigma**2), 1e-5) == pytest.approx(25.44, abs=0.01)


def test_the_adjacency_is_zero_out_and_not_replace_one() -> None:
    assert epsilon_pld(Fraction(1), 1, 1e-5) == pytest.approx(4.3772, abs=1e-4)  # replace-one would be 9.9973
    assert epsilon_gdp(4 * rho_of(Fraction(1)), 1e-5) == pytest.approx(9.9973, abs=1e-4)


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize("rho", [1e-12, 1e-6, 1e4, 1e6])
def test_extremes_stay_finite_and_ordered(rho: float, delta: float) -> None:
    assert 0 <= epsilon_gdp(rho, delta) <= epsilon_zcdp(rho, delta) < math.inf


@settings(max_examples=60, deadline=None)
@given(st.floats(0.01, 60), DELTA, st.integers(1, 50))
def test_what_is_calibrated_never_passes_its_target(epsilon: float, delta: float, count: int) -> None:
    rho = rho_for_epsilon(epsilon, delta)
    assert epsilon_zcdp(rho, delta) <= epsilon < epsilon_zcdp(rho + Fraction(1, 10**6), delta)
    if rho > 0:
        z = noise_multiplier_for(rho, count)
        assert count * rho_of(z) <= rho < count * rho_of(z - Fraction(1, 10**6))


def test_calibration_refuses_what_cannot_be_met() -> None:
    for epsilon in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError):
            rho_for_epsilon(epsilon, 1e-6)
    for rho, count in ((Fraction(0), 1), (Fraction(1), 0)):
        with pytest.raises(ConfigError):
            noise_multiplier_for(rho, count)


@given(st.lists(st.fractions(0, 2, max_denominator=97), max_size=20), st.fractions(0, 3, max_denominator=89))
def test_the_filter_never_passes_its_budget_by_any_amount(charges: list[Fraction], budget: Fraction) -> None:
    spent = ZcdpFilter(budget)
    for rho in charges:
        if spent.spent + rho <= budget:
            spent = spent.charge(rho)
        else:
            with pytest.raises(BudgetExhausted) as refusal:
                spent.charge(rho)
            assert refusal.value.code == "budget.exhausted"
    assert spent.spent <= budget and spent.left == budget - spent.spent


def test_the_filter_is_exact_where_floats_are_not() -> None:
    filled = ZcdpFilter(Fraction(1))
    for _ in range(49):
        filled = filled.charge(Fraction(1, 49))
    assert filled.left == 0
    with pytest.raises(BudgetExhausted):
        filled.charge(Fraction(1, 10**30))
    for charge in (Fraction(-1), 0.5):
        with pytest.raises(ConfigError):
            ZcdpFilter(Fraction(1)).charge(charge)  # type: ignore[arg-type]


def test_the_sybil_floor_at_a_hundred_invited_is_63_6(asked: Callable[..., Query]) -> None:
    query = asked(cohort=Cohort(100))
    assert epsilon_gdp(sybil_rho(query), 1e-6) == pytest.approx(63.6, abs=0.05)
    assert sybil_noise_multiplier(query) == pytest.approx(1 / math.sqrt(57))
    assert sybil_rho(query) == Fraction(57, 2)


def test_statement(asked: Callable[..., Query]) -> None:
    queries = [asked(round=1), asked(round=2, noise_multiplier=Fraction(2), cohort=Cohort(50))]
    told = statement(queries, deltas=(1e-5, 1e-6))
    assert (told["unit"], told["adjacency"], told["amplification"]) == ("user", "zero-out", "none")
    assert told["rho_exact"] == "5/8" and told["rho"] == 0.625
    assert told["epsilon"] == {repr(delta): epsilon_zcdp(Fraction(5, 8), delta) for delta in (1e-5, 1e-6)}
    assert told["epsilon_pld"] == pytest.approx(told["epsilon_gdp"], rel=1e-3)
    assert told["participations"] == 2 and told["noise_multiplier"] == [1.0, 2.0]
    assert (told["cohort_floor"], told["honest_floor"]) == (34, 29)
    assert told["sybil_floor_rho"] == 28.5 + 29 / 8
    assert told["epsilon_server"] == told["sybil_floor_epsilon"]
    assert told["private"] is True and told["stamp"] is None


def test_masks_bring_the_server_to_the_released_epsilon_and_leave_the_sybil_floor(asked: Callable[..., Query]) -> None:
    masked = [asked(round=i, transport="masked", directory_sha256="d" * 64) for i in range(2)]
    told = statement(masked)
    assert told["server_rho"] == told["rho"] == 1.0 and told["epsilon_server"] == told["epsilon"]
    assert (
        told["sybil_floor_rho"] == 57.0
        and told["sybil_floor_epsilon"] == statement([asked(), asked()])["epsilon_server"]
    )
    mixed = statement([*masked, asked(round=2)])
    assert mixed["server_rho"] == 1.0 + 57 / 2 and mixed["rho"] == 1.5
    assert server_rho(masked[0]) == Fraction(1, 2) and server_rho(asked()) == sybil_rho(asked())


@pytest.mark.parametrize("changes", [{"transport": "off"}, {"replayed_noise": True}])
def test_one_query_without_fresh_noise_takes_every_figure_away(
    asked: Callable[..., Query], changes: dict[str, object]
) -> None:
    told = statement([asked(), asked(**changes)])
    assert told["private"] is False and told["stamp"] == "NOT PRIVATE"
    for name in ("rho", "rho_exact", "epsilon", "epsilon_gdp", "epsilon_pld", "epsilon_server", "sybil_floor_epsilon"):
        assert told[name] is None


def test_no_query_costs_nothing() -> None:
    told = statement([])
    assert told["rho"] == 0 and set(told["epsilon"].values()) == {0.0}  # type: ignore[attr-defined]
