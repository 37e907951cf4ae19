"""What a layer says: checks, and the bound that it could show, did show and could not have passed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from privacy.errors import ConfideError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it holds (None: could not be looked at), and what was seen."""

    name: str
    holds: bool | None
    detail: str

    def __post_init__(self) -> None:
        """Make a numpy truth a plain one: `numpy.False_ is False` does not hold, and a red check must be red."""
        object.__setattr__(self, "holds", None if self.holds is None else bool(self.holds))

    def as_dict(self) -> dict[str, object]:
        """Return the check for JSON."""
        return {"name": self.name, "holds": self.holds, "detail": self.detail}


@dataclass(frozen=True)
class Layer:
    """One layer's outcome. `quantity` says what the three figures measure.

    `lower_bound` is what was shown, `claimed` what the ledgers allow, `ceiling` the most that this run could have
    shown, whatever the code does. A lower bound below the claim proves nothing; `power` says what would have been seen.
    """

    name: str
    quantity: str
    lower_bound: float
    claimed: float
    ceiling: float | None
    power: str
    false_alarm: float
    checks: tuple[Check, ...]
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Return whether no check failed."""
        return not any(check.holds is False for check in self.checks)

    def as_dict(self) -> dict[str, object]:
        """Return the layer for JSON."""
        return {
            "name": self.name,
            "holds": self.holds,
            "quantity": self.quantity,
            "lower_bound": self.lower_bound,
            "claimed": self.claimed,
            "ceiling": self.ceiling,
            "power": self.power,
            "false_alarm": self.false_alarm,
            "seconds": round(self.seconds, 2),
            "checks": [check.as_dict() for check in self.checks],
        }


@dataclass(frozen=True)
class Mechanism:
    """All layers of one audit. `planted` names the bug that was put in on purpose, if any."""

    layers: tuple[Layer, ...]
    planted: str | None = None
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Return whether every layer holds."""
        return all(layer.holds for layer in self.layers)

    def as_dict(self) -> dict[str, object]:
        """Return the audit for JSON; `bugs` names the planted bug where a layer is red."""
        caught = [self.planted] if self.planted and not self.holds else []
        stamp = {"planted": self.planted, "stamp": "NOT THE CODE AS IT IS: a bug was planted"} if self.planted else {}
        layers = [layer.as_dict() for layer in self.layers]
        return {"layers": layers, "bugs": caught, "holds": self.holds, **stamp, **self.facts}


def guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    """Return the checks of `look`; where the devices do not do what was asked of them, that is a failed check.

    A layer that could not be run to its end has not held.
    """
    try:
        return list(look())
    except NoSum as error:
        return [Check(name, False, str(error))]
    except ConfideError as error:
        return [Check(name, False, f"{type(error).__name__}: {error}")]


class NoSum(Exception):
    """The devices gave no sum where, by their policy and ledgers, they have to."""
