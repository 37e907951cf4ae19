"""A clip norm that follows the people: the quantile of update norms, found from one noisy bit a person and round.

    b_i = 1 if ||u_i|| <= C else 0,    C <- C exp(-rate (mean of b - quantile))

after Andrew, Thakkar, McMahan and Ramaswamy 2021 (arXiv:1905.03871). The bit is one more number of the answer, written
as a quarter of the clip (`BIT_SHARE`) and clipped and noised with the rest of it: it costs no budget of its own, and
leaves sqrt(1 - 1/16) of the clip to the update. What comes back is a noisy mean, so all of this is free of privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from privacy.errors import ConfigError

BIT_SHARE: Final = 0.25
UPDATE_SHARE: Final = math.sqrt(1 - BIT_SHARE**2)


@dataclass(frozen=True)
class AdaptiveClip:
    """Aim at the `quantile` of update norms by steps of `rate` in the logarithm, never above `most`."""

    quantile: float = 0.5
    rate: float = 0.2
    most: float = math.inf

    def __post_init__(self) -> None:
        if not (0 < self.quantile < 1 and 0 < self.rate <= 2 and self.most > 0):
            raise ConfigError("adaptive clip: quantile must be in (0, 1), rate in (0, 2] and the bound above 0")

    def next(self, clip: float, below: float) -> float:
        """Return the clip of the next round; `below` is the noisy share of people whose update was within `clip`.

        A share outside [0, 1] is noise and counts as the nearer end, so that one round moves the clip by no more than
        exp(rate).
        """
        share = min(max(below, 0.0), 1.0)
        return min(self.most, clip * math.exp(-self.rate * (share - self.quantile)))
