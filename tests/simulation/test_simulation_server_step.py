"""A run's server step is what its configuration says, and can be computed again from its sums alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from privacy.schedule import share_left
from server.campaign import replayed
from server.home import ROUNDS, ServerHome
from server.optimizer import FedAdam, FedAvg
from server.public import Public

SETTINGS = (
    "compare_without_noise=false",
    "adapter.curvature=6",
    "adapter.curvature_damping=3",
    "server.kind=adam",
    "server.learning_rate=0.07",
    "server.last_share=0.25",
)


def test_length_fall_and_curvature_of_the_steps_reach_the_release(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", *SETTINGS, replay=True)
    home = ServerHome.load(tmp_path / "run")
    assert isinstance(home.plan.optimizer, FedAdam) and home.plan.last_share == 0.25
    public = Public.load(tmp_path / "run" / "checkpoints")
    directions, steepness = public.arrays["curvature"], public.arrays["steepness"]
    assert directions.shape == (4, home.plan.slot_dim), "four samples of two draws each tell four directions apart"
    assert steepness[0] > 1
    first = replayed(home.plan, tmp_path / "run" / "checkpoints" / ROUNDS)
    assert first.curvature is not None

    lengths = [0.07 * share_left(number, 2, 0.25) for number in range(2)]
    assert np.linalg.norm(first.core) <= sum(lengths) + 1e-9

    # Plain averages of the same sums say it exactly; Adam bends what it is given, number by number.
    averaged = replace(home.plan, optimizer=FedAvg(1.0))
    rounds = tmp_path / "run" / "checkpoints" / ROUNDS
    flat, plain = (replayed(plan, rounds).core for plan in (averaged, replace(averaged, curvature_damping=1e15)))
    shares = 1 - steepness / (steepness + home.plan.curvature_damping)
    assert np.allclose(directions @ flat, shares * (directions @ plain), atol=1e-8)
    beside = np.eye(len(plain)) - directions.T @ directions
    assert np.allclose(beside @ flat, beside @ plain, atol=1e-8), "nothing else is shortened"
    assert np.linalg.norm(directions @ flat) < 0.9 * np.linalg.norm(directions @ plain)
