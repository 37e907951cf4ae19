"""One campaign of the search: people in parallel, noise of the mean, server step, score; resumed where it was cut.

    mean = 1/n sum_i min(1, C / ||u_i||) u_i / C + sigma xi,     w, v <- server(w, v, mean)

What a round leaves behind is `updates-K.npy` (unclipped, float16 [n, dim], by person) and one line of `rounds.jsonl`;
`state.npz` is the state after the last finished round. Clip, noise and the server's step can be tried again on the
stored updates of a round (`simulation.search.replay`) without training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from client.model import Cached, LanguageModel
from privacy.schedule import share_left
from server.adaptive_clip import BIT_SHARE, UPDATE_SHARE
from server.optimizer import OPTIMIZERS, Optimizer
from simulation.search.local import RowCore, local_updates, unit_norms, with_row_cores
from simulation.search.recipe import Recipe
from simulation.search.scored import bootstrap, person_nats, relative_gain

Vector = NDArray[np.float64]
BATCH_PEOPLE = 4  # side by side, of like length: twice one by one


@dataclass
class Folder:
    """A run's files; see the module docstring."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished rounds' lines."""
        file = self.path / "rounds.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def keep(self, row: dict[str, Any], updates: Vector, state: dict[str, Vector]) -> None:
        """Write a round: its updates, then the state, then its line, which makes it count."""
        np.save(self.path / f"updates-{row['round']}.npy", updates.astype(np.float16))
        beside = self.path / "state.tmp.npz"
        np.savez(beside, allow_pickle=False, **state)
        beside.replace(self.path / "state.npz")
        with (self.path / "rounds.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def state(self) -> dict[str, Vector] | None:
        """Return the state after the last round that has a line, or None before the first."""
        file = self.path / "state.npz"
        if not self.rows() or not file.exists():
            return None
        with np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}


def clipped_mean(updates: Vector, clip: float) -> Vector:
    """Return the mean of the updates clipped to `clip` and divided by it, so that each has at most norm 1."""
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    return np.asarray((updates / np.maximum(norms, clip)).mean(0))


def server_of(recipe: Recipe) -> Optimizer:
    """Return the server's step."""
    return OPTIMIZERS["adam" if recipe.server == "adam" else "avg"](recipe.server_length, recipe.momentum)


def run_campaign(
    recipe: Recipe,
    folder: Folder,
    model: LanguageModel,
    train: Sequence[Sequence[Sequence[Cached]]],
    select: Sequence[Sequence[Cached]],
) -> Vector:
    """Run what is left of the campaign and return the last cores, float64 [dim]; `model` has the basis attached.

    `train` holds the parts of everybody who may be asked, `select` whom each round is scored on.
    """
    cores = with_row_cores(model)
    assert model.layout is not None
    dim = model.layout.dim
    saved = folder.state()
    first = len(folder.rows())
    weights = saved["weights"] if saved else np.zeros(dim)
    velocity = saved["velocity"] if saved else np.zeros(dim)
    average = saved["average"] if saved else np.zeros(dim)
    clip = float(saved["clip"]) if saved else recipe.clip
    base = _score(model, np.zeros(dim), select)
    for number in range(first, recipe.rounds):
        started = time.process_time()
        asked, part = recipe.asked(number)
        parts = [train[i][part % len(train[i])] for i in asked]
        updates = _updates(recipe, model, cores, parts, weights)
        mean = clipped_mean(updates, clip)
        sigma = recipe.noise.of_mean(recipe.rounds) if recipe.noise else 0.0
        rng = np.random.default_rng([recipe.seed, number, 2])
        left = UPDATE_SHARE if recipe.adaptive else 1.0  # of an answer, beside its bit
        noisy = mean + sigma / left * rng.standard_normal(dim)
        below = float((np.linalg.norm(updates, axis=1) <= clip).mean())
        share = share_left(number, recipe.rounds, recipe.last_share)
        weights, velocity = server_of(recipe).step(weights, velocity, noisy, share)
        decay = min(recipe.average, number / (number + 1))
        average = decay * average + (1 - decay) * weights
        row = {
            "round": number,
            "answers": len(asked),
            "seconds": time.process_time() - started,
            "alpha": float(np.linalg.norm(unit_norms(updates).mean(0))),
            "clip": clip,
            "clip_fraction": 1 - below,
            "signal": float(np.linalg.norm(mean)),
            "noise": sigma * dim**0.5,
            "norm": float(np.linalg.norm(weights)),
            "gain": relative_gain(base, _score(model, weights, select)),
        }
        if recipe.average:
            row["gain_average"] = relative_gain(base, _score(model, average, select))
        if recipe.adaptive:
            clip = recipe.adaptive.next(clip, below + sigma / BIT_SHARE * rng.standard_normal())
        folder.keep(
            row, updates, {"clip": np.array(clip), "weights": weights, "velocity": velocity, "average": average}
        )
    return average if recipe.average else weights


def report(model: LanguageModel, weights: Vector, people: Sequence[Sequence[Cached]]) -> dict[str, Any]:
    """Return the gain of `weights` over base on `people`, its interval, each person's own gain and base nats."""
    base, after = _score(model, np.zeros(len(weights)), people), _score(model, weights, people)
    low, high = bootstrap(base, after)
    better = float((after < base).mean())
    return {
        "gain": relative_gain(base, after),
        "low": low,
        "high": high,
        "better": better,
        "by_person": (1 - after / base).round(5).tolist(),
        "base_nats": base.round(3).tolist(),
    }


def _score(model: LanguageModel, weights: Vector, people: Sequence[Sequence[Cached]]) -> Vector:
    assert model.layout is not None
    model.set_cores(model.layout.unflatten(weights))
    return person_nats(model, people)[0]


def _updates(
    recipe: Recipe,
    model: LanguageModel,
    cores: dict[str, RowCore],
    people: Sequence[Sequence[Cached]],
    start: Vector,
) -> Vector:
    """Return everybody's update, in the given order; those of like length are computed side by side."""
    order = sorted(range(len(people)), key=lambda i: max(len(document.encoded.ids) for document in people[i]))
    found = np.empty((len(people), len(start)))
    for at in range(0, len(order), BATCH_PEOPLE):
        some = order[at : at + BATCH_PEOPLE]
        with sdpa_kernel(SDPBackend.MATH):  # faster than the fused one at a hundred tokens on a CPU
            found[some] = local_updates(model, cores, [people[i] for i in some], start, recipe.local)
    return found
