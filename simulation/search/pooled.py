"""The central reference: one adapter that sees everybody's text, in the clear, with AdamW and no clip.

one pass over the train slice's documents, `batch` documents a step, rate warmed up and decayed linearly
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from client.model import GLOBAL, OWN, Cached, LanguageModel, padded
from client.own import own_modules, reset_own
from client.train import trainable


@dataclass(frozen=True)
class PooledTraining:
    """`tokens` own tokens in all, in batches of `batch` documents, AdamW at `learning_rate` without weight decay."""

    tokens: int = 60_000
    batch: int = 4
    learning_rate: float = 3e-3
    warmup: float = 0.05


def lora_parameters(model: LanguageModel, rank: int, modules: Sequence[str], seed: int) -> list[nn.Parameter]:
    """Add an ordinary LoRA over the adapted layers, active alone, and return its parameters."""
    model.add_own(rank, modules)
    reset_own(model, torch.Generator().manual_seed(seed))
    model.activate(OWN)
    return [p for module in own_modules(model) for p in module.parameters()]


def core_parameters(model: LanguageModel) -> list[nn.Parameter]:
    """Return the shared cores' parameters, active alone."""
    model.activate(GLOBAL)
    return list(nn.ModuleList(model.cores().values()).parameters())


def train_pooled(
    model: LanguageModel, parameters: Sequence[nn.Parameter], documents: Sequence[Cached], settings: PooledTraining
) -> Iterator[int]:
    """Train in place and yield the number of own tokens read after every step, until `settings.tokens` are read.

    Documents are read in the given order, from the start again where they do not suffice. The loss of a batch is the
    mean over its tokens.
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=settings.learning_rate, weight_decay=0.0)
    read, at = 0, 0
    while read < settings.tokens:
        batch = [documents[(at + i) % len(documents)] for i in range(settings.batch)]
        at += settings.batch
        done = read / settings.tokens
        scale = min(1.0, done / settings.warmup + 0.1) * (1 - done)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * scale
        own = sum(document.encoded.own_tokens for document in batch)
        with trainable(parameters):
            for document in batch:  # one at a time: no padding across people, and no slower
                rows = padded([document])
                loss = model.nats(model.top(rows.hidden)[rows.where], rows.labels).sum() / own
                loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        read += own
        yield read
