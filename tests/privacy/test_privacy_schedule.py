"""Steps and the noise that they carry: by simulation, and against campaigns that were run."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.schedule import first_and_last, gain_kept, noise_carried, noise_for, share_kept, share_left

CONSTANT, FALLING = (0.3, 0.3, 0.3, 0.3), (0.28, 0.2333, 0.1867, 0.14)
# (noise of a round's mean over the first mean, lengths of the steps) -> gain over the gain without noise. Three times
# self-dialogues, 100 people a round with the noise of 1,700 at epsilon 8, 2 and 1, delta 1e-6, thirty layers of rank 8,
# one seed; twice 1,453 of them at epsilon 8, 327 a round (docs/utility.md); two runs of the demo, 104 volunteers' chats
# at z = 1.
MEASURED = [
    (0.125 / 0.383, CONSTANT, 5.69 / 5.71),
    (0.431 / 0.383, CONSTANT, 5.34 / 5.71),
    (0.821 / 0.383, CONSTANT, 4.59 / 5.71),
    (0.307 / 0.382, FALLING, 5.88 / 5.92),
    (0.307 / 0.384, FALLING, 5.81 / 5.91),
    (4.78, CONSTANT[:2], 2.1 / 3.4),
    (4.78, CONSTANT[:2], 2.0 / 3.4),
]


@pytest.mark.parametrize(("noise", "lengths", "kept"), MEASURED)
def test_the_forecast_meets_what_was_measured(noise: float, lengths: tuple[float, ...], kept: float) -> None:
    assert share_kept(noise * float(np.linalg.norm(lengths))) == pytest.approx(kept, abs=0.05)


def test_the_steps_of_four_rounds_are_those_that_were_measured() -> None:
    first, last = first_and_last(4)
    assert [round(first * share_left(n, 4, last), 4) for n in range(4)] == list(FALLING)


@pytest.mark.parametrize("rounds", [1, 3, 4, 9, 20])
def test_the_noise_carried_is_that_of_the_steps(rounds: int) -> None:
    rng, dim = np.random.default_rng(0), 4000
    first, last = first_and_last(rounds)
    core = np.zeros(dim)
    for number in range(rounds):
        core += first * share_left(number, rounds, last) * 0.5 * rng.standard_normal(dim) / dim**0.5
    assert np.linalg.norm(core) == pytest.approx(noise_carried(0.5, rounds), rel=0.05)


@pytest.mark.parametrize("kept", [0.5, 0.75, 0.97])
def test_the_noise_for_a_share_leaves_that_share(kept: float) -> None:
    assert gain_kept(noise_for(kept, 6), 6) == pytest.approx(kept)
    assert gain_kept(0.0, 6) == 1
