"""A run's server step is what its configuration says, and can be computed again from its sums alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from privacy.schedule import share_left
from server.campaign import replayed
from server.home import ROUNDS, ServerHome
from server.optimizer import FedAdam
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

    again = run(tmp_path / "again", *SETTINGS, "adapter.curvature=0", replay=True)
    flat, plain = (
        replayed(ServerHome.load(f).plan, f / "checkpoints" / ROUNDS) for f in (tmp_path / "run", tmp_path / "again")
    )
    assert again["rounds"], "the second run must have happened"
    lengths = [0.07 * share_left(number, 2, 0.25) for number in range(2)]
    for state in (flat, plain):
        assert np.linalg.norm(state.core) <= sum(lengths) + 1e-9
    along = [np.linalg.norm(directions @ state.core) / np.linalg.norm(state.core) for state in (flat, plain)]
    assert along[0] < along[1], "steps along steep directions must be the shorter ones"
