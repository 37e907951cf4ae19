"""Is a federation of this size worth it: the accounting of a campaign, asked before anyone trains.

The same functions that later charge and report are used here; what is added is the noise that the mean of a round will
carry against the step that the devices agree on. Both are for the expected number of survivors; each survivor adds its
own noise, so the noise is computed as it will really be, above the floor that the claim rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Final

from privacy.accounting import epsilon_gdp, epsilon_zcdp, noise_multiplier_for, rho_for_epsilon, rho_of
from privacy.errors import ConfigError
from privacy.query import MAX_DIM, Cohort
from privacy.schedule import RANKS, gain_kept, noise_for

WORTH_IT: Final = "worth it"
METRICS_ONLY: Final = "metrics and personas only"
STAY_LOCAL: Final = "too few people: stay local"

USABLE_SHARE: Final = 0.75  # of the gain without noise, that must be left for a campaign to be worth it
CLEAR_RATIO: Final = 0.2
COUNT_DEVIATIONS: Final = 4  # a noisy count is published from four of its deviations on
FRAME_BYTES: Final = 256
MAX_PEOPLE: Final = 2**20
CORES: Final = 210  # adapted matrices of the embedded model, all layers; a core of rank r has 210 r^2 numbers
WEIGHT_SHARE: Final = Fraction(1, 4)  # of the clip, taken by the weight of a slot where there are several


@dataclass(frozen=True)
class Campaign:
    """What is planned. Give `epsilon` (a cap, then z follows) or `noise_multiplier` (then epsilon follows), not both.

    `participations` of each person over `rounds` rounds, so that people * participations / rounds are invited to each;
    `dropout` is the share of the invited that does not answer; `dim` the numbers of one core; `alpha` the norm of the
    mean of the clipped unit updates. `delta` None means min(1e-6, 1 / (10 people)). `transport` is `masked` or `ideal`
    (added in the clear); without noise there is nothing to plan.
    """

    people: int
    epsilon: float | None = None
    noise_multiplier: Fraction | None = None
    delta: float | None = None
    rounds: int = 2
    participations: int | None = None
    dropout: float = 0.1
    personas: int = 1
    dim: int = 13440
    alpha: float = 0.38
    own_tokens: int = 96
    local_steps: int = 1
    tokens_per_second: float = 100.0
    transport: str = "ideal"

    def __post_init__(self) -> None:
        _require((self.epsilon is None) != (self.noise_multiplier is None), "give epsilon or noise multiplier, one")
        _require(1 <= self.people <= MAX_PEOPLE, f"people must be 1 to {MAX_PEOPLE}")
        _require(
            self.rounds >= 1 and 1 <= self.times <= self.rounds, "participations must be 1 to the number of rounds"
        )
        _require(0 <= self.dropout < 1, "dropout is a share from 0 up to, not including, 1")
        _require(self.transport in ("masked", "ideal"), "transport must be masked or ideal")
        _require(self.personas >= 1 and 1 <= self.dim <= MAX_DIM, f"personas from 1, dim from 1 to {MAX_DIM}")
        _require(0 < self.alpha <= 1, "alpha is a length above 0 and up to 1")
        _require(0 < self.delta_used < 0.5, "delta must be above 0 and below 1/2")
        _require(self.noise_multiplier is None or self.noise_multiplier > 0, "a noise multiplier of 0 protects nobody")
        _require(min(self.own_tokens, self.local_steps, self.tokens_per_second) > 0, "work must be above 0")

    @property
    def times(self) -> int:
        """Return how often each person takes part: every round, unless told."""
        return self.rounds if self.participations is None else self.participations

    @property
    def delta_used(self) -> float:
        """Return delta, by default the smaller of one in a million and one tenth of a person's share."""
        return min(1e-6, 1 / (10 * self.people)) if self.delta is None else self.delta

    @property
    def cohort(self) -> Cohort:
        """Return the cohort of one round."""
        return Cohort(max(1, self.people * self.times // self.rounds))

    @property
    def survivors(self) -> int:
        """Return how many answers to expect; below the cohort's floor a round gives no sum at all."""
        return math.floor(self.cohort.invited * (1 - self.dropout) + 1e-9)

    @property
    def z(self) -> Fraction:
        """Return the noise multiplier of one round."""
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        rho = rho_for_epsilon(self.epsilon or 0.0, self.delta_used)
        _require(rho > 0, "epsilon is too small for any noise on the grid")
        return noise_multiplier_for(rho, self.times)


@dataclass(frozen=True)
class RankForecast:
    """What a core of `rank` would gain, as a share of what rank 8 gains without noise, and what it sends, in bytes.

    For the embedded model and cores over all its layers; `worth` is the gain measured without noise on one kind of
    people times `gain_kept`, and right within about 0.1 there (docs/utility.md); elsewhere it is a forecast.
    """

    rank: int
    dim: int
    worth: float
    bytes_up: int


@dataclass(frozen=True)
class Plan:
    """What to expect: the mechanism, the cohort, four epsilons, noise against signal, costs, one verdict.

    `server_epsilon` is against the server itself: with masks the `epsilon` of the release, as long as the honest floor
    of each cohort is honest and the directory of keys is; without, the Sybil floor, of each answer by itself.
    """

    campaign: Campaign
    noise_multiplier: Fraction
    cohort: Cohort
    survivors: int
    rho: Fraction
    epsilon: float
    epsilon_gdp: float
    server_epsilon: float
    sybil_floor_epsilon: float
    noise_ratio: float
    noise_to_clip: float
    gain_kept: float
    largest_dim: int
    by_rank: tuple[RankForecast, ...]
    bytes_up: int
    bytes_down: int
    minutes: float
    verdict: str
    suggestions: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the plan as plain numbers and words, for JSON."""
        asked = self.campaign
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("campaign", "cohort", "by_rank")},
            "people": asked.people,
            "rounds": asked.rounds,
            "participations": asked.times,
            "personas": asked.personas,
            "dim": asked.dim,
            "delta": asked.delta_used,
            "alpha": asked.alpha,
            "dropout": asked.dropout,
            "transport": asked.transport,
            "noise_multiplier": float(self.noise_multiplier),
            "rho": float(self.rho),
            "unit": "user",
            "adjacency": "zero-out",
            "cohort": {
                "invited": self.cohort.invited,
                "min_survivors": self.cohort.min_survivors,
                "max_colluding": self.cohort.max_colluding,
                "honest": self.cohort.honest,
                "expected_survivors": self.survivors,
            },
            "suggestions": list(self.suggestions),
            "by_rank": [asdict(each) for each in self.by_rank],
        }


def plan(campaign: Campaign) -> Plan:
    """Return what to expect of `campaign`; raises ConfigError where its figures admit no mechanism."""
    z, cohort, delta = campaign.z, campaign.cohort, campaign.delta_used
    rho = campaign.times * rho_of(z)
    ratio = noise_ratio(campaign)
    slots = campaign.personas * campaign.dim + (campaign.personas if campaign.personas > 1 else 0)
    verdict = _verdict(campaign)
    return Plan(
        campaign=campaign,
        noise_multiplier=z,
        cohort=cohort,
        survivors=campaign.survivors,
        rho=rho,
        epsilon=epsilon_zcdp(rho, delta),
        epsilon_gdp=epsilon_gdp(rho, delta),
        server_epsilon=epsilon_zcdp(rho if campaign.transport == "masked" else rho * cohort.honest, delta),
        sybil_floor_epsilon=epsilon_zcdp(rho * cohort.honest, delta),
        noise_ratio=ratio,
        noise_to_clip=ratio * campaign.alpha,
        gain_kept=gain_kept(ratio, campaign.rounds),
        largest_dim=largest_dim(campaign, CLEAR_RATIO),
        by_rank=by_rank(campaign),
        bytes_up=campaign.times * (4 * slots + FRAME_BYTES),
        bytes_down=campaign.times * (4 * campaign.personas * campaign.dim + FRAME_BYTES),
        minutes=campaign.times * campaign.own_tokens * campaign.local_steps / campaign.tokens_per_second / 60,
        verdict=verdict,
        suggestions=() if verdict == WORTH_IT else tuple(_suggestions(campaign)),
    )


def noise_ratio(campaign: Campaign) -> float:
    """Return |noise| / |signal| of the mean step of one persona slot, m the expected survivors, K the personas.

        (z / alpha) K sqrt(dim / (m honest))

    Each of m devices adds noise z c / sqrt(honest) per coordinate; m / K of them put a step of length alpha c into the
    slot. With K > 1 the weight takes a quarter of the clip, which leaves sqrt(15)/4 of it for the step.
    """
    members = max(1, campaign.survivors)
    left = math.sqrt(1 - float(WEIGHT_SHARE) ** 2) if campaign.personas > 1 else 1.0
    spread = math.sqrt(campaign.dim / (members * campaign.cohort.honest))
    return float(campaign.z) * campaign.personas * spread / (campaign.alpha * left)


def by_rank(campaign: Campaign) -> tuple[RankForecast, ...]:
    """Return what each rank that was measured would gain in this campaign; `alpha` and `dim` of it play no part."""
    found = []
    for rank, (gain, alpha) in RANKS.items():
        dim = CORES * rank * rank
        asked = replace(campaign, dim=dim, alpha=alpha)
        worth = gain * gain_kept(noise_ratio(asked), campaign.rounds)
        found.append(RankForecast(rank, dim, worth, campaign.times * (4 * campaign.personas * dim + FRAME_BYTES)))
    return tuple(found)


def usable_ratio(campaign: Campaign) -> float:
    """Return the `noise_ratio` up to which `USABLE_SHARE` of the gain without noise is left (`gain_kept`)."""
    return noise_for(USABLE_SHARE, campaign.rounds)


def largest_dim(campaign: Campaign, ratio: float) -> int:
    """Return the most numbers that one core may have for `noise_ratio` to stay at or below `ratio`; 0 if none."""
    return math.floor((ratio / noise_ratio(replace(campaign, dim=1))) ** 2 + 1e-9)


def _verdict(campaign: Campaign) -> str:
    cohort = campaign.cohort
    if campaign.survivors < cohort.min_survivors:
        return STAY_LOCAL
    if noise_ratio(campaign) <= usable_ratio(campaign):
        return WORTH_IT
    deviation = float(campaign.z) * math.sqrt(campaign.survivors / cohort.honest)  # of a count of people
    seen = campaign.survivors / campaign.personas >= COUNT_DEVIATIONS * deviation
    return METRICS_ONLY if seen else STAY_LOCAL


def _suggestions(campaign: Campaign) -> list[str]:
    """Return what would do, one change at a time, each with its figure."""
    found = []
    if campaign.survivors < campaign.cohort.min_survivors:
        most = 1 - campaign.cohort.min_survivors / campaign.cohort.invited
        found.append(f"lose at most {most:.0%} of the invited devices: below the floor a round gives no sum")
        campaign = replace(campaign, dropout=max(0.0, math.floor(most * 100) / 100))
    people = _least(lambda n: _works(replace(campaign, people=n)), campaign.people, MAX_PEOPLE)
    if people is not None and people > campaign.people:
        found.append(f"more people: {people:,} at the same settings")
    dim = largest_dim(campaign, usable_ratio(campaign))
    if 1 <= dim < campaign.dim:
        found.append(f"a smaller adapter: {dim:,} numbers at most (smaller rank, fewer modules)")
    larger = campaign.z * Fraction(usable_ratio(campaign)) / Fraction(noise_ratio(campaign))
    if larger < campaign.z:
        epsilon = epsilon_zcdp(campaign.times * rho_of(larger), campaign.delta_used)
        found.append(f"a larger epsilon: {epsilon:.1f} (noise multiplier {float(larger):.2f}); think twice above 10")
    return found


def _works(campaign: Campaign) -> bool:
    enough = campaign.survivors >= campaign.cohort.min_survivors
    return enough and noise_ratio(campaign) <= usable_ratio(campaign)


def _least(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return about the least number in [low, high] for which `holds`: exact where it stays true once it is."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ConfigError(f"plan: {problem}")
