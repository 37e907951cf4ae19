"""How worker processes begin: forked from one process that has imported what they need and has done nothing else.

    this process --starts--> the origin (imports torch, PEFT, Opacus once) --forks--> worker 0, worker 1, ...

A worker so begins in a moment and shares the memory of what was imported. Where there is a GPU each worker imports for
itself: to look for one is enough for its driver to be of no use behind a fork.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Final

NEEDED: Final = ("simulation.work", "client.probe")
GPUS: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, of either under Windows


def can_fork() -> bool:
    """Return whether workers are forked here: on Linux, where no GPU is seen."""
    return sys.platform == "linux" and not any(Path(gpu).exists() for gpu in GPUS)


def context() -> BaseContext:
    """Return how this machine's workers are begun."""
    import multiprocessing

    if not can_fork():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([f"{__package__}.origin"])
    return found


def prepare_workers() -> None:
    """Let the origin begin its imports while this process does something else; returns at once.

    Ctrl-C never reaches it: it ends with this process.
    """
    if can_fork():
        context()
        with interrupts_held():
            forkserver.ensure_running()


def import_needed() -> None:
    """Import what every worker needs; called once, in the process that they are forked from."""
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is never searched for cycles is never written to, and stays shared


def take_environment(environment: Mapping[str, str]) -> None:
    """Give a worker the environment of whoever asked for it: the origin may have begun under another."""
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back inside the block. A process begun there never sees it: its parent does, and ends it in order."""
    resource_tracker.ensure_running()  # it lets the signal through again where it has to be started first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
