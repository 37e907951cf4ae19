"""Local steps of many people side by side: one core per row of a batch, in place of one person after the other.

    theta_k <- theta_k - step u_k / ||u_k||,   u_k = momentum u_k + g_k / ||g_k||,   g_k = grad L_k(theta_k)

The sums are those of `client.train.core_update` for whole batches (sampling rate 1) and one document a person; padding
across people changes bits, so this is for the search and never for a federation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.model import GLOBAL, Cached, LanguageModel, Rows, padded

Vector = NDArray[np.float64]


class RowCore(nn.Linear):
    """A core whose rows may each have a matrix of their own: `rows` [B, r, r] where set, else `weight` for all."""

    rows: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x R^T, row by row with its own R where rows are set."""
        return super().forward(x) if self.rows is None else torch.bmm(x, self.rows.transpose(1, 2))


@dataclass(frozen=True)
class LocalRule:
    """`steps` of length `step` each; `momentum` over normalised gradients inside one person's round.

    With `normalised` false a step is `step` times the gradient, and what bounds an answer is the clip alone.
    """

    steps: int = 1
    step: float = 0.1
    momentum: float = 0.0
    normalised: bool = True


def with_row_cores(model: LanguageModel) -> dict[str, RowCore]:
    """Replace the cores in the model's adapter by `RowCore`s and return them by module, in the layout's order."""
    replaced = {}
    for name, core in model.cores().items():
        own = core if isinstance(core, RowCore) else RowCore(core.in_features, core.out_features, bias=False)
        own.requires_grad_(False)
        model.net.get_submodule(name).lora_A[GLOBAL].core = own
        replaced[name] = own
    return replaced


@contextmanager
def rows_set(cores: dict[str, RowCore], theta: Tensor, owner: Tensor) -> Iterator[None]:
    """Give each batch row the core of its owner: theta [people, dim], owner int64 [B]."""
    start = 0
    for core in cores.values():
        size = core.weight.numel()
        core.rows = theta[:, start : start + size].view(-1, *core.weight.shape)[owner]
        start += size
    try:
        yield
    finally:
        for core in cores.values():
            core.rows = None


def local_updates(
    model: LanguageModel,
    cores: dict[str, RowCore],
    people: Sequence[Sequence[Cached]],
    start: Vector,
    rule: LocalRule,
) -> Vector:
    """Return R_end - R_start of every person, float64 [people, dim]; a person's loss is the mean of documents' means.

    Everybody must have at least one document with an own token.
    """
    rows = padded([document for own in people for document in own])
    owner = torch.tensor([k for k, own in enumerate(people) for _ in own], device=rows.hidden.device)
    theta = torch.tensor(start, dtype=torch.float32, device=rows.hidden.device).repeat(len(people), 1)
    begun, velocity = theta.clone(), torch.zeros_like(theta)
    for _ in range(rule.steps):
        gradient = people_gradients(model, cores, rows, owner, theta)
        velocity = rule.momentum * velocity + (unit(gradient) if rule.normalised else gradient)
        theta = theta - rule.step * (unit(velocity) if rule.normalised else velocity)
    return (theta - begun).double().cpu().numpy()


def people_gradients(
    model: LanguageModel, cores: dict[str, RowCore], rows: Rows, owner: Tensor, theta: Tensor
) -> Tensor:
    """Return the gradient of each person's mean loss by that person's own cores, float32 [people, dim]."""
    theta = theta.detach().requires_grad_(True)
    with torch.enable_grad(), rows_set(cores, theta, owner):
        nats = model.nats(model.top(rows.hidden)[rows.where], rows.labels)
        counts = torch.bincount(rows.row, minlength=len(rows.hidden)).clamp(min=1)
        documents = torch.bincount(owner, minlength=len(theta))
        weight = 1.0 / (counts[rows.row] * documents[owner[rows.row]])
        (nats * weight).sum().backward()
    assert theta.grad is not None
    return theta.grad


def unit(rows: Tensor) -> Tensor:
    """Return rows over their norms; zero rows stay zero."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


def unit_norms(updates: Vector) -> Vector:
    """Return the updates over their norms; zero updates stay zero."""
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    return updates / np.where(norms > 0, norms, 1.0)
