"""How long a person waits for `confide --help`, beside `flwr --help` and beside the bare interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from simulation.bench.environments import ROOT, peer_environment
from simulation.bench.process import BenchFailed
from simulation.bench.row import Row, less_is_better

OURS = "from confide import main; main()"
PEER = "from flwr.cli.app import app; app()"
BARE = "pass"
NAME = "flwr --help, Flower 1.41"
SAME = "each as its console script begins it, in turns, median; limit: the bare interpreter"


def start_row(tries: int = 9) -> Row:
    """Return the row `start.help`: seconds by the clock from the command to its end, the median of `tries`."""
    took: dict[str, list[float]] = {OURS: [], PEER: [], BARE: []}
    for number in range(tries + 1):
        for code, found in took.items():
            seconds = _seconds(code)
            if number:  # the first of each reads the files from the disk
                found.append(seconds)
    ours, peer, bare = (statistics.median(took[code]) for code in (OURS, PEER, BARE))
    return less_is_better("start.help", "seconds", ours, (NAME, peer), SAME, bare)


def _seconds(code: str) -> float:
    environment = peer_environment() | {"PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=environment, capture_output=True, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    if done.returncode or (code != BARE and b"Usage" not in done.stdout):
        raise BenchFailed(f"{code} --help showed no help")
    return seconds
