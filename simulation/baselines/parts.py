"""What a host does of baselines and for the scorecard, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simulation.baselines.local import likeness, scored, shapes, trained_factors
from simulation.baselines.whole import fully_tuned, pooled_factors
from simulation.scorecard.bias import bias_rows

PARTS: Mapping[str, Callable[..., Any]] = {
    "bias": bias_rows,
    "full": fully_tuned,
    "likeness": likeness,
    "pooled": pooled_factors,
    "score": scored,
    "shapes": shapes,
    "train": trained_factors,
}
