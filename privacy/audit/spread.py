"""Many ledgers read by all cores: verifying one takes milliseconds of one core, and there may be a hundred thousand."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol, TypeVar

Found = TypeVar("Found")
MANY: Final = 256  # fewer are read before a second process has begun
AT_ONCE: Final = 64


class Spread(Protocol):
    """Calls a function with each path, like `map`: results in the paths' order."""

    def __call__(self, read: Callable[[Path], Found], paths: Sequence[Path]) -> Iterable[Found]:
        """Return what `read` returns for each path."""


def in_turn(read: Callable[[Path], Found], paths: Sequence[Path]) -> Iterable[Found]:
    """Return what `read` returns for each path, one after the other."""
    return map(read, paths)


def over_cores(read: Callable[[Path], Found], paths: Sequence[Path]) -> Iterable[Found]:
    """Return what `read` returns for each path, read by as many processes as there are cores where there are many.

    For a command, whose main module does nothing when it is imported: a process begins by importing it.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if cores == 1 or len(paths) < MANY:
        yield from map(read, paths)
        return
    with ProcessPoolExecutor(cores, get_context("forkserver" if sys.platform == "linux" else "spawn")) as pool:
        yield from pool.map(read, paths, chunksize=AT_ONCE)
