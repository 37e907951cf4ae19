"""Where the loss of shared cores is steep, from the base model's own samples: leading directions of its Fisher matrix.

    g = sum_t s_t d nats_t / d R,   s_t = +-1 at random        E[g g^T] = sum_t E[g_t g_t^T], the true Fisher matrix,

since the text is drawn from the model itself (Kunstner, Balles & Hennig 2019, arXiv:1905.12558, on why that matters).
Random signs make one backward pass a draw of the sum over tokens, and several draws share one forward pass. Nothing but
what the public base model holds goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.model import GLOBAL, Encoded, LanguageModel, padded
from client.train import trainable
from privacy.errors import ModelError

Progress = Callable[[int, int], None]


def steep_directions(
    model: LanguageModel,
    texts: Sequence[Encoded],
    count: int,
    draws: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return up to `count` orthonormal directions [k, dim], steepest first, and their curvature over the mean one [k].

    `model` has its basis attached; its cores are zero while this runs and afterwards. From `draws` gradients a text
    only so many directions can be told apart: k is at most half of all draws. Raises ModelError where no text has a
    token.
    """
    usable = [text for text in texts if text.own_tokens]
    if model.layout is None or not usable:
        raise ModelError("curvature needs a basis and a text of two tokens or more")
    model.set_cores(model.layout.unflatten(np.zeros(model.layout.dim)))
    model.activate(GLOBAL)
    signs = torch.Generator().manual_seed(seed)
    rows: list[NDArray[np.float64]] = []
    for done, text in enumerate(usable):
        rows += _gradients(model, text, draws, signs)
        if progress is not None:
            progress(done + 1, len(usable))
    gradients = np.array(rows)
    values, vectors = np.linalg.eigh(gradients @ gradients.T)
    keep = min(count, len(rows) // 2, int((values > 1e-9 * values[-1]).sum()))
    values, vectors = values[::-1][:keep], vectors[:, ::-1][:, :keep]
    mean = float((gradients**2).sum()) / gradients.shape[1]
    directions = (gradients.T @ vectors / np.sqrt(values)).T
    return directions, values / mean


def _gradients(model: LanguageModel, text: Encoded, draws: int, signs: torch.Generator) -> list[NDArray[np.float64]]:
    cores = model.cores()
    weights = [weight for core in cores.values() for weight in core.parameters()]
    rows = padded([model.prefix(text)])
    found = []
    with torch.enable_grad(), trainable(weights):
        states = model.top(rows.hidden)[rows.where]
        last = states.detach().requires_grad_(True)
        model.nats(last, rows.labels).sum().backward()
        assert last.grad is not None and model.layout is not None
        for draw in range(draws):
            flips = torch.randint(0, 2, (len(last), 1), generator=signs).to(last.device) * 2 - 1
            parts = torch.autograd.grad(states, weights, last.grad * flips, retain_graph=draw < draws - 1)
            flat = model.layout.flatten(
                {name: part.float().cpu().numpy() for name, part in zip(cores, parts, strict=True)}
            )
            found.append(flat / np.sqrt(len(last)))
    return found
