"""What a search run is: one frozen value, and the noise that its stand-in population would carry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from privacy.accounting import noise_multiplier_for, rho_for_epsilon
from privacy.errors import ConfigError
from privacy.query import Cohort
from simulation.search.local import LocalRule


@dataclass(frozen=True)
class Noise:
    """The noise of a federation of `people`, everybody in every round, at (`epsilon`, `delta`) over the campaign."""

    epsilon: float
    people: int = 1700
    delta: float = 1e-6

    def multiplier(self, rounds: int) -> float:
        """Return z for `rounds` participations of everybody, without amplification."""
        return float(noise_multiplier_for(rho_for_epsilon(self.epsilon, self.delta), rounds))

    def of_mean(self, rounds: int) -> float:
        """Return the deviation per number of the mean of unit-clipped answers: z / sqrt(n (n_min - c_col))."""
        cohort = Cohort(self.people)
        return self.multiplier(rounds) / math.sqrt(cohort.invited * cohort.honest)


@dataclass(frozen=True)
class Recipe:
    """One campaign of the search.

    `cohort` of the first `people` of the train slice are asked each round, at most `tokens` tokens of `documents`
    documents each; answers are clipped to `clip`, divided by it, averaged, noised, and taken by the server ("avg" or
    "adam") with the rate `server_length` and `momentum`; with `decay` the rate falls. `average` is the decay of the
    iterate average that is scored beside the last iterate (0: none).
    """

    name: str
    basis: str
    layers: int = 10
    people: int = 320
    cohort: int = 80
    documents: int = 1
    tokens: int = 256
    rounds: int = 10
    local: LocalRule = field(default_factory=LocalRule)
    clip: float = 0.1
    server: str = "avg"
    server_length: float = 0.3
    momentum: float = 0.0
    decay: bool = False
    noise: Noise | None = None
    average: float = 0.0
    select: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cohort > self.people:
            raise ConfigError(f"search: cohort {self.cohort} is larger than the {self.people} people")

    def save(self, file: Path) -> None:
        """Write the recipe as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Return the recipe of plain values, `local` and `noise` being objects; raises ConfigError for unknown keys."""
    values = dict(values)
    try:
        local = LocalRule(**values.pop("local", {}))
        noise = values.pop("noise", None)
        return Recipe(local=local, noise=Noise(**noise) if noise else None, **values)
    except TypeError as error:
        raise ConfigError(f"search: {error}") from None
