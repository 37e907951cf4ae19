"""A recipe: one application as one command and one row of the scorecard, in TOML.

    title, application, task (`simulation.scorecard.tasks`), arms, criteria, seeds, [card] as `--card`

`shown_on` says on which data the row was measured, "" where nothing was: then it says *not shown*.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.errors import ConfigError
from simulation.config import settings_of
from simulation.scorecard.arms import DEFAULT, arms_named
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.tasks import CHOICE, TEXT, task_named
from simulation.scorecard.tasks import DEFAULT as DEFAULT_TASK


@dataclass(frozen=True)
class Recipe:
    """One application of the scorecard."""

    title: str
    application: str
    task: str = DEFAULT_TASK
    shown_on: str = ""
    arms: tuple[str, ...] = DEFAULT
    criteria: bool = False
    seeds: int = 1
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Return the recipe in a file. Raises ConfigError that names the file and the key."""
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
            found = cls(**{**tree, "arms": tuple(tree.get("arms", DEFAULT))})
        except OSError as error:
            raise ConfigError(f"{path.name}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise ConfigError(f"{path.name}: is no recipe ({error})") from None
        try:
            kind = task_named(found.task).kind
        except ConfigError as error:
            raise ConfigError(f"{path.name}: {error}") from None
        if kind in (TEXT, CHOICE):
            arms_named(found.arms)
        found.settings([])
        return found

    def settings(self, more: list[str]) -> CardSettings:
        """Return what the card may cost: the recipe's, with `key=value` on top."""
        found: CardSettings = settings_of(CardSettings, more, {"task": task_named(self.task).name, **self.card})
        return found
