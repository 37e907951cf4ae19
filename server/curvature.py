"""Steep directions of the loss that everybody shares, known from public text, and steps that are short along them.

    step = mean - U^T diag(l / (l + damping)) U mean      U [k, dim] orthonormal rows, l their curvature over the mean

The inverse of a damped Fisher matrix of low rank (Amari 1998; the damping after Martens 2020, arXiv:1412.1193), up to a
factor. Private means lie to a third in a few dozen directions in which the loss curves a hundred times more than
elsewhere; a step long enough for the rest overshoots there. It works on what a sum has released, so it costs no budget
and asks nothing of devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError

Vector = NDArray[np.float64]
DIRECTIONS = "curvature"
STEEPNESS = "steepness"


@dataclass(frozen=True)
class Curvature:
    """`directions` float [k, dim], orthonormal rows; `steepness` float [k], curvature over its mean over all dim."""

    directions: Vector
    steepness: Vector

    def __post_init__(self) -> None:
        k, dim = self.directions.shape if self.directions.ndim == 2 else (-1, -1)
        if self.steepness.shape != (k,) or k > dim or not np.all(np.isfinite(self.steepness) & (self.steepness >= 0)):
            raise ConfigError("curvature: one direction of the core's length and one steepness each, at least 0")
        if not np.allclose(self.directions @ self.directions.T, np.eye(k), atol=1e-3):
            raise ConfigError("curvature: the directions must be at right angles to each other and of length 1")

    def flattened(self, mean: Vector, damping: float) -> Vector:
        """Return the mean with its part along steep directions shortened, float64 [dim]; ConfigError for a shape."""
        if self.directions.shape[1:] != mean.shape:
            raise ConfigError(f"curvature of {self.directions.shape[1]} numbers for a core of {len(mean)}")
        along = self.directions @ mean
        return np.asarray(mean - self.directions.T @ (along * self.steepness / (self.steepness + damping)), np.float64)

    def arrays(self) -> dict[str, Vector]:
        """Return both by the names under which a campaign's public arrays hold them."""
        return {DIRECTIONS: self.directions, STEEPNESS: self.steepness}
