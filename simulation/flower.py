"""The same campaign over Flower: a child process with Flower's own simulation, relays, and our ServerApp in it.

The agents stay in the hosts of this run and listen on Unix sockets; Flower's workers only relay. The child tells over a
line what happens and waits before a sum counts. When this run ends, for whatever reason, so do Flower and Ray.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from client.listener import is_alive
from privacy.errors import ConfideError, ConfigError
from server.home import ServerHome
from server.link import VARIABLE, Link
from simulation.engine import RunWatch
from simulation.host import ENDED

MAX_NODES = 128  # above, a node relays for several people: Flower's simulation slows with the square of its nodes
ENDING_S = 20.0
SOCKETS = "CONFIDE_SOCKETS"


def run_over_flower(home: ServerHome, watch: RunWatch, people: int, cluster: str = "") -> None:
    """Run what is left of the campaign in `home` over Flower. Raises ConfideError, also where Flower ends early.

    On a Ray `cluster` Flower's relays are on all of its nodes, and look for sockets where each node has them. If this
    process was itself started by a ServerApp (`flwr run .`), that one runs the rounds, else a child does.
    """
    outer = Link.inherited()
    with _sockets(watch, default=outer is not None or bool(cluster)) as sockets:
        if outer is not None:
            outer.send({"home": str(home.folder.absolute())})
            follow(outer, watch)
            return
        with _child(home, sockets, min(people, MAX_NODES), cluster) as link:
            link.send({"home": str(home.folder.absolute())})
            follow(link, watch)


def follow(link: Link, watch: RunWatch) -> None:
    """Show what the server tells, until it is done. Raises ConfideError with its line if it failed.

    A worker process that dies takes its people's agents along, and nobody's relay is answered there: the run ends then,
    and goes on from its files when it is started again.
    """
    for line in link.lines(watch.pool.sentinels):
        event = line["event"]
        if event == "done":
            return
        if event == "failed":
            raise ConfideError(str(line["line"]))
        _show(event, line, watch)
        if event == "closed":
            link.send({"ack": True})
    if wait(watch.pool.sentinels, timeout=0):
        raise ConfideError(ENDED)
    raise ConfideError("Flower ended before the campaign did: see flower.log in the run's checkpoints")


def _show(event: str, line: dict[str, Any], watch: RunWatch) -> None:
    asked = watch.asked(int(line["round"]), int(line["attempt"]))
    if event == "stage":
        watch.stage(asked, line["name"], line["devices"])
    elif event == "answered":
        watch.answered(asked, line["name"], line["device"])
    elif event == "closed":
        watch.closed(replace(asked, invited=tuple(line["invited"])), line["survivors"], line["seconds"])
    else:
        watch.lost(asked, line["reason"])


@contextmanager
def _sockets(watch: RunWatch, default: bool) -> Iterator[Path]:
    """Yield the folder in which all hosts listen, open to this user alone, and remove it in the end.

    `default`: the one folder that a relay looks into when nobody told it another; one run at a time can have it.
    """
    if default:
        folder = Path(tempfile.gettempdir()) / f"confide-{os.getuid()}"
        if any(is_alive(path) for path in folder.glob("*.sock")):
            raise ConfigError("another run under `flwr run` is going on; wait for it or stop it")
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left
        folder.mkdir(mode=0o700)
    else:
        folder = Path(tempfile.mkdtemp(prefix="confide-"))
    try:
        watch.pool.listen(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _child(home: ServerHome, sockets: Path, nodes: int, cluster: str) -> Iterator[Link]:
    """Yield the line to a child process that runs Flower; the child and all that it started end with the block."""
    link, (reads, writes) = Link.pair()
    environment = {**os.environ, VARIABLE: f"{reads},{writes}", SOCKETS: str(sockets), **QUIET}
    log = (home.folder / "checkpoints" / "flower.log").open("ab")
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "simulation.flower_process", str(nodes), *([cluster] if cluster else [])],
        cwd=Path(__file__).parent.parent,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(reads, writes),
        start_new_session=True,  # Ctrl-C is this process's to handle: the child ends when the line closes
    )
    for descriptor in (reads, writes):
        os.close(descriptor)
    try:
        yield link
    finally:
        link.close()
        log.close()
        with suppress(subprocess.TimeoutExpired):
            child.wait(ENDING_S)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the child if it hangs, and what of Ray has not ended with it
        child.wait()


QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
}
