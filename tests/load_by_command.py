"""`confide server …` in processes of its own over a federation whose devices are the load's: many in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confide
from deploy.load.__main__ import wait
from deploy.load.crew import Crew
from deploy.load.fleet import Fleet
from server.events import events
from server.folder import OperatorFolder

ROOT = Path(confide.__file__).parent


class Server:
    """`confide server …` over one folder, out of one checkout; `out` takes what it says."""

    def __init__(self, operator: OperatorFolder, out: Path, source: Path = ROOT) -> None:
        out.mkdir()
        self.operator, self.out, self.source = operator, out, source
        self.process = self.begun("start")
        wait(lambda: (out / "start.out").read_bytes().endswith(b"}\n"), self.process)

    def begun(self, word: str) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIDE_", "FLWR_"))}
        words = [sys.executable, "-P", "-m", "confide", "server", word, str(self.operator.folder), "--json"]
        with (self.out / f"{word}.out").open("wb") as out, (self.out / f"{word}.err").open("wb") as err:
            return subprocess.Popen(
                words, env=kept | {"PYTHONPATH": str(self.source)}, stdout=out, stderr=err, start_new_session=True
            )

    def run(self) -> tuple[int, str]:
        """Run the campaign to its end; return the exit status and what was said of a failure."""
        return self.begun("run").wait(1200.0), (self.out / "run.err").read_text().strip()

    def vanish(self) -> None:
        """Kill the server and all that it started, as a machine that loses its power."""
        link = int((self.operator.folder / "superlink" / "pid").read_text())
        for leader in (self.process.pid, link):
            os.killpg(leader, signal.SIGKILL)
        self.process.wait()


@contextmanager
def connected(operator: OperatorFolder, crew: Crew) -> Iterator[Fleet]:
    authority = operator.folder / "tls" / "ca.crt"
    fleet = Fleet(operator.settings.address, authority, crew.node_keys, 4, 0.5)
    try:
        yield fleet
    finally:
        fleet.close()


def noted(operator: OperatorFolder, event: str, **facts: object) -> int:
    """Return how many events of a kind the server noted."""
    return sum(each["event"] == event and facts.items() <= each.items() for each in events(operator.home))
