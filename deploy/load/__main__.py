"""Measure a server with many devices, and write what was measured. Run in the end-to-end test (tests/deploy).

    python -m deploy.load FOLDER --devices 200 --rounds 5 [--sites 210 --rank 8 --idle 3]

Starts `confide server start` as a process of its own over a new federation in FOLDER, connects the devices
(`deploy.load.fleet`), starts `confide server run`, and writes FOLDER/load.json: seconds of each part, of each round,
the most memory of SuperLink, server and run (VmHWM, in MB), messages and errors, and how many sums are exact: number
by number what the devices in them sent. On one machine the devices' own work
is on the same cores: the seconds are of all of it. `--idle` is how long a device waits that found no message; Flower's
SuperNode waits three seconds. The last `--half` devices announce their masked vectors and never send them; a
stage waits `--stage` seconds for what does not come.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from deploy.load.books import books_agree, flushed
from deploy.load.crew import Crew, founded, made_basis
from deploy.load.fleet import IDLE_S, Fleet
from deploy.load.memory import peak_mb, remember
from deploy.local.federation import free_ports
from privacy.files import write_atomic
from server.events import events
from server.folder import OperatorFolder

PATIENCE_S = 7200.0


def main() -> int:
    """Run the measurement and return the exit status of the campaign."""
    parser = argparse.ArgumentParser(prog="python -m deploy.load")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sites", type=int, default=210)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--idle", type=float, default=IDLE_S)
    parser.add_argument("--half", type=int, default=0)
    parser.add_argument("--stage", type=int, default=600)
    told = parser.parse_args()
    sizes = told.devices, told.rounds, told.sites, told.rank
    facts = measured(told.folder.absolute(), *sizes, told.workers, told.idle, told.half, told.stage)
    write_atomic(told.folder / "load.json", json.dumps(facts, indent=1).encode())
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    return 0 if facts["status"] == 0 and facts["exact"] == len(facts["sums"]) and facts["books_agree"] else 1


def measured(
    folder: Path,
    devices: int,
    rounds: int,
    sites: int,
    rank: int,
    workers: int,
    idle_s: float = IDLE_S,
    half: int = 0,
    stage_s: int = 600,
) -> dict[str, Any]:
    """Return what a campaign with so many devices took; everything that was started is ended."""
    folder.mkdir(parents=True)
    basis, ports = made_basis(sites, rank), free_ports(3)
    facts: dict[str, Any] = {"devices": devices, "rounds": rounds, "dim": basis.layout.dim, "cores": os.cpu_count()}
    facts |= {"idle_s": idle_s, "half": half}
    ours = ports[0], ports[1], ports[2]
    operator = founded(folder / "server", devices, rounds, ours, basis, stage_s=stage_s)
    crew = timed(facts, "admit_s", lambda: Crew(operator, folder / "crew", devices, basis))
    os.environ["CONFIDE_SOCKETS"] = str(crew.sockets)
    most: dict[str, float] = {}
    server = command(folder, "start", operator)
    fleet = None
    try:
        timed(facts, "start_s", lambda: wait(lambda: (folder / "start.out").read_bytes().endswith(b"}\n"), server))
        authority = operator.folder / "tls" / "ca.crt"
        keys = crew.node_keys
        fleet = timed(
            facts, "connect_s", lambda: Fleet(operator.settings.address, authority, keys, workers, idle_s, half)
        )
        run, began = command(folder, "run", operator), time.time()
        while run.poll() is None and time.time() - began < PATIENCE_S:
            remember(folder, most)
            time.sleep(0.5)
        facts |= {"campaign_s": round(time.time() - began, 1), "status": run.poll()}
        facts |= {"round_s": seconds_of(operator), "sums": survivors_of(operator)}
        facts |= {"messages": fleet.seen.messages, "errors": fleet.seen.errors}
        facts["lost"] = [str(e["reason"]) for e in events(operator.home) if e["event"] == "lost"]
        facts["exact"] = sum(crew.exact(*of_sum) for of_sum in flushed(operator.home))
        facts["books_agree"] = books_agree(operator, folder / "crew" / "ledgers")
        facts["reply_s"] = {k: round(s / fleet.seen.messages[k], 3) for k, s in fleet.seen.seconds.items()}
    finally:
        if fleet is not None:
            fleet.close()
        end(server)
        crew.close()
    facts["peak_mb"] = {name: round(value, 1) for name, value in most.items()}
    facts["devices_mb"] = round(peak_mb(os.getpid()), 1)
    return facts


def command(folder: Path, word: str, operator: OperatorFolder, *more: str) -> subprocess.Popen[bytes]:
    """Start `confide server start` or `run` over the federation; what it says lies in FOLDER."""
    words = [sys.executable, "-P", "-m", "confide", "server", word, str(operator.folder), *more, "--json"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIDE_", "FLWR_"))}
    kept["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with (folder / f"{word}.out").open("wb") as out, (folder / f"{word}.err").open("wb") as err:
        return subprocess.Popen(words, env=kept, stdout=out, stderr=err, start_new_session=True)


def timed(facts: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Return what `work` returns and note how long it took."""
    began = time.monotonic()
    result = work()
    facts[name] = round(time.monotonic() - began, 1)
    return result


def wait(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Return once it holds. Raises RuntimeError if the process ends before."""
    until = time.monotonic() + PATIENCE_S
    while not holds():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the server did not start: see start.err")
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server as its service manager would."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60.0)
    except subprocess.TimeoutExpired:
        process.kill()


def seconds_of(operator: OperatorFolder) -> list[float]:
    """Return how long each round took, by the server's events."""
    noted = [e for e in events(operator.home) if e["event"] in ("begun", "sum")]
    times = [datetime.fromisoformat(str(e["ts"])).timestamp() for e in noted]
    return [round(after - before, 1) for before, after in pairwise(times)]


def survivors_of(operator: OperatorFolder) -> list[Any]:
    """Return how many devices each sum holds."""
    return [e.get("survivors") for e in events(operator.home) if e["event"] == "sum"]


if __name__ == "__main__":
    sys.exit(main())
