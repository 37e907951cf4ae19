"""Real `kill -9`: whatever the moment, the run goes on to the very tensors of a run that nobody killed.

A child process kills itself with SIGKILL at a chosen flush to the disk, or where simulated people's files would be
flushed if they were (`privacy.files.ProcessDisk`): what the kernel has is kept, nothing after it happens. These are the
only moments that matter, because between two of them no file changes for good.
"""

from __future__ import annotations

import os
import re
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.audit.replay import audit_run
from privacy.files import ProcessDisk
from privacy.ledger import read_ledger
from simulation.report_schema import Report

SETTINGS = ("compare_without_noise=false", "own.people=2")
# A flush by the path of its file or folder: a file is flushed before it is renamed into place, its folder after.
MOMENTS = {
    "manifest begun": r"/\.run\.json\.\d+\.new$",
    "keys made": r"/\.keys\.json\.\d+\.new$",
    "noise root made": r"/\.noise\.root\.\d+\.new$",
    "first query stored": r"/rounds$",
    "a device's ledger begun": r"/devices/u5x03\.jsonl$",
    "first answer not yet stored": r"/u5x00/\.\w+\.answer\.\d+\.new$",
    "fifth answer stored": r"/answers/u5x04$",
    "first sum not yet flushed": r"/\.round-00000-0\.sum\.\d+\.new$",
    "second query not yet stored": r"/\.round-00001-0\.query\.\d+\.new$",
    "last answer of the second round charged": r"/devices/u5x17\.jsonl$",
    "second sum not yet flushed": r"/\.round-00001-0\.sum\.\d+\.new$",
    "release not yet in place": r"/\.release\.\d+\.new$",
    "report not yet written": r"/\.report\.json\.\d+\.new$",
    "audit not yet written": r"/\.audit\.html\.\d+\.new$",
    "manifest finished": r"/\.run\.json\.\d+\.new$",
}


def kill_at(moment: Callable[[str], bool]) -> None:
    """From now on end this process by SIGKILL when `moment` says so of the path that is, or would be, flushed."""
    flush = os.fsync

    def look(path: Path) -> None:
        if moment(str(path)):
            os.kill(os.getpid(), signal.SIGKILL)

    def of(descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def fsync(descriptor: int) -> None:
        look(of(descriptor))
        flush(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    ProcessDisk.fsync = lambda _, descriptor: look(of(descriptor))  # type: ignore[method-assign,assignment]
    ProcessDisk.fsync_folder = lambda _, folder: look(folder.absolute())  # type: ignore[method-assign,assignment]


def in_child(work: Callable[[], Any], moment: Callable[[str], bool]) -> int:
    """Run `work` in a child that is killed at `moment`; return its wait status (0: it was not killed)."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            kill_at(moment)
            work()
            status = 0
        except Exception:  # noqa: BLE001 the parent asks for the status, a reader for the trace
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def nth(pattern: str, number: int = 1) -> Callable[[str], bool]:
    """Return a moment: the `number`-th flush of a path that `pattern` finds."""
    seen = 0

    def moment(path: str) -> bool:
        nonlocal seen
        seen += bool(re.search(pattern, path))
        return seen == number

    return moment


def tensors(folder: Path) -> dict[str, bytes]:
    """Return the bits of every tensor of a release by file and name."""
    files = sorted((folder / "release").rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{name}": t.tobytes() for f in files for name, t in load_file(f).items()}


def require_one_charge_a_round(folder: Path, rounds: int = 2) -> None:
    """Nobody is charged twice for a round, nobody's answer is in a sum without its charge (the audit holds)."""
    for path in (folder / "ledger" / "devices").glob("*.jsonl"):
        charged = [event.query.round for event in read_ledger(path).account.charged()]
        assert charged == list(range(rounds)), path.name
        records = [entry for entry in read_ledger(path).entries if entry.kind == "RECORD_DP"]
        assert len(records) <= 1
    federation = read_ledger(folder / "ledger" / "federation.jsonl")
    assert [event.state for event in federation.account.charged()] == ["committed"] * rounds
    assert [entry.kind for entry in federation.entries].count("RELEASE") == 1
    assert audit_run(folder).holds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Return a place for the tensors of the run that nobody kills."""
    return []


@pytest.fixture
def wanted(whole: list[dict[str, bytes]], run: Any, tmp_path: Path) -> dict[str, bytes]:
    """Return the tensors of the run that nobody kills."""
    if not whole:
        run(tmp_path / "whole", *SETTINGS, replay=True)
        whole.append(tensors(tmp_path / "whole"))
        require_one_charge_a_round(tmp_path / "whole")
    return whole[0]


def kill_and_finish(run: Any, folder: Path, moments: Sequence[Callable[[str], bool]]) -> Report:
    """Begin a run, kill it at each of `moments` in turn, going on after each; let it finish, return its report."""
    for moment in moments:
        status = in_child(lambda: run(folder, *SETTINGS, replay=True), moment)
        assert os.WIFSIGNALED(status), f"the moment never came: {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL
    report: Report = run(folder, *SETTINGS, replay=True)
    return report


def test_killed_again_and_again_a_run_ends_in_the_same_tensors(run: Any, tmp_path: Path, wanted: Any) -> None:
    """One run, killed at every one of the moments in turn; the rows of its rounds are whole all the same."""
    moments = [nth(pattern, 2 if name == "manifest finished" else 1) for name, pattern in MOMENTS.items()]
    report = kill_and_finish(run, tmp_path / "run", moments)
    assert tensors(tmp_path / "run") == wanted
    assert [row["round"] for row in report["rounds"]] == [0, 1]
    assert all(row["alpha"] is not None and row["survivors"] == 18 for row in report["rounds"])
    assert all(row["clip_fraction"] == 1.0 for row in report["rounds"])
    require_one_charge_a_round(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "noise.root").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_killed_once_a_run_ends_in_the_same_tensors(run: Any, tmp_path: Path, wanted: Any, name: str) -> None:
    kill_and_finish(run, tmp_path / "run", [nth(MOMENTS[name], 2 if name == "manifest finished" else 1)])
    assert tensors(tmp_path / "run") == wanted
    require_one_charge_a_round(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_killed_at_random_flushes_a_run_ends_in_the_same_tensors(
    run: Any, tmp_path: Path, wanted: Any, seed: int
) -> None:
    """Up to four kills, each some 1 to 120 flushes after the start; a run that gets through has no more to fear."""
    numbers = np.random.default_rng(seed).integers(1, 120, 4)
    folder = tmp_path / "run"
    for number in numbers:
        if os.WIFEXITED(in_child(lambda: run(folder, *SETTINGS, replay=True), nth("", int(number)))):
            break
    else:
        run(folder, *SETTINGS, replay=True)
    assert tensors(folder) == wanted
    require_one_charge_a_round(folder)
