"""Peers' environments: each from the package index, with pinned versions, in a folder of its own under the cache.

An environment looks into its own packages first and then into ours, so that what a peer needs in the very version that
is here (torch, above all) is neither fetched nor stored twice. Flower, PEFT and Opacus are the ones that we run on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.base_model import cache_folder
from privacy.canonical import sha256_hex
from privacy.errors import ConfideError
from simulation.bench.process import BenchFailed, Cost, measured

SCRIPTS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[2]
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
OURS = ""  # this environment
FETCH_S = 900.0


class PeerMissing(ConfideError):
    """A peer's environment cannot be made here: no network, or no such package for this machine."""


@dataclass(frozen=True)
class Peer:
    """A peer's script and the environment that it runs in, by the name of its requirements; `OURS` for this one."""

    script: str
    environment: str = OURS

    def run(self, job: Mapping[str, Any], folder: Path, timeout_s: float = 3600.0) -> tuple[Cost, dict[str, Any]]:
        """Run the script on `job`, written to `folder`, and return what it took and what it printed last.

        Raises PeerMissing without its environment, BenchFailed where the script fails.
        """
        file = folder / f"{Path(self.script).stem}.json"
        file.write_text(json.dumps(dict(job)))
        python = interpreter(self.environment)
        variables = peer_environment() | ({"PYTHONPATH": str(ROOT)} if self.environment == OURS else {})
        cost = measured([str(python), str(SCRIPTS / self.script), str(file)], variables, timeout_s)
        try:
            found: dict[str, Any] = json.loads(cost.output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise BenchFailed(f"{self.script} printed no answer") from None
        return cost, found


def peer_environment() -> dict[str, str]:
    """Return the variables that every side of a bench runs with: one thread each, no telemetry, no hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CONFIDE_TRACEBACK")}
    return {**kept, **QUIET}


def interpreter(name: str, cache: Path | None = None) -> Path:
    """Return the Python of the environment `name`, made through pip where it is not there yet; raises PeerMissing.

    It is made anew where its requirements changed.
    """
    if name == OURS:
        return Path(sys.executable)
    requirements = SCRIPTS / "requirements" / f"{name}.txt"
    ours = sysconfig.get_paths()["purelib"]
    key = sha256_hex(requirements.read_bytes() + f"{sys.version} {ours}".encode())[:16]
    place = (cache or cache_folder()) / "peers" / f"{name}-{key}"
    python = place / "bin" / "python"
    if not (place / "ready").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        _make(place, python, requirements, ours)
        (place / "ready").touch()
    return python


def _make(place: Path, python: Path, requirements: Path, ours: str) -> None:
    _said([sys.executable, "-m", "venv", "--without-pip", str(place)], requirements.stem)
    own = _said([str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], requirements.stem)
    Path(own.strip()).joinpath("beside.pth").write_text(ours + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-input"]
    _said([*install, "--requirement", str(requirements)], requirements.stem)


def _said(command: Sequence[str], name: str) -> str:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, check=False, timeout=FETCH_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise PeerMissing(f"{name}: not installed within {FETCH_S:.0f} s; is there a network?") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PeerMissing(f"{name} cannot be installed here: {(lines or ['no message'])[-1][:200]}")
    return done.stdout
