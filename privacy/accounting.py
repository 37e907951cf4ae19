"""What answers cost: zCDP in exact rationals to enforce, three independent conversions to report.

The charge of one answer is a rational number and so is the budget: `ZcdpFilter` compares them without rounding, and
stays valid when later queries are chosen after earlier sums (Whitehouse et al. 2023). `epsilon_zcdp` of the spent rho
is the epsilon that is enforced. `epsilon_gdp` and `epsilon_pld` describe the continuous Gaussian of the same rho; they
are smaller, stand beside it in reports, and never decide anything. Amplification by sampling is never credited: the
server picks the cohort.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Final

from privacy.errors import BudgetExhausted, ConfigError
from privacy.history import Figures
from privacy.query import Query, fraction_text
from privacy.sampling import sampled_rounds, sampling_rows
from privacy.wire import RefusalCode

DELTAS: Final = (1e-5, 1e-6, 1e-9)
PLD_STEP: Final = 1e-4  # of the privacy loss, up to a rho of 10
_GRID: Final = 10**6  # budgets and multipliers are found on a grid of 1 / _GRID, rounded to the private side
_FIGURES: Final = (
    "rho",
    "rho_exact",
    "epsilon",
    "epsilon_gdp",
    "epsilon_pld",
    "server_rho",
    "epsilon_server",
    "sybil_floor_rho",
    "sybil_floor_epsilon",
)


def rho_of(noise_multiplier: Fraction) -> Fraction:
    """Return the zCDP of one Gaussian answer, 1 / (2 z^2) (Bun, Steinke 2016, Prop. 1.6)."""
    if noise_multiplier <= 0:
        raise ConfigError("a noise multiplier of zero has no finite rho")
    return 1 / (2 * Fraction(noise_multiplier) ** 2)


def sybil_rho(query: Query) -> Fraction:
    """Return the zCDP of one answer of `query` seen alone, honest / (2 z^2): its own noise is all that protects it.

    What remains against a server whose other devices are all its own, whatever the transport, and where sums are added
    in the clear against any server.
    """
    return query.cohort.honest * rho_of(query.noise_multiplier)


def server_rho(query: Query) -> Fraction:
    """Return the zCDP of one answer against the server that adds: that of the sum if masked, else of the answer alone.

    Masked, for a server that runs the protocol and may own up to `max_colluding` devices of a directory that it does
    not write; above 128 invited but for a probability of 2^-40 a sum, which belongs to delta. A server that invents
    devices is `sybil_rho`, one that breaks the protocol is what THREATS.md says.
    """
    return rho_of(query.noise_multiplier) if query.transport == "masked" else sybil_rho(query)


def sybil_noise_multiplier(query: Query) -> float:
    """Return the noise multiplier of one answer seen alone, z / sqrt(honest)."""
    return float(query.noise_multiplier) / math.sqrt(query.cohort.honest)


def epsilon_zcdp(rho: Fraction | float, delta: float) -> float:
    """Return the least epsilon that rho-zCDP implies at `delta`.

        epsilon = inf over alpha > 1 of  rho alpha + ln(1 - 1/alpha) + (ln(1/delta) - ln alpha) / (alpha - 1)

    Canonne, Kairouz, Steinke 2020 (arXiv:2004.00010), Cor. 13. Every alpha gives a valid bound, so a search that misses
    the best one errs to the private side only.
    """
    rho = _checked(rho, delta)
    if rho == 0 or delta >= 1:
        return 0.0

    def bound(log_order: float) -> float:
        excess = math.exp(log_order)
        alpha = 1 + excess
        return rho * alpha + math.log(excess / alpha) + (-math.log(delta) - math.log(alpha)) / excess

    return max(0.0, bound(_argmin(bound, -30.0, 60.0)))


def epsilon_gdp(rho: Fraction | float, delta: float) -> float:
    """Return the exact epsilon at `delta` of a Gaussian mechanism with this rho; composition of several is the same.

        delta = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu),   mu = sqrt(2 rho)

    Balle, Wang 2018, Thm. 8; Dong, Roth, Su 2019, Cor. 2.13. Found by bisection; the upper end is returned.
    """
    rho = _checked(rho, delta)
    mu = math.sqrt(2 * rho)
    if rho == 0 or _gaussian_delta(0.0, mu) <= delta:
        return 0.0
    return _bisect(lambda epsilon: _gaussian_delta(epsilon, mu) <= delta, 0.0, epsilon_zcdp(rho, delta) + 1e-9)


def epsilon_pld(noise_multiplier: Fraction | float, compositions: int, delta: float) -> float:
    """Return the epsilon of `compositions` Gaussians by dp-accounting's privacy loss distributions, an upper bound.

    Adjacency add-or-remove: under replace-one the same call would take z as relative to twice the clip.
    """
    _checked(compositions * rho_of(Fraction(noise_multiplier)), delta)
    return _pld({Fraction(noise_multiplier): compositions}, [delta])[0] if compositions else 0.0


def rho_for_epsilon(epsilon: float, delta: float) -> Fraction:
    """Return the largest rho on a grid of 10^-6 whose `epsilon_zcdp` at `delta` is at most `epsilon`."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError("epsilon must be positive and finite")
    low, high = 0, math.ceil((epsilon + 1) * _GRID)  # epsilon_zcdp(rho) > rho - 1 for every delta below 1/2
    while high - low > 1:
        middle = (low + high) // 2
        fits = epsilon_zcdp(Fraction(middle, _GRID), delta) <= epsilon
        low, high = (middle, high) if fits else (low, middle)
    return Fraction(low, _GRID)


