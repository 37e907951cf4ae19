"""Server steps on private means: arrays in, arrays out, no knowledge of who sent what.

Each step is `step(weights, velocity, mean, share) -> (weights, velocity)`: weights float64 [dim], velocity whatever the
step keeps between rounds, zeros [dim] before the first, share the part of the first rate that is left (`share_left`).
All of it is computed from noisy means, so it is free of privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError

Vector = NDArray[np.float64]


class Optimizer(Protocol):
    """What a campaign needs of a server step."""

    def step(self, weights: Vector, velocity: Vector, mean: Vector, share: float = 1.0) -> tuple[Vector, Vector]:
        """Return the new weights, float64 [dim], and the new velocity; nothing is changed in place."""


@dataclass(frozen=True)
class FedAvg:
    """w <- w + learning_rate * mean of the devices' updates (McMahan et al. 2017, arXiv:1602.05629; with a rate).

    `momentum` > 0 makes it FedAvgM (Hsu et al. 2019, arXiv:1909.06335): v <- momentum v + mean, w <- w + rate v.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.momentum)

    def step(self, weights: Vector, velocity: Vector, mean: Vector, share: float = 1.0) -> tuple[Vector, Vector]:
        """Return the new weights and velocity, float64 [dim] each; nothing is changed in place."""
        velocity = self.momentum * velocity + mean
        return weights + self.learning_rate * share * velocity, velocity


@dataclass(frozen=True)
class FedAdam:
    """Adam on the mean (Reddi et al. 2021, arXiv:2003.00295), bias-corrected, each step of one given length.

        m <- b1 m + (1-b1) mean,  s <- b2 s + (1-b2) mean^2
        u = m' / (sqrt(s') + e),  w <- w + rate u / ||u||

    e is `floor` times the root mean square of s', so that numbers which only hold noise are not blown up. A step has
    the norm `learning_rate` (times the share left), however short or noisy the mean has become and whatever dim is: in
    a whitened space that is a length of its own meaning. The velocity is [2 dim + 1]: m, s and the number of steps;
    zeros [dim] before the first.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    second: float = 0.98
    floor: float = 1.0

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.momentum)
        if not (0 <= self.second < 1 and self.floor > 0):
            raise ConfigError("server second-moment decay must be in [0, 1) and its floor above 0")

    def step(self, weights: Vector, velocity: Vector, mean: Vector, share: float = 1.0) -> tuple[Vector, Vector]:
        """Return the new weights [dim] and velocity [2 dim + 1]; a zero mean from zero moments moves nothing."""
        dim = len(weights)
        if len(velocity) == dim:
            velocity = np.zeros(2 * dim + 1)
        first, square, steps = velocity[:dim], velocity[dim:-1], velocity[-1] + 1
        first = self.momentum * first + (1 - self.momentum) * mean
        square = self.second * square + (1 - self.second) * mean**2
        corrected = square / (1 - self.second**steps)
        scale = np.sqrt(corrected) + self.floor * np.sqrt(corrected.mean())
        direction = first / (1 - self.momentum**steps) / np.where(scale > 0, scale, 1.0)
        norm = float(np.linalg.norm(direction))
        step = self.learning_rate * share * direction / norm if norm > 0 else direction
        return weights + step, np.concatenate([first, square, [steps]])


OPTIMIZERS: Final[Mapping[str, type[FedAvg] | type[FedAdam]]] = {"adam": FedAdam, "avg": FedAvg}


def schedule(kind: str, rounds: int, clip: float) -> tuple[float, float]:
    """Return the first rate and the last share of it that served best, for so many rounds of training a core.

    Together the steps are 1.3 mean updates long, none longer than 0.3 of them, and the last is 4 / rounds of the first:
    more rounds are more, shorter steps. A mean update is the mean of updates of length 1, clipped to `clip`, in the
    whitened basis over all layers (docs/utility.md). Adam's steps have a third of that, the first mean's norm.
    """
    last = min(1.0, 4 / rounds)
    first = min(0.3, 2.6 / (rounds * (1 + last)))
    return (first / clip if kind == "avg" else 0.38 * first), last


def share_left(number: int, rounds: int, last: float) -> float:
    """Return the share of the first rate that training round `number` of `rounds` has: linear from 1 to `last`."""
    return 1 - (1 - last) * number / (rounds - 1) if rounds > 1 else 1.0


def _check(learning_rate: float, momentum: float) -> None:
    if not (0 < learning_rate <= 1000 and 0 <= momentum < 1):
        raise ConfigError("server learning rate must be in (0, 1000] and momentum in [0, 1)")
