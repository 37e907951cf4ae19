"""Where planted bugs come from: a file of the tests, which no installed package holds and no other command opens.

A bug is put in by a context manager of `tests/audit_bugs/planted_bugs.py`, at the place where the real code looks a
name up, and taken out again when the audit is over. Without a permit of this module that file does nothing; a permit
is given out only while an audit of invented people runs, and its result is stamped with the bug's name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import simulation
from privacy.errors import ConfigError

BUGS: Final = Path(simulation.__file__).parent.parent / "tests" / "audit_bugs" / "planted_bugs.py"


class Permit:
    """Says that the one who asks is the audit of the mechanism, while it runs; see `planted`."""

    def __init__(self) -> None:
        self.open = True


def bug_names() -> tuple[str, ...]:
    """Return the names of the bugs that can be planted, sorted; none where the tests are not beside the packages."""
    return tuple(sorted(_bugs())) if BUGS.is_file() else ()


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run the block with the bug in the code, and without it again after; None plants nothing. Raises ConfigError."""
    if name is None:
        yield
        return
    if not BUGS.is_file():
        raise ConfigError("bugs are planted from a checkout with its tests; this installation has none")
    if name not in (bugs := _bugs()):
        raise ConfigError(f"no bug is named {name}; there are {', '.join(sorted(bugs))}")
    permit = Permit()
    try:
        with _module().plant(name, permit):
            yield
    finally:
        permit.open = False


def _bugs() -> Mapping[str, object]:
    found: Mapping[str, object] = _module().BUGS
    return found


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("confide_planted_bugs", BUGS)
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot read {BUGS.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