def least_noise_multiplier(epsilon: float, delta: float, participations: int) -> Fraction:
    """Return the least z, in thousandths, with which so many participations together stay within `epsilon`."""
    rho = rho_for_epsilon(epsilon, delta) / participations
    thousandths = int((Fraction(1, 2) / rho * 1000**2) ** Fraction(1, 2)) if rho else 0
    z = Fraction(max(thousandths, 1), 1000)
    while 1 / (2 * z**2) > rho:
        z += Fraction(1, 1000)
    return z


def noise_multiplier_for(rho: Fraction, participations: int) -> Fraction:
    """Return the least z on a grid of 10^-6 with participations / (2 z^2) <= rho: rounded up, never over the budget."""
    if rho <= 0 or participations < 1:
        raise ConfigError("a noise multiplier needs a positive rho and at least one participation")
    squared = participations * _GRID**2 / (2 * Fraction(rho))
    root = math.isqrt(math.ceil(squared))
    return Fraction(root if root * root >= squared else root + 1, _GRID)


@dataclass(frozen=True)
class ZcdpFilter:
    """A budget of zCDP and what is spent of it, exactly; a value, so that a refused charge changes nothing."""

    budget: Fraction
    spent: Fraction = Fraction(0)
    code: RefusalCode = RefusalCode.BUDGET

    def charge(self, rho: Fraction) -> ZcdpFilter:
        """Return the filter after a charge of `rho`; raise BudgetExhausted with `code` if it would pass the budget."""
        if not isinstance(rho, Fraction) or rho < 0:
            raise ConfigError("a charge is a non-negative fraction")
        if self.spent + rho > self.budget:
            raise BudgetExhausted(self.code, f"spent {self.spent}, asked {rho}, allowed {self.budget}")
        return replace(self, spent=self.spent + rho)

    @property
    def left(self) -> Fraction:
        """Return what may still be charged."""
        return self.budget - self.spent


