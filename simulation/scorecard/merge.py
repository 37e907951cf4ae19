"""Several finished scorecards as one: their tasks side by side, p-values adjusted over all of them together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from privacy.errors import ConfigError
from simulation.scorecard.criteria import adjusted
from simulation.scorecard.criteria import notes as criteria_notes
from simulation.scorecard.evaluate import CardReport
from simulation.scorecard.table import adjust, told_notes

KEYS = set(CardReport.__annotations__)


def read_card(folder: Path) -> CardReport:
    """Return the scorecard in a folder. Raises ConfigError for one that holds none."""
    try:
        found: CardReport = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{folder.name} holds no scorecard") from None
    if not isinstance(found, dict) or set(found) != KEYS:
        raise ConfigError(f"{folder.name} holds no scorecard of this version")
    return found


def merged(cards: Sequence[CardReport]) -> CardReport:
    """Return one card of all tasks. Raises ConfigError where two cards have a task of one name.

    Each task keeps its values and p-values; what is shown may change, since more tasks are more chances of error.
    Personalization bias is of one release: that of the first card which has it.
    """
    tasks = [task for card in cards for task in card["table"]["tasks"]]
    names = [task["task"] for task in tasks]
    if len(set(names)) != len(names):
        raise ConfigError(f"two scorecards have the task {next(n for n in names if names.count(n) > 1)}")
    rows = [row for card in cards for row in card["table"]["rows"]]
    adjust(rows)
    measures = adjusted([row for card in cards for row in card["measures"]])
    seeds = sorted({seed for card in cards for seed in card["table"]["seeds"]})
    cold = list(itertools.chain.from_iterable(card["table"]["cold"] for card in cards))
    table = {"tasks": tasks, "rows": rows, "cold": cold, "seeds": seeds, "notes": []}
    found: CardReport = {
        "table": table,  # type: ignore[typeddict-item]
        "measures": measures,
        "groups": [group for card in cards for group in card["groups"]],
        "gaps": [gap for card in cards for gap in card["gaps"]],
        "responsiveness": {task: arms for card in cards for task, arms in card["responsiveness"].items()},
        "bias": next((card["bias"] for card in cards if card["bias"]["rows"]), cards[0]["bias"]),
        "releases": [release for card in cards for release in card["releases"]],
        "seconds": sum(card["seconds"] for card in cards),
        "settings": cards[0]["settings"],
    }
    found["table"]["notes"] = [*told_notes(found["table"]), *criteria_notes(measures)]
    return found
