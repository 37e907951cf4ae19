"""Memories trusted as far as they foretell: two predictions mixed, the weight moved by every word that is read.

    p_t(y)  = w_t p(y | memories, y_<t) + (1 - w_t) p(y | y_<t)
    w_1     = 1/2
    w_{t+1} = (1 - a) w_t p(y_t | memories, y_<t) / p_t(y_t) + a / 2            a = `SHARE`

That is the fixed share of Herbster and Warmuth 1998 ("Tracking the best expert", Machine Learning 32, section 5) over
two experts. On any text of T words the loss is at most that of the better expert plus ln 2 + T ln(1 / (1 - a/2)) nats:
ln 2 + 0.051 T for a = 0.1, a bound of the worst case. Memories that have nothing to do with a text lose most of their
weight after a few words, down to about a twentieth, which one strength for all texts (`client.steering`) cannot give.
It reads everything twice.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.model import Encoded, LanguageModel

SHARE, START = 0.1, 0.5
Nats = NDArray[np.float64]


def mixed_nats(with_memories: Nats, without: Nats) -> tuple[Nats, float]:
    """Return the nats of every word under the mixture, float64 [T], from those under both, and the weight after them.

    The words must follow on each other: all that is read moves the weight, also what nobody scores.
    """
    found, weight = np.empty(len(with_memories)), START
    for t, (first, second) in enumerate(zip(with_memories, without, strict=True)):
        found[t] = -np.logaddexp(np.log(weight) - first, np.log1p(-weight) - second)
        weight = (1 - SHARE) * weight * float(np.exp(found[t] - first)) + SHARE / 2
    return found, float(weight)


def trusted(with_memories: Tensor, without: Tensor, weight: float) -> Tensor:
    """Return the log probabilities of the mixture, [..., V], from two rows of log probabilities."""
    return torch.logaddexp(with_memories + np.log(weight), without + np.log1p(-weight))


def all_words(encoded: Encoded) -> Encoded:
    """Return a document whose every token but the first, and what opens it, is to be scored."""
    target = torch.ones_like(encoded.target)
    target[:1] = False
    return replace(encoded, target=target)


def trusted_nats(model: LanguageModel, placed: Encoded, plain: Encoded) -> float:
    """Return the nats of a document's targets under the mixture; `plain` lacks the memories that stand in `placed`."""
    read = all_words(plain)
    behind = replace(
        placed, target=torch.cat([torch.zeros(len(placed.ids) - len(read.ids) + 1, dtype=torch.bool), read.target[1:]])
    )
    both = [model.document_nats([model.prefix(each)])[0].double().numpy() for each in (behind, read)]
    return scored(mixed_nats(*both)[0], plain)


def scored(nats: Nats, plain: Encoded) -> float:
    """Return the sum over the targets of a document, from the nats of all its tokens but the first."""
    return float(nats[plain.target[1:].numpy()].sum())