def statement(
    charged: Sequence[Query],
    deltas: Sequence[float] = DELTAS,
    *,
    adopted: Figures | None = None,
    released: Sequence[Query] = (),
) -> dict[str, object]:
    """Return the privacy statement of a campaign for reports, from the queries charged to its busiest device.

    Every figure is per user, and for a lifetime: of the whole ledger, with what a restored device `adopted`. `epsilon`
    is against whoever sees only sums. `epsilon_server` is against the server: that of the sums where they were masked,
    as long as at least the honest floor of each cohort is honest and the directory of keys is; of each answer by itself
    otherwise. The Sybil floor is that of each answer by itself, whatever the transport. The maps are keyed by deltas as
    `repr` writes them. If one query was not private, every figure is None, `stamp` NOT PRIVATE.

    `released` are the queries whose sums were used, all of them; if devices sampled themselves in every one, `sampled`
    says what that is worth against a reader who does not see who took part. It changes no other figure.
    """
    more = adopted or Figures()
    counts = Counter(query.noise_multiplier for query in charged)
    facts: dict[str, object] = {
        "unit": "user",
        "adjacency": "zero-out",
        "amplification": "none",
        "mechanism": "distributed discrete Gaussian, integer L2 clip",
        "transport": sorted({query.transport for query in charged}),
        "participations": len(charged) + more.participations,
        "noise_multiplier": [float(z) for z in sorted(counts)],
        "cohort_floor": min((query.cohort.min_survivors for query in charged), default=None),
        "honest_floor": min((query.cohort.honest for query in charged), default=None),
    }
    if more != Figures():
        facts["adopted_rho"] = fraction_text(more.rho)
    if more.unprotected or not all(query.private for query in charged):
        return facts | {"private": False, "stamp": "NOT PRIVATE"} | dict.fromkeys(_FIGURES)
    if sampled_rounds(released):
        facts["sampled"] = sampling_rows(released, deltas)
    rho = sum((rho_of(query.noise_multiplier) for query in charged), more.rho)
    alone = sum((sybil_rho(query) for query in charged), more.alone_rho)
    server = sum((server_rho(query) for query in charged), more.alone_rho)
    figures = (
        float(rho),
        fraction_text(rho),
        {repr(delta): epsilon_zcdp(rho, delta) for delta in deltas},
        {repr(delta): epsilon_gdp(rho, delta) for delta in deltas},
        dict(zip(map(repr, deltas), _pld(counts, deltas, more.rho), strict=True)),
        float(server),
        {repr(delta): epsilon_zcdp(server, delta) for delta in deltas},
        float(alone),
        {repr(delta): epsilon_zcdp(alone, delta) for delta in deltas},
    )
    return facts | {"private": True, "stamp": None} | dict(zip(_FIGURES, figures, strict=True))


def _pld(counts: Mapping[Fraction, int], deltas: Sequence[float], more: Fraction = Fraction(0)) -> list[float]:
    return list(_pld_once(tuple(sorted(counts.items())), tuple(deltas), more))


@cache
def _pld_once(counts: tuple[tuple[Fraction, int], ...], deltas: tuple[float, ...], more: Fraction) -> tuple[float, ...]:
    """Return an epsilon a delta. Steps of the loss grow with rho above 10: else little noise takes minutes to say."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent  # here: it takes a second
    from dp_accounting.pld import PLDAccountant

    rho = more + sum(count * rho_of(z) for z, count in counts)
    step = PLD_STEP * max(1.0, float(rho) / 10)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=step)
    for noise_multiplier, count in counts:
        accountant.compose(SelfComposedDpEvent(GaussianDpEvent(float(noise_multiplier)), count))
    if more:
        accountant.compose(GaussianDpEvent(math.sqrt(1 / (2 * more))))
    return tuple(float(accountant.get_epsilon(delta)) for delta in deltas)


def _checked(rho: Fraction | float, delta: float) -> float:
    if not (math.isfinite(rho) and rho >= 0 and 0 < delta <= 1):
        raise ConfigError(f"rho must be finite and not negative, delta in (0, 1]: got {float(rho)}, {delta}")
    return float(rho)


def _gaussian_delta(epsilon: float, mu: float) -> float:
    above = epsilon + _log_phi(-mu / 2 - epsilon / mu)
    return math.exp(_log_phi(mu / 2 - epsilon / mu)) - math.exp(min(above, 0.0))


def _log_phi(x: float) -> float:
    """Return ln Phi(x); beyond -25 by the first terms of Mill's ratio, relative error below 10^-7 of Phi."""
    if x > -25:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    inverse = 1 / (x * x)
    series = 1 - inverse * (1 - 3 * inverse * (1 - 5 * inverse * (1 - 7 * inverse)))
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)


def _argmin(function: Callable[[float], float], low: float, high: float) -> float:
    """Return a minimum of a function with one valley, by golden section."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(120):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if function(left) < function(right) else (left, high)
    return (low + high) / 2


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return a point just above the least one in (low, high] where `holds`; it holds at `high`."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
