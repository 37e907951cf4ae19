"""What an attack achieved, with its interval, and what differential privacy allows it at most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.audit.bounds import normal_tail, quantile

Z95: Final = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Success:
    """A success between 0 and 1 with its 95 % interval, and in words."""

    value: float
    low: float
    high: float
    said: str

    def as_dict(self) -> dict[str, object]:
        """Return the success for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "said": self.said}


@dataclass(frozen=True)
class Attack:
    """One attack, off and on. `chance` is what guessing gives, `allowed` the most that (epsilon, delta) allows."""

    name: str
    title: str
    unprotected: Success
    protected: Success
    chance: float
    allowed: float
    allowed_said: str

    @property
    def has_teeth(self) -> bool:
        """Return whether it works where nothing protects: its interval lies above chance."""
        return self.unprotected.low > self.chance

    @property
    def holds(self) -> bool:
        """Return whether the protected success is not shown to be above what is allowed."""
        return self.protected.low <= self.allowed

    def as_dict(self) -> dict[str, object]:
        """Return the attack for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "teeth": self.has_teeth,
            "holds": self.holds,
            "unprotected": self.unprotected.as_dict(),
            "protected": self.protected.as_dict(),
            "chance": self.chance,
            "allowed": self.allowed,
            "allowed_said": self.allowed_said,
        }


def share(hits: int, trials: int, what: str) -> Success:
    """Return a share with Wilson's interval, which stays within 0 and 1."""
    if trials < 1:
        raise ValueError("a share of nothing")
    value, spread = hits / trials, Z95 * Z95 / trials
    middle = (value + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(value * (1 - value) / trials + spread / (4 * trials)) / (1 + spread)
    return Success(value, max(0.0, middle - half), min(1.0, middle + half), f"{hits} of {trials} {what}")


def ranking(inside: NDArray[np.float64], outside: NDArray[np.float64], what: str) -> Success:
    """Return the area under the curve, Pr[score of an insider > that of an outsider], ties half, with its interval.

    The deviation is DeLong's: from how the placements of each side scatter.
    """
    above = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    value = float(above.mean())
    variance = sum(float(np.var(above.mean(axis=side), ddof=1)) / above.shape[1 - side] for side in (0, 1))
    half = Z95 * math.sqrt(max(variance, 1 / (4 * above.size)))
    said = f"AUC {value:.2f} over {len(inside)} and {len(outside)} {what}"
    return Success(value, max(0.0, value - half), min(1.0, value + half), said)


def allowed_pair(mu: float) -> float:
    """Return how often the right one of two may be told: Phi(mu / 2), for worlds that are mu apart (Gaussian DP).

    An area under the curve is such a share: of a pair, who is the insider. The pair's two worlds swap the two, and each
    lies mu from the world without either (adjacency zero-out), so they lie up to 2 mu from each other.
    """
    return normal_tail(-mu / 2)


def allowed_guess(mu: float, chance: float) -> float:
    """Return how often a secret that guessing finds with `chance` may be found: Phi(Phi^-1(chance) + mu).

    For a secret in one person's text against another in its place mu counts twice: both lie mu from no text at all.
    """
    return normal_tail(-(quantile(chance) + mu))
