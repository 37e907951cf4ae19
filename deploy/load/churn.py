"""Real SuperNodes that leave, die and come back while campaigns run. Run in the end-to-end test (tests/deploy).

    python -m deploy.load.churn FOLDER --devices 20 --minutes 60 [--every 60 --away 45 --rounds 12 --stage 90]

Each device has a SuperNode of its own, kept up by what a real device runs (`client.take_part.Kept`), with our launcher,
over a folder with the pinned bundle; their agents are one process (`deploy.load.crew`), since what is looked at is
Flower and the server. Every `--every` seconds, by chance, one device leaves, half of them killed with all that they
started, half ended in order; it comes back after a time drawn with mean `--away`. The server runs one campaign after
the other until the time is over. FOLDER/churn.json says what came of it, each minute and in the end; it fails if a sum
has fewer devices than its floor, or a ledger charges less than the federation's says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.join import AUTHORITY, NODE_KEY, PIN
from client.listener import RelaySocket
from client.take_part import Kept, node_environment, supernode
from deploy.load.__main__ import command, wait
from deploy.load.__main__ import end as end_server
from deploy.load.books import books_agree, flushed
from deploy.load.crew import Crew, founded, made_basis
from deploy.load.memory import megabytes, remember, session_mb
from deploy.local.federation import free_ports
from privacy.files import write_atomic
from privacy.query import Cohort
from server.events import events
from server.folder import OperatorFolder

LOOK_S = 60.0  # between two looks at all processes' memory
# A device asks its own SuperNode for work twice a second; twenty on one machine would do little else.
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "2"}


class Churned:
    """One device's SuperNode: a real process that leaves and comes back."""

    def __init__(self, crew: Crew, operator: OperatorFolder, folder: Path, place: int) -> None:
        self.folder, self._address = folder, operator.settings.address
        folder.mkdir(parents=True)
        key = crew.node_keys[place]
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_atomic(folder / NODE_KEY, private, mode=0o600)
        write_atomic(folder / f"{NODE_KEY}.pub", key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        write_atomic(folder / AUTHORITY, (operator.folder / "tls" / "ca.crt").read_bytes())
        write_atomic(folder / PIN, operator.settings.bundle_sha256.encode())
        self.socket = RelaySocket(folder / "relay.sock", lambda _, node, frame: crew.service.reply(place, node, frame))
        self._kept: Kept | None = None
        self._leaving: threading.Thread | None = None
        self.back = 0.0
        self.starts = 0

    @property
    def there(self) -> bool:
        """Return whether its SuperNode is kept up now, connected or on its way."""
        return self._kept is not None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """Return its SuperNode as it runs now, None while it is away."""
        return self._kept.process if self._kept is not None else None

    def come(self) -> None:
        """Start its SuperNode, and from now on start it again whenever it ends."""
        if self._leaving is not None:
            self._leaving.join()
        command = supernode(self.folder, self._address)
        self._kept = Kept(command, node_environment(self.folder) | POLL, self.folder / "supernode.log")

    def leave(self, abruptly: bool) -> None:
        """End its SuperNode: in order, or killed at once with the program that it started for a message."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        if abruptly and kept.process is not None and kept.process.poll() is None:
            os.killpg(kept.process.pid, 9)

        def stop() -> None:
            kept.stop()
            self.starts += kept.starts

        self._leaving = threading.Thread(target=stop)
        self._leaving.start()

    def close(self) -> None:
        """End it and its socket."""
        if self._leaving is not None:
            self._leaving.join()
        self.socket.close()


def main() -> int:
    """Run the churn; 0 if every sum kept its floor and the books agree."""
    parser = argparse.ArgumentParser(prog="python -m deploy.load.churn")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0)
    parser.add_argument("--away", type=float, default=45.0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--stage", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    churn = Churn(told.folder.absolute(), told.devices, told.rounds, told.stage, told.seed)
    try:
        churn.start()
        churn.go_on(told.minutes, told.every, told.away)
    finally:
        churn.close()
    facts = churn.facts() | {"minutes": told.minutes}
    write_atomic(told.folder / "churn.json", json.dumps(facts, indent=1).encode())
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    return 0 if facts["holds"] else 1


class Churn:
    """One federation on loopback whose devices come and go, until `close`."""

    def __init__(self, folder: Path, devices: int, rounds: int, stage_s: int, seed: int) -> None:
        folder.mkdir(parents=True)
        basis, ports, self._drawn = made_basis(20, 8), free_ports(3), np.random.default_rng(seed)
        # More are admitted than a round invites, so that one that is away costs no round.
        invited = max(2, devices * 3 // 4)
        self.folder = folder
        self.operator = founded(
            folder / "server", devices, rounds, (ports[0], ports[1], ports[2]), basis, invited, stage_s
        )
        self.crew = Crew(self.operator, folder / "crew", devices, basis)
        self._server = command(folder, "start", self.operator)
        self.nodes: list[Churned] = []
        self._run: subprocess.Popen[bytes] | None = None
        self.killed = self.left = self.over = 0
        self.reasons: list[str] = []
        self.most: dict[str, float] = {}
        self.looks: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def start(self) -> None:
        """Return once the server runs and all devices' SuperNodes were started."""
        wait(lambda: (self.folder / "start.out").read_bytes().endswith(b"}\n"), self._server)
        for place in range(len(self.crew.names)):
            node = Churned(self.crew, self.operator, self.folder / "n" / str(place), place)
            self.nodes.append(node)
            node.come()

    def go_on(self, minutes: float, every: float, away: float) -> None:
        """Run campaigns for so long, and let a device leave every `every` seconds for `away` seconds in the mean."""
        self._began = time.monotonic()
        until, next_leave, next_look = self._began + 60 * minutes, self._began + every, self._began + LOOK_S
        while (now := time.monotonic()) < until:
            for node in self.nodes:
                if not node.there and now > node.back:
                    node.come()
            self._keep_running()
            if now > next_leave:
                self._let_leave(away)
                next_leave += every
            if now > next_look:
                self._look()
                next_look += LOOK_S
            time.sleep(1.0)

    def close(self) -> None:
        """End everything that was started."""
        if self._run is not None:
            end_server(self._run)
        for node in self.nodes:
            node.leave(abruptly=False)
        for node in self.nodes:
            node.close()
        end_server(self._server)
        self.crew.close()

    def facts(self) -> dict[str, Any]:
        """Return what happened, and whether every sum kept its floor and the books agree."""
        ledgers = self.folder / "crew" / "ledgers"
        floor = Cohort(self.operator.settings.cohort).min_survivors
        noted = list(events(self.operator.home))
        exact = sum(self.crew.exact(query, total, survivors) for query, total, survivors in flushed(self.operator.home))
        sums = [int(str(event["survivors"])) for event in noted if event["event"] == "sum"]
        return {
            "devices": len(self.nodes),
            "invited": self.operator.settings.cohort,
            "floor": floor,
            "rounds_a_campaign": self.operator.settings.rounds,
            "killed": self.killed,
            "left_in_order": self.left,
            "supernodes_started": sum(node.starts for node in self.nodes),
            "runs_over": self.over,
            "released": sum(event["event"] == "released" for event in noted),
            "reasons": self.reasons,
            "sums": sums,
            "attempts_lost": [str(event["reason"]) for event in noted if event["event"] == "lost"],
            "exact": exact,
            "holds": min(sums, default=0) >= floor and exact == len(sums) and books_agree(self.operator, ledgers),
            "peak_mb": {name: round(value, 1) for name, value in self.most.items()},
            "looks": self.looks,
        }

    def _keep_running(self) -> None:
        """Start the campaign, start it again where it ended before its time, and begin another once it is over."""
        if self._run is not None and self._run.poll() is None:
            return
        over = False
        if self._run is not None:
            self.over += 1
            if self._run.returncode:
                self.reasons.append((self.folder / "run.err").read_text().strip()[-200:])
            last = [event["event"] for event in events(self.operator.home)][-1:]
            over = last == ["failed"]
        self._run = command(self.folder, "run", self.operator, *(["--new"] if over else []))

    def _let_leave(self, away: float) -> None:
        """Let one of those that are there leave, by chance killed or in order."""
        there = [node for node in self.nodes if node.there]
        if not there:
            return
        node, abruptly = there[int(self._drawn.integers(len(there)))], bool(self._drawn.integers(2))
        node.leave(abruptly)
        node.back = time.monotonic() + float(self._drawn.exponential(away))
        self.killed, self.left = self.killed + abruptly, self.left + (not abruptly)

    def _look(self) -> None:
        """Note the memory of everything as it is now: SuperLink, door, run, and the SuperNodes that are there."""
        remember(self.folder, self.most)
        link = self.operator.folder / "superlink"
        pids = [node.process.pid for node in self.nodes if node.process is not None]
        each = [size for size in map(session_mb, pids) if size]
        sums = sum(event["event"] == "sum" for event in events(self.operator.home))
        self.looks.append(
            {
                "minute": round((time.monotonic() - self._began) / 60, 1),
                "sums": sums,
                "superlink_mb": megabytes(int((link / "pid").read_text()), "VmRSS"),
                "door_mb": megabytes(self._server.pid, "VmRSS"),
                "database_mb": round(sum(file.stat().st_size for file in link.glob("superlink.db*")) / 2**20, 1),
                "there": len(each),
                "supernode_mb": round(sum(each) / max(1, len(each)), 1),
                "load": round(os.getloadavg()[0], 1),
            }
        )


if __name__ == "__main__":
    sys.exit(main())
