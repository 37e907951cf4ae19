"""Server steps on private means: arrays in, arrays out, no knowledge of who sent what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError


@dataclass(frozen=True)
class FedAvg:
    """w <- w + learning_rate * mean of the devices' updates (McMahan et al. 2017, arXiv:1602.05629; with a rate).

    `momentum` > 0 makes it FedAvgM (Hsu et al. 2019, arXiv:1909.06335): v <- momentum v + mean, w <- w + rate v.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.learning_rate <= 1000 and 0 <= self.momentum < 1):
            raise ConfigError("server learning rate must be in (0, 1000] and momentum in [0, 1)")

    def step(
        self, weights: NDArray[np.float64], velocity: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the new weights and velocity, float64 [dim] each; nothing is changed in place."""
        velocity = self.momentum * velocity + mean
        return weights + self.learning_rate * velocity, velocity
