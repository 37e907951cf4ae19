"""Real SuperNodes that die and come back while campaigns run. Run in the end-to-end test (tests/deploy).

    python -m deploy.load.churn FOLDER --devices 20 --minutes 60 [--every 30]

Each device has a `flower-supernode` of its own, with our launcher, over a folder with the pinned bundle; their agents
are one process (`deploy.load.crew`), since what is looked at is Flower and the server. Every `--every` seconds one
SuperNode, drawn by chance, is killed with all that it started and started again; the server runs one campaign after the
other until the time is over. FOLDER/churn.json says how many ended in a release and why the others did not, the sums
with their survivors, attempts lost, kills, and the most memory of server and SuperNodes. It fails if a sum has fewer
devices than its floor, or a ledger charges less than the federation's says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.join import AUTHORITY, NODE_KEY, PIN
from client.listener import RelaySocket
from client.take_part import end, node_environment, supernode
from deploy.load.__main__ import command, peak_mb, remember, wait
from deploy.load.__main__ import end as end_server
from deploy.load.crew import Crew, founded, made_basis
from deploy.local.federation import free_ports
from privacy.files import write_atomic
from privacy.ledger import read_ledger
from privacy.query import Cohort
from server.events import events
from server.folder import OperatorFolder


class Churned:
    """One device's SuperNode: a real process, started, killed and started again."""

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
        self.process: subprocess.Popen[bytes] | None = None
        self.most = 0.0

    def start(self) -> None:
        """Start it; one that the server does not take yet ends, and is started again by `keep`."""
        with (self.folder / "supernode.log").open("ab") as log:
            self.process = subprocess.Popen(
                supernode(self.folder, self._address), env=node_environment(self.folder), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def keep(self) -> None:
        """Start it again if it has ended, and remember how large it grew."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        elif self.process is not None:
            self.most = max(self.most, peak_mb(self.process.pid))

    def kill(self) -> None:
        """End it at once, with the program that it started for a message."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()

    def close(self) -> None:
        """End it and its socket."""
        if self.process is not None:
            end(self.process)
        self.socket.close()


def main() -> int:
    """Run the churn; 0 if every sum kept its floor and the books agree."""
    parser = argparse.ArgumentParser(prog="python -m deploy.load.churn")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    facts = churned(told.folder.absolute(), told.devices, told.minutes, told.every, told.seed)
    write_atomic(told.folder / "churn.json", json.dumps(facts, indent=1).encode())
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")
    return 0 if facts["holds"] else 1


def churned(folder: Path, devices: int, minutes: float, every: float, seed: int) -> dict[str, Any]:
    """Return what happened; everything that was started is ended."""
    folder.mkdir(parents=True)
    basis, ports, drawn = made_basis(20, 8), free_ports(3), np.random.default_rng(seed)
    # More are admitted than a round invites, so that one that is away costs no round.
    operator = founded(folder / "server", devices, 1, (ports[0], ports[1], ports[2]), basis, max(2, devices * 3 // 4))
    crew = Crew(operator, folder / "crew", devices, basis)
    server, most = command(folder, "start", operator), dict[str, float]()
    nodes: list[Churned] = []
    kills, ended, reasons, run = 0, 0, list[str](), None
    try:
        wait(lambda: (folder / "start.out").read_bytes().endswith(b"}\n"), server)
        nodes += [Churned(crew, operator, folder / "n" / str(i), i) for i in range(devices)]
        until, next_kill = time.monotonic() + 60 * minutes, time.monotonic() + every
        while time.monotonic() < until:
            for node in nodes:
                node.keep()
            remember(folder, most)
            if run is None or run.poll() is not None:
                if run is not None:
                    ended += 1
                    if run.returncode:
                        reasons.append((folder / "run.err").read_text().strip()[-200:])
                run = command(folder, "run", operator, *(["--new"] if reasons else []))
            if time.monotonic() > next_kill:
                nodes[int(drawn.integers(devices))].kill()
                kills, next_kill = kills + 1, time.monotonic() + every
            time.sleep(1.0)
    finally:
        if run is not None:
            end(run)
        for node in nodes:
            node.close()
        end_server(server)
        crew.close()
    floor = Cohort(operator.settings.cohort).min_survivors
    survivors = [int(str(event["survivors"])) for event in events(operator.home) if event["event"] == "sum"]
    lost = sum(event["event"] == "lost" for event in events(operator.home))
    return {
        "devices": devices,
        "minutes": minutes,
        "kills": kills,
        "campaigns_over": ended,
        "reasons": reasons,
        "sums": survivors,
        "attempts_lost": lost,
        "floor": floor,
        "holds": all(each >= floor for each in survivors) and books_agree(operator, folder / "crew" / "ledgers"),
        "peak_mb": {name: round(value, 1) for name, value in most.items()},
        "supernode_mb": sorted(round(node.most, 1) for node in nodes),
    }


def books_agree(operator: OperatorFolder, ledgers: Path) -> bool:
    """Return whether the federation's ledger says of each device at least what the device's own charged."""
    path = operator.home / "ledger" / "federation.jsonl"
    if not path.exists():
        return True
    federation = read_ledger(path).account
    found = [(file.stem, read_ledger(file).account.spent_rho()) for file in sorted(ledgers.glob("*.jsonl"))]
    return all(spent <= federation.spent_rho(name) for name, spent in found)


if __name__ == "__main__":
    sys.exit(main())
