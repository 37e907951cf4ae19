"""A command measured from outside: its seconds, the processor's seconds and the most memory of all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from privacy.errors import ConfideError

SAMPLE_S = 0.2
MEMORY_EVERY = 2  # samples; what a process shares with others is read from a file that the kernel makes anew each time


class BenchFailed(ConfideError):
    """A measured command ended with an error; the message holds the last line that it said."""


@dataclass(frozen=True)
class Cost:
    """What a command took: `seconds` by the clock, `cpu_s` and `peak_mb` (2^20 bytes) of the whole tree of processes.

    `cpu_s` lacks what a process did after the last look at it, a fifth of a second at most. `peak_mb` is the sum of
    proportional set sizes: a page that n processes share counts 1/n in each. `memory_mb` is that sum at
    every second look, about every 0.4 s.
    """

    seconds: float
    cpu_s: float
    peak_mb: float
    output: str
    memory_mb: tuple[float, ...] = ()


def measured(command: Sequence[str], environment: Mapping[str, str], timeout_s: float = 3600.0) -> Cost:
    """Run `command` to its end and return what it took. Raises BenchFailed where it fails or takes too long.

    Whatever it leaves running is ended with it.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        begun = time.perf_counter()
        child = subprocess.Popen(
            list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        tree = _Tree(child.pid)
        try:
            while not _ended(child):
                tree.look()
                if time.perf_counter() - begun > timeout_s:
                    raise BenchFailed(f"{_name(command)} took longer than {timeout_s:.0f} s")
            seconds = time.perf_counter() - begun
        finally:
            tree.end()
            child.wait()
        out.seek(0)
        if child.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise BenchFailed(f"{_name(command)} failed: {last[:300]}")
        return Cost(seconds, tree.cpu_s, max(tree.memory_mb, default=0.0), out.read(), tuple(tree.memory_mb))


def _ended(child: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        child.wait(SAMPLE_S)
        return True
    return False


class _Tree:
    """A process and all below it; each one's processor seconds are remembered when it is gone."""

    def __init__(self, root: int) -> None:
        self.memory_mb: list[float] = []
        self._known: dict[int, psutil.Process] = {}
        self._cpu: dict[psutil.Process, float] = {}
        self._looks = 0
        with suppress(psutil.Error):
            self._known[root] = psutil.Process(root)

    @property
    def cpu_s(self) -> float:
        return sum(self._cpu.values())

    def look(self) -> None:
        for process in list(self._known.values()):
            with suppress(psutil.Error):
                for below in process.children(recursive=True):
                    self._known.setdefault(below.pid, below)
        total = 0.0
        for pid, process in list(self._known.items()):
            try:
                times = process.cpu_times()
                self._cpu[process] = times.user + times.system
                if self._looks % MEMORY_EVERY == 0:
                    total += _shared_memory_mb(pid)
            except (OSError, psutil.Error):
                self._known.pop(pid)
        if self._looks % MEMORY_EVERY == 0:
            self.memory_mb.append(total)
        self._looks += 1

    def end(self) -> None:
        """Kill what is left; a process started anew under an old number is not one of ours."""
        for process in self._known.values():
            with suppress(psutil.Error, OSError):
                if process.is_running() and process.pid != os.getpid():
                    process.send_signal(signal.SIGKILL)


def _shared_memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _name(command: Sequence[str]) -> str:
    return " ".join(Path(part).name for part in command[:4])
