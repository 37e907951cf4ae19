"""What an adapter is worth on people who did not train: nats per token, person by person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.model import Cached, LanguageModel

Vector = NDArray[np.float64]


def person_nats(model: LanguageModel, people: Sequence[Sequence[Cached]]) -> tuple[Vector, Vector]:
    """Return the sum of nats and the number of own tokens of every person, float64 [people] each."""
    flat = [document for own in people for document in own]
    nats = model.document_nats(flat)
    sums, counts, at = [], [], 0
    for own in people:
        part = torch.cat(nats[at : at + len(own)])
        at += len(own)
        sums.append(float(part.double().sum()))
        counts.append(float(len(part)))
    return np.array(sums), np.array(counts)


def relative_gain(base: Vector, after: Vector) -> float:
    """Return 1 - after / base over all tokens of all people together."""
    return float(1 - after.sum() / base.sum())


def bootstrap(base: Vector, after: Vector, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of `relative_gain` over people drawn with replacement, the same draw for both."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(base), (draws, len(base)))
    gains = 1 - after[picks].sum(1) / base[picks].sum(1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)
