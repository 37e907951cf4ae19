"""The four layers in one go, at one of two sizes, in a folder of their own that is gone afterwards."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from simulation.mechanism import one_run, residuals, sensitivity, trade_off
from simulation.mechanism.code import code_sha256
from simulation.mechanism.layer import Layer, Mechanism
from simulation.mechanism.people import root_of
from simulation.mechanism.planting import planted

LAYERS: Final = ("residuals", "sensitivity", "one run", "trade-off")
FALSE_ALARM: Final = 0.001


@dataclass(frozen=True)
class Power:
    """How much each layer looks at."""

    residuals: residuals.Size
    sensitivity: sensitivity.Size
    one_run: one_run.Size
    trade_off: trade_off.Size


FULL: Final = Power(
    residuals.Size(), sensitivity.Size(), one_run.Size(people=512), trade_off.Size(rounds=256, attempts=2)
)
QUICK: Final = Power(
    residuals.Size(rank=32, rounds=6, mask_keys=2**17),
    sensitivity.Size(people=10, rank=16, inputs=20, rounds=4),
    one_run.Size(people=64),
    trade_off.Size(rounds=20),
)


def audit_mechanism(
    power: Power = FULL,
    *,
    bug: str | None = None,
    seed: int | None = None,
    false_alarm: float = FALSE_ALARM,
    only: tuple[str, ...] = LAYERS,
    said: Callable[[Layer], object] = lambda layer: None,
) -> Mechanism:
    """Return the audit of the code that is installed here, with `bug` in it where one is named.

    `false_alarm` is the rate at which each layer may be red by chance. `seed` makes noise and coins repeatable (masks
    never are: they cancel); None takes the operating system's. `said` hears of each layer as it ends.
    """
    coins = np.random.default_rng(seed)
    found = []
    with tempfile.TemporaryDirectory(prefix="confide-audit-") as name, planted(bug):
        folder = Path(name)
        roots = {layer: root_of(seed, layer, os.urandom) for layer in LAYERS}
        run: dict[str, Callable[[], Layer]] = {
            "residuals": lambda: residuals.residuals(folder, roots["residuals"], power.residuals, false_alarm),
            "sensitivity": lambda: sensitivity.sensitivity(
                folder, roots["sensitivity"], power.sensitivity, false_alarm
            ),
            "one run": lambda: one_run.one_run(folder, roots["one run"], coins, power.one_run, false_alarm),
            "trade-off": lambda: trade_off.trade_off(folder, roots["trade-off"], coins, power.trade_off, false_alarm),
        }
        for layer in only:
            found.append(run[layer]())
            said(found[-1])
    facts: dict[str, object] = {
        "seed": seed,
        "code_sha256": code_sha256(),
        "python": platform.python_version(),
        "trainer": TRAINER,
    }
    return Mechanism(tuple(found), bug, facts)


TRAINER: Final = "a plain function, with known updates: training is not what these layers look at"
