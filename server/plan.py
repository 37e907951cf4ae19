"""What a campaign will ask: a plan of several queries that share one budget, fixed before the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

from privacy.errors import ConfigError
from privacy.learned import NO_TABLES
from privacy.objective import (
    CENTROIDS,
    DECLARED,
    LEAST_LOSS,
    METRICS,
    METRICS_OBJECTIVE,
    NEAREST,
    NEXT_TOKEN,
    PURPOSES,
    RETRIEVER,
    TRAINS_A_CORE,
    TRAINS_A_RETRIEVER,
    WORDS,
)
from privacy.query import NO_DIRECTORY, Limits
from privacy.schedule import share_left
from server.optimizer import FedAvg, Optimizer


@dataclass(frozen=True)
class Step:
    """One query of a plan, without what changes from run to run."""

    purpose: str
    objective: str
    choice: str
    slots: int
    slot_dim: int
    noise_multiplier: Fraction


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign will ask; fixed before its first round. `seed` decides who is invited and the personas' first
    values, all of it public; it never reaches noise, keys or batches.

    `steps` are its queries: `clustering` rounds of private k-means, then `rounds` of training on `objective` (with
    personas every other one trains these), `retriever_rounds`, one count of the public words (`words`, 0 for none) and,
    with `measure`, one evaluation. After `clustering` the first `centred` persona rounds go by centroids, the others by
    `persona_choice`. The global core takes `optimizer`, whose rate falls linearly to `last_share` of itself over the
    rounds that train it; personas take `persona_optimizer`; where the public arrays hold a curvature, both take means
    flattened with `curvature_damping`; the retriever's core goes `retriever_rate` times the mean
    of unit directions. `noise` holds the noise multiplier of a purpose where it is not `noise_multiplier`; the budget
    is the exact sum over all steps, whatever they ask. `declared` are the names of personas that people count
    themselves to, each with a description behind a colon. With `choose_round` an evaluation follows each training
    round, and what is released is that of the round whose noisy mean loss is least: chosen by private figures alone.
    """

    federation: str
    campaign: str
    rounds: int
    cohort: int
    personas: int
    slot_dim: int
    clip_norm: Fraction
    noise_multiplier: Fraction
    transport: str
    limits: Limits
    optimizer: Optimizer
    basis_sha256: str
    policy_sha256: str
    seed: int
    directory_sha256: str = NO_DIRECTORY
    persona_start: float = 0.02
    persona_floor: int = 16
    replayed_noise: bool = False
    objective: str = NEXT_TOKEN
    persona_choice: str = LEAST_LOSS
    clustering: int = 0
    centred: int = 1
    portrait_dim: int = 20
    encoder_dim: int = 384
    words: int = 0
    measure: bool = False
    retriever_rounds: int = 0
    retriever_rank: int = 16
    retriever_rate: float = 12.0
    retriever_objective: str = RETRIEVER
    public_sha256: str = NO_TABLES
    declared: tuple[str, ...] = ()
    choose_round: bool = False
    noise: Mapping[str, Fraction] = field(default_factory=dict)
    last_share: float = 1.0
    curvature_damping: float = 10.0
    persona_optimizer: FedAvg = field(default_factory=FedAvg)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.cohort < 1 or self.personas < 0 or self.personas == 1:
            raise ConfigError("rounds and cohort must be at least 1, personas 0 (none) or at least 2")
        numbers = (self.clustering, self.centred, self.words, self.retriever_rounds)
        if min(numbers) < 0 or min(self.encoder_dim, self.portrait_dim) < 1:
            raise ConfigError("the plan's numbers of rounds and words must be 0 or more")
        if (self.clustering or self.words or self.persona_choice != LEAST_LOSS) and not self.personas:
            raise ConfigError("clustering, words and a choice of persona need personas")
        if self.persona_choice == NEAREST and not self.clustering:
            raise ConfigError("personas by centroids need rounds of clustering first")
        if self.declared and (self.persona_choice != DECLARED or len(set(self.names)) != self.personas):
            raise ConfigError("declared personas need a name each, and the choice that goes by their owner's word")
        if self.persona_choice == DECLARED and self.clustering:
            raise ConfigError("personas are declared by their owners or found by clustering, not both")
        if self.retriever_objective not in TRAINS_A_RETRIEVER:
            raise ConfigError(f"no retriever is trained by {self.retriever_objective}")
        if self.objective not in TRAINS_A_CORE or not set(self.noise) <= set(PURPOSES):
            raise ConfigError("the plan's objective trains no adapter, or it names noise for no purpose")
        if not self.curvature_damping > 0:
            raise ConfigError("the damping of the curvature must be above 0")
        if not 0 < self.last_share <= 1:
            raise ConfigError(f"the last share of the server's rate must be in (0, 1], not {self.last_share}")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the declared personas, in the order of their slots."""
        return tuple(text.partition(":")[0].strip() for text in self.declared)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return the queries in the order in which they are asked."""
        k = self.personas
        found = [self._step("cluster.persona", CENTROIDS, k, self.portrait_dim, NEAREST)] * self.clustering
        for number in range(self.rounds):
            if k and number % 2:
                choice = NEAREST if self.clustering and number // 2 < self.centred else self.persona_choice
                found.append(self._step("train.persona", self.objective, k, self.slot_dim, choice))
            else:
                found.append(self._step("train.global", self.objective, 1, self.slot_dim))
            if self.choose_round:
                found.append(self._measurement())
        retriever = self._step("train.retriever", self.retriever_objective, 1, self.retriever_rank**2)
        found += [retriever] * self.retriever_rounds
        if self.words:
            found.append(self._step("describe.persona", WORDS, k, self.words, self.persona_choice))
        if self.measure:
            found.append(self._measurement())
        return tuple(found)

    def _measurement(self) -> Step:
        return self._step("measure.adapters", METRICS_OBJECTIVE, max(1, self.personas), len(METRICS))

    def share_left(self, round_number: int) -> float:
        """Return the share of the optimizer's rate in round `round_number`, counting only rounds of its purpose."""
        same = [place for place, step in enumerate(self.steps) if step.purpose == self.steps[round_number].purpose]
        return share_left(same.index(round_number), len(same), self.last_share)

    @property
    def rho(self) -> Fraction:
        """Return the zCDP of a device that answers every query of the plan, exactly."""
        return sum((1 / (2 * step.noise_multiplier**2) for step in self.steps), Fraction(0))

    def _step(self, purpose: str, objective: str, slots: int, slot_dim: int, choice: str = LEAST_LOSS) -> Step:
        noise = self.noise.get(purpose, self.noise_multiplier)
        return Step(purpose, objective, choice, slots, slot_dim, noise)
