"""`confide simulate` as a person meets it: real processes, Ctrl-C, kill -9, and one clear line for what cannot be."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

import confide
from privacy.errors import ConfideError
from privacy.ledger import Ledger, read_ledger
from simulation.basis_cache import cached_basis
from simulation.progress import Progress
from simulation.run import simulate

WAIT_S = 120.0


def tensors(folder: Path) -> dict[str, bytes]:
    """Return the bits of every tensor of a release by file and name."""
    files = sorted((folder / "release").rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{name}": t.tobytes() for f in files for name, t in load_file(f).items()}


def start(out: Path, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `confide simulate` in a process group of its own."""
    command = [sys.executable, "-m", "confide", "simulate", "--out", str(out), *arguments]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True, preexec_fn=hears_ctrl_c)


def hears_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C and hands that down; these processes are to hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Return once `happened`; fail if the process ends first."""
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children_of(group: int) -> list[int]:
    """Return the processes of a process group, those without a body left out."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(path.name))
    return found


def wait_until_alone(group: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while children_of(group):
        assert time.monotonic() < deadline, "workers outlived their run"
        time.sleep(0.02)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.log"


def ended(log: Path) -> str:
    """Return what a run printed; no trace, no warning, nothing left behind by other packages."""
    text = log.read_text()
    for noise in ("Traceback", "Warning", "warn(", "leaked", "DEBUG", "Building index", "Loading weights"):
        assert noise not in text, text
    return text


WITHOUT = "compare_without_noise=false"


def test_killed_the_command_leaves_no_worker_and_goes_on_to_the_same_tensors(
    run: Any, tmp_path: Path, log: Path
) -> None:
    """kill -9 of a run in its first round; another process goes on, and one runs undisturbed."""
    arguments, out = [*run.arguments(WITHOUT, "workers=1"), "--replay-noise", str(run.key)], tmp_path / "run"
    run(tmp_path / "whole", WITHOUT, replay=True)
    process = start(out, arguments, log)
    wait_for(lambda: len(list(out.glob("checkpoints/answers/*/*.answer"))) >= 3, process)
    process.kill()
    assert process.wait(WAIT_S) == -signal.SIGKILL
    wait_until_alone(process.pid)
    ended(log)
    run(out, WITHOUT, replay=True)
    assert tensors(out) == tensors(tmp_path / "whole")
    for path in (out / "ledger" / "devices").glob("*.jsonl"):
        assert [event.query.round for event in read_ledger(path).account.charged()] == [0, 1]


@pytest.mark.parametrize(
    "moment", ["scrubbing and encoding", pytest.param("round 2 of 2", marks=pytest.mark.slow)], ids=["early", "late"]
)
def test_ctrl_c_ends_a_run_in_one_line_and_it_can_go_on(run: Any, tmp_path: Path, log: Path, moment: str) -> None:
    """A terminal sends the signal to the workers too, wherever they are: early means while they still import."""
    out = tmp_path / "run"
    process = start(out, run.arguments(WITHOUT, "workers=2"), log)
    wait_for(lambda: moment in log.read_text(), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(WAIT_S) == 130
    wait_until_alone(process.pid)
    assert ended(log).splitlines()[-1] == "confide: interrupted"
    assert len(run(out, WITHOUT)["rounds"]) == 2


SLOW_MOMENTS = {
    "first query": "checkpoints/rounds/*.query",
    "ninth answer": "checkpoints/answers/u5x08/*.answer",
    "first sum": "checkpoints/rounds/*.sum",
    "release": "release/release.json",
    "report": "report.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_MOMENTS)
def test_the_whole_command_killed_and_started_again(run: Any, tmp_path: Path, log: Path, name: str) -> None:
    settings = (WITHOUT, "own.people=2")
    arguments, out = [*run.arguments(*settings), "--replay-noise", str(run.key)], tmp_path / "run"
    process = start(out, arguments, log)
    wait_for(lambda: any(out.glob(SLOW_MOMENTS[name])), process)
    process.kill()
    process.wait(WAIT_S)
    wait_until_alone(process.pid)
    again = start(out, arguments, log)
    assert again.wait(WAIT_S) == 0
    ended(log)
    wait_until_alone(again.pid)
    run(tmp_path / "whole", *settings, replay=True)
    assert tensors(out) == tensors(tmp_path / "whole")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return what runs `confide` with arguments that must fail, and returns its one line."""

    def command(*arguments: object) -> str:
        capsys.readouterr()
        assert confide.run(confide.confide, [str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("confide: ")
        return line.removeprefix("confide: ")

    return command


def test_eight_people_are_told_what_would_do(refused: Any, run: Any, few: Path, tmp_path: Path) -> None:
    line = refused("simulate", "--json", "--out", tmp_path / "run", *run.arguments(f'people="{few}"'))
    assert line.startswith("8 people are too few, a query needs 16. What would do: ")
    assert "more people" in line
    assert not (tmp_path / "run").exists()


def test_a_cohort_larger_than_the_people_is_refused(refused: Any, run: Any, tmp_path: Path) -> None:
    line = refused("simulate", "--json", "--out", tmp_path / "run", *run.arguments("cohort=19"))
    assert line == "18 people are too few, a query needs 19. What would do: set cohort to 18 or less"


def test_a_report_with_nobody_in_it_is_refused_before_anything_is_trained(
    refused: Any, run: Any, tmp_path: Path
) -> None:
    """Eighteen people who have history alone: a release could be made, and nothing said of it."""
    people = tmp_path / "people.jsonl"
    people.write_text(run.people.read_text().replace('"split": "test"', '"split": "history"'))
    line = refused("simulate", "--json", "--out", tmp_path / "run", *run.arguments(f'people="{people}"'))
    assert line.endswith("none of the 18 people who would be scored has a test document")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_read_or_written_is_one_line(refused: Any, run: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("rounds = \n")
    file = tmp_path / "file"
    file.write_text("")
    key = tmp_path / "key"
    key.write_bytes(bytes(31))
    out = tmp_path / "run"
    simulate: list[object] = ["simulate", "--json", "--out"]
    assert "broken.toml" in refused(*simulate, out, broken)
    assert "missing.toml" in refused(*simulate, out, tmp_path / "missing.toml")
    assert "nobody.jsonl" in refused(*simulate, out, "--set", "people=nobody.jsonl")
    assert "unknown key" in refused(*simulate, out, "--set", "nobody=1")
    assert "Not a directory" in refused(*simulate, file / "run", *run.arguments())
    assert "exactly 32 bytes" in refused(*simulate, out, "--replay-noise", key, *run.arguments())
    assert "no run" in refused("evaluate", "--json", out / "nothing")


def test_a_folder_of_something_else_is_left_alone(refused: Any, run: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in ([], ["--overwrite"]):
        line = refused("simulate", "--json", "--out", tmp_path, *overwrite, *run.arguments())
        assert "something else" in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def no_hosts(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.fixture
def begun(run: Any, tmp_path: Path) -> Iterator[Path]:
    """Yield a run that was cut off before its first round."""
    with pytest.raises(KeyboardInterrupt):
        simulate(run.config(), tmp_path / "run", Progress(quiet=True), replay=run.key, open_hosts=no_hosts)
    yield tmp_path / "run"


def test_an_unfinished_run_goes_on_only_as_what_it_was(refused: Any, run: Any, begun: Path, tmp_path: Path) -> None:
    """Above all: noise from a key file that anybody may know must not become a private run by leaving a flag out."""
    other = tmp_path / "other.jsonl"
    other.write_text(Path(run.people).read_text() + "\n")
    out = ["simulate", "--json", "--out", begun]
    assert "noise of another origin" in refused(*out, *run.arguments())
    assert "another configuration" in refused(*out, "--replay-noise", run.key, *run.arguments("rounds=3"))
    Path(run.people).rename(tmp_path / "kept.jsonl")
    try:
        other.rename(run.people)
        assert "other people" in refused(*out, "--replay-noise", run.key, *run.arguments())
    finally:
        (tmp_path / "kept.jsonl").rename(run.people)


def test_a_run_that_is_going_on_is_neither_joined_nor_overwritten(refused: Any, run: Any, begun: Path) -> None:
    key = Ed25519PrivateKey.generate()
    with Ledger(begun / "ledger" / "federation.jsonl", key, {"federation": "simulation", "owner": "federation"}):
        for more in ([], ["--overwrite"]):
            line = refused("simulate", "--json", "--out", begun, *more, "--replay-noise", run.key, *run.arguments())
            assert "another process is running" in line
    assert (begun / "ledger" / "policy.json").exists()


def test_a_damaged_manifest_is_one_line(refused: Any, run: Any, begun: Path) -> None:
    (begun / "run.json").write_text("{")
    assert "cannot be read" in refused("simulate", "--json", "--out", begun, *run.arguments())


@pytest.mark.parametrize("limit", [900, 40_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    run: Any, tmp_path: Path, limit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file may grow past `limit` bytes in a child: the manifest cannot be written, or the page of the report."""
    settings, out = (WITHOUT, "rounds=1"), tmp_path / "run"
    config = run.config(*settings)
    cached_basis(Path(config.model), config.adapter, config.seed, Progress(quiet=True))  # not what is tested here
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os._exit(confide.run(_command(lambda: run(out, *settings)), []))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("confide: ")]
    assert len(lines) == 1
    assert "File too large" in lines[0]
    assert run(out, *settings)["privacy"]["participations"] == 1


RESERVE_CUT = 2600  # bytes: head, policy and key of a device's ledger take 2,222, its first RESERVE 1,260 more


def test_a_disk_that_fills_up_under_the_devices_ledgers_costs_no_charge_twice(
    run: Any, tmp_path: Path, hosts_here: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the first query on no file may grow past a size at which each ledger's RESERVE, its fourth line, is cut."""
    ledgers = tmp_path / "run" / "ledger" / "devices"

    class Full(hosts_here):  # type: ignore[misc]
        def run(self, calls: Any, done: Any, *more: Any) -> None:
            if calls and calls[0][1][0] == "relay":
                resource.setrlimit(resource.RLIMIT_FSIZE, (RESERVE_CUT, RESERVE_CUT))
            super().run(calls, done, *more)

    out, config = tmp_path / "run", run.config(WITHOUT, "rounds=1")
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = confide.run(_command(lambda: simulate(config, out, Progress(quiet=True), open_hosts=Full)), [])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert "confide: every device refused: device.unable" in capfd.readouterr().err
    cut = [path.read_bytes().rpartition(b"\n")[2] for path in ledgers.glob("*.jsonl")]
    assert {path.read_bytes().count(b"\n") for path in ledgers.glob("*.jsonl")} == {3}
    assert cut and all(cut), "every ledger must end in the middle of a line"
    run(out, WITHOUT, "rounds=1")
    for path in ledgers.glob("*.jsonl"):
        assert len(list(read_ledger(path).account.charged())) == 1


def _command(work: Callable[[], Any]) -> Any:
    """Return a command that does `work` inside this process, with the errors of the real one."""

    @click.command()
    def command() -> None:
        work()

    return command


def test_a_finished_run_is_not_run_again_and_overwritten_only_on_demand(run: Any, refused: Any, tmp_path: Path) -> None:
    settings, out = ("rounds=1", WITHOUT), tmp_path / "run"
    run(out, *settings)
    (out / "checkpoints" / "noise.root").write_bytes(bytes(32))  # as if the power had gone with the last file
    before = tensors(out)
    assert "finished run" in refused("simulate", "--json", "--out", out, *run.arguments(*settings))
    assert tensors(out) == before
    assert not (out / "checkpoints" / "noise.root").exists()
    with pytest.raises(KeyboardInterrupt):
        simulate(run.config("seed=1"), out, Progress(quiet=True), overwrite=True, open_hosts=no_hosts)
    assert json.loads((out / "run.json").read_text())["config"]["seed"] == 1
    assert not (out / "release").exists()


def test_lost_attempts_are_spent_and_the_run_says_so(run: Any, tmp_path: Path) -> None:
    """Nine of eighteen drop out, thirteen are needed; the devices were promised one round and refuse a second."""
    with pytest.raises(ConfideError, match=r"participations\.used-up \(an attempt that was lost is spent"):
        run(tmp_path / "run", WITHOUT, "rounds=1", "dropout=0.5")
    for path in (tmp_path / "run" / "ledger" / "devices").glob("*.jsonl"):
        assert len(list(read_ledger(path).account.charged())) == 1
