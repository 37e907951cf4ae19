"""Direct preference optimisation of the own adapter: rather the texts that a person chose than those they did not.

    margin(pair) = [log p(chosen) - log p0(chosen)] - [log p(rejected) - log p0(rejected)]
    loss         = - log sigmoid(beta * margin),          p0: the model as it was before

Rafailov et al. 2023 (arXiv:2305.18290), equation 7; log p is the sum over the tokens of the answer alone. With pairs of
a person's own words against the model's samples it is the first round of DITTO (Shaikh et al. 2024, arXiv:2406.00888).
Trained without record-level privacy: the adapter stays on the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from client.model import Cached, LanguageModel, padded
from client.own import own_modules
from client.train import trainable


@dataclass(frozen=True)
class DPO:
    """The settings: AdamW over `epochs` passes of `batch_pairs`, in at most `seconds`."""

    beta: float = 0.1
    epochs: int = 3
    learning_rate: float = 2e-4
    batch_pairs: int = 4
    seconds: float = math.inf


@dataclass(frozen=True)
class Preferred:
    """A pair as the model reads it: the targets are the tokens of the answers."""

    chosen: Cached
    rejected: Cached


def log_likelihoods(model: LanguageModel, texts: Sequence[Cached]) -> Tensor:
    """Return log p of each text's target tokens together, float32 [B]; gradients flow where parameters let them."""
    rows = padded(list(texts))
    nats = model.nats(model.top(rows.hidden)[rows.where], rows.labels)
    return -torch.zeros(len(texts), device=nats.device).index_add(0, rows.row, nats)


def margins(now: Tensor, before: Tensor) -> Tensor:
    """Return the margin of each pair: log-likelihoods [B, 2] (chosen, rejected) now and before, float32 [B]."""
    moved = now - before
    return moved[:, 0] - moved[:, 1]


def dpo_loss(now: Tensor, before: Tensor, beta: float) -> Tensor:
    """Return the loss of each pair, float32 [B]; log 2 where nothing has moved."""
    return -F.logsigmoid(beta * margins(now, before))


def pair_likelihoods(model: LanguageModel, pairs: Sequence[Preferred]) -> Tensor:
    """Return the log-likelihoods of pairs, float32 [B, 2]: chosen, rejected."""
    both = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    return log_likelihoods(model, both).reshape(len(pairs), 2)


@torch.no_grad()
def reference(model: LanguageModel, pairs: Sequence[Preferred]) -> Tensor:
    """Return what the model says of pairs as it is now, one pair at a time, float32 [B, 2]."""
    return torch.cat([pair_likelihoods(model, [pair]) for pair in pairs])


def train_dpo(
    model: LanguageModel,
    pairs: Sequence[Preferred],
    settings: DPO,
    generator: torch.Generator,
    report: Callable[[int, int], None] = lambda _done, _steps: None,
) -> int:
    """Train the active own adapter on pairs, in place, and return the steps taken; `generator` draws their order."""
    start = time.monotonic()
    before = reference(model, pairs)
    parameters = [p for module in own_modules(model) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    a_pass = math.ceil(len(pairs) / settings.batch_pairs)
    steps, done = settings.epochs * a_pass, 0
    with trainable(parameters):
        for _ in range(settings.epochs):
            order = torch.randperm(len(pairs), generator=generator).split(settings.batch_pairs)
            for batch in order:
                if time.monotonic() - start > settings.seconds:
                    return done
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * (1 - done / steps)
                now = pair_likelihoods(model, [pairs[int(i)] for i in batch])
                dpo_loss(now, before[batch], settings.beta).mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                report(done, steps)
    return done
