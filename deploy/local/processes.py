# Run in the end-to-end test (tests/deploy).
"""The processes of one local federation, found again by a mark in their environment and never by their name.

Whatever is started here, and all that it starts, inherits $CONFIDE_FEDERATION, a value drawn for this folder. What ends
is what carries that value.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "CONFIDE_FEDERATION"
PATIENCE_S = 60.0  # a server ends its SuperLink, a device its agent and SuperNode, before they end themselves


class Processes:
    """The processes that belong to `folder`, with a file of each one's id in `pids/` and of its output in `logs/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pids", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        mark = folder / "mark"
        if not mark.exists():
            mark.write_text(secrets.token_hex(16))
        self._mark = mark.read_text()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Start `command` in a session of its own and return its process id."""
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                list(command),
                env={**environment, MARK: self._mark},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # A dead child that is not waited for keeps its process id: what watches for its parent's end never sees it.
        threading.Thread(target=process.wait, daemon=True).start()
        (self.folder / "pids" / name).write_text(str(process.pid))
        return process.pid

    def running(self, *words: str) -> list[int]:
        """Return the ids of this folder's processes whose command line and environment hold all `words`."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_ours(int(path.name), words)]

    def stop(self, patience_s: float = PATIENCE_S) -> list[int]:
        """End all of them, first by SIGTERM, then by SIGKILL, and return what is left (nothing)."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.running():
                send(pid, number)
            until = time.monotonic() + patience_s
            while self.running() and time.monotonic() < until:
                time.sleep(0.1)
        for file in (self.folder / "pids").iterdir():
            file.unlink()
        return self.running()

    def _is_ours(self, pid: int, words: Sequence[str]) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if f"{MARK}={self._mark}".encode() not in environment.split(b"\0"):
                return False
            told = Path(f"/proc/{pid}/cmdline").read_bytes() + b"\0" + environment
        except OSError:  # another user's, or gone
            return False
        return all(word.encode() in told for word in words)


def send(pid: int, number: int) -> None:
    """Send a signal to one process, if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
