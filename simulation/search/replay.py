"""Clip, noise and server step tried again on a recorded round, without training: `updates-K.npy` as it was left.

The first round of every run starts from zero, so its updates serve any choice at all; a later round's serve choices
for that round alone, since another choice before would have led elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privacy.errors import DataError
from server.optimizer import Optimizer
from simulation.search.campaign import clipped_mean

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What is tried: clip norm, deviation per number of the mean of unit-bounded answers, the noise's seed."""

    clip: float
    noise_of_mean: float = 0.0
    seed: int = 0


def recorded_updates(folder: Path, number: int) -> Vector:
    """Return the unclipped updates of round `number`, float64 [people, dim]; DataError where the run has none."""
    file = folder / f"updates-{number}.npy"
    if not file.exists():
        raise DataError(f"{folder.name}: no updates of round {number}")
    return np.asarray(np.load(file), dtype=np.float64)


def noisy_mean(updates: Vector, choice: Choice) -> Vector:
    """Return the mean of the answers clipped to norm 1 with noise of the choice, float64 [dim]."""
    noise = np.random.default_rng(choice.seed).standard_normal(updates.shape[1])
    return clipped_mean(updates, choice.clip) + choice.noise_of_mean * noise


def retried(
    updates: Vector, choice: Choice, optimizer: Optimizer, weights: Vector, velocity: Vector
) -> tuple[Vector, Vector]:
    """Return weights and velocity after the round, had clip, noise and server step been these."""
    return optimizer.step(weights, velocity, noisy_mean(updates, choice))
