"""What a person sees of long work: bars at a terminal, a line a phase elsewhere, nothing with `--json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars


class Progress:
    """Progress on standard error. `phases` holds the seconds of every named phase, for the report's cost."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.phases: dict[str, float] = {}

    def note(self, line: str) -> None:
        """Show one line."""
        self.console.print(line, highlight=False, markup=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase under `name`; phases of one name add up."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - started

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar of `total` steps; yields the function that advances it by one."""
        if not self.console.is_terminal:
            self.note(f"{label} …")
            yield lambda: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(label, total=total)
            yield lambda: bars.advance(task)
