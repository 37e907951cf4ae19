"""How long a campaign's steps are: one rule for the server that takes them and for the plan that foresees their noise.

Lengths are in units of the mean of people's updates, each scaled to length 1 and clipped there, in the whitened basis
over all layers. They come from a search on real people (docs/utility.md) and depend on no data of a federation.
"""

from __future__ import annotations

import math
from typing import Final

TOGETHER: Final = 1.3  # mean updates that all steps of a campaign are long together
LONGEST: Final = 0.28  # longer steps overshoot in the first rounds
CONSTANT_ROUNDS: Final = 2  # up to so many rounds all steps are equally long
HALF_GONE: Final = 2.6  # noise in the released core, over the norm of the first mean, at which half the gain is gone

RANKS: Final = {  # of the core over all layers: gain without noise over that of rank 8, norm of the first mean
    4: (0.71, 0.40),
    8: (1.0, 0.39),
    16: (1.18, 0.35),
    32: (1.31, 0.31),
}


def first_and_last(rounds: int) -> tuple[float, float]:
    """Return the length of the first step and the share of it that the last one has; it falls linearly between."""
    last = min(1.0, CONSTANT_ROUNDS / rounds)
    return min(LONGEST, 2 * TOGETHER / (rounds * (1 + last))), last


def share_left(number: int, rounds: int, last: float) -> float:
    """Return the share of the first rate that training round `number` of `rounds` has: linear from 1 to `last`."""
    return 1 - (1 - last) * number / (rounds - 1) if rounds > 1 else 1.0


def noise_carried(noise: float, rounds: int) -> float:
    """Return the norm of the noise in the released core, in the unit of `noise`, that of one round's mean."""
    first, last = first_and_last(rounds)
    return noise * first * math.sqrt(sum(share_left(n, rounds, last) ** 2 for n in range(rounds)))


def gain_kept(noise_ratio: float, rounds: int) -> float:
    """Return the expected share of the gain without noise that is left; `noise_ratio` is noise over the first mean."""
    return share_kept(noise_carried(noise_ratio, rounds))


def share_kept(carried: float) -> float:
    """Return the share of the gain that is left where the released core carries so much noise, over the first mean.

        1 / (1 + (noise carried / 2.6)^2)

    Noise in whitened directions costs its square times a mean curvature that is about the same everywhere, and people
    who have more in common, whose mean is longer, have more to gain. The one constant is fitted to campaigns on two
    kinds of people with one model, at shares from 0.6 to 1, which it meets within 0.05; elsewhere it is a forecast.
    """
    return 1 / (1 + (carried / HALF_GONE) ** 2)


def noise_for(kept: float, rounds: int) -> float:
    """Return the noise of a round's mean, over the first mean, at which `gain_kept` is `kept`."""
    return HALF_GONE * math.sqrt(1 / kept - 1) / noise_carried(1.0, rounds)
