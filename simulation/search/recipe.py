"""What a search run is: one frozen value, and the noise that its stand-in population would carry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import noise_multiplier_for, rho_for_epsilon
from privacy.errors import ConfigError
from privacy.query import Cohort
from server.adaptive_clip import AdaptiveClip
from simulation.search.local import LocalRule


@dataclass(frozen=True)
class Noise:
    """The noise of a federation of `people` at (`epsilon`, `delta`) over the campaign, without amplification.

    Everybody takes part `participations` times (None: in every round), so people * participations / rounds are invited
    to each, of whom a share `dropout` does not answer. `group` divides the invited into cohorts of so many, each with a
    claim of its own.
    """

    epsilon: float
    people: int = 1700
    delta: float = 1e-6
    participations: int | None = None
    dropout: float = 0.0
    group: int | None = None

    def multiplier(self, rounds: int) -> float:
        """Return z for the person who takes part most often."""
        return float(noise_multiplier_for(rho_for_epsilon(self.epsilon, self.delta), self.participations or rounds))

    def invited(self, rounds: int) -> int:
        """Return how many are invited to a round."""
        return self.people * (self.participations or rounds) // rounds

    def of_mean(self, rounds: int) -> float:
        """Return the deviation per number of the mean of unit-clipped answers: z / sqrt(m honest), m who answer."""
        honest = Cohort(self.group or self.invited(rounds)).honest
        answers = self.invited(rounds) * (1 - self.dropout)
        return self.multiplier(rounds) / math.sqrt(answers * honest)


@dataclass(frozen=True)
class Recipe:
    """One campaign of the search.

    `cohort` of the first `people` of the train slice answer each round, each on its next part of at most `tokens` own
    tokens of at most `documents` documents, as a device takes them; with `participations` everybody is invited so many
    times instead, and a share `dropout` of the invited is lost. Answers are clipped to `clip`, divided by it,
    averaged, noised, and taken by the server ("avg" or "adam") with the rate `server_length` and `momentum`; the rate
    falls linearly to `last_share` of itself. `average` is the decay of the iterate average that is scored beside the
    last iterate (0: none). With `adaptive` the clip follows the people from `clip` on, by a bit in every answer.
    """

    name: str
    basis: str
    layers: int = 10
    people: int = 320
    cohort: int = 80
    participations: int | None = None
    dropout: float = 0.0
    documents: int = 4
    tokens: int = 96
    rounds: int = 10
    local: LocalRule = field(default_factory=LocalRule)
    clip: float = 0.1
    server: str = "avg"
    server_length: float = 0.3
    momentum: float = 0.0
    last_share: float = 1.0
    noise: Noise | None = None
    adaptive: AdaptiveClip | None = None
    average: float = 0.0
    select: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cohort > self.people:
            raise ConfigError(f"search: cohort {self.cohort} is larger than the {self.people} people")
        if self.participations and self.rounds % self.participations:
            raise ConfigError(f"search: {self.rounds} rounds do not divide by {self.participations} participations")

    def asked(self, number: int) -> tuple[NDArray[np.int64], int]:
        """Return who answers round `number`, indexes into the people, and which of their parts they answer on."""
        rng = np.random.default_rng([self.seed, number])
        if self.participations is None:
            return rng.permutation(self.people)[: self.cohort], number
        time, place = divmod(number, self.rounds // self.participations)
        order = np.random.default_rng([self.seed, time, 1]).permutation(self.people)
        invited = order[place :: self.rounds // self.participations]
        return rng.permutation(invited)[: round(len(invited) * (1 - self.dropout))], time

    def save(self, file: Path) -> None:
        """Write the recipe as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Return the recipe of plain values (`local`, `noise`, `adaptive` are objects); ConfigError for unknown keys."""
    values = dict(values)
    try:
        local = LocalRule(**values.pop("local", {}))
        noise, adaptive = values.pop("noise", None), values.pop("adaptive", None)
        return Recipe(
            local=local,
            noise=Noise(**noise) if noise else None,
            adaptive=AdaptiveClip(**adaptive) if adaptive else None,
            **values,
        )
    except TypeError as error:
        raise ConfigError(f"search: {error}") from None
