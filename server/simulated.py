"""`flwr run .` in a checkout: the simulation that makes the campaign, in a process of its own beside the server."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.supercore import log

from privacy.errors import ConfideError
from server.link import VARIABLE, Link

INFO = 20


class Simulation:
    """`confide simulate` as installed beside this bundle; what it says goes to the run's log.

    `settings` of the run's configuration are its `--set` values, `out` is its folder. Raises ConfideError in the end if
    it failed. Nothing of it is imported here: it starts in another process, without this process's search path.
    """

    def __init__(self, run_config: Mapping[str, Any], run_id: int) -> None:
        parts = [*shlex.split(str(run_config.get("settings", ""))), "engine=flower"]
        settings = [word for part in parts for word in ("--set", part)]
        out = str(run_config.get("out", "")) or str(Path.home() / "confide-runs" / f"flwr-{run_id}")
        self.link, (reads, writes) = Link.pair()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "confide", "simulate", "--out", out, *settings],
            env=environment | {VARIABLE: f"{reads},{writes}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(reads, writes),
        )
        for descriptor in (reads, writes):
            os.close(descriptor)
        self._echo = threading.Thread(target=self._log, daemon=True)
        self._echo.start()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        status = self._process.wait()
        self._echo.join()
        if status:
            raise ConfideError("the simulation ended with an error, see above")

    def _log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            log(INFO, line.rstrip())
