"""A run over Flower that fails, is interrupted or is killed leaves no process behind, and the next one starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulation.conftest import FAST, PEOPLE, write_people
from tests.simulation.test_simulation_walls import marked_processes

ROOT = Path(__file__).parents[2]
STARTING_S, ENDING_S = 150.0, 30.0  # of a busy machine with two cores

pytestmark = pytest.mark.slow


class Command:
    """`confide simulate` over Flower in a session of its own; every process of it carries a mark in its environment."""

    def __init__(self, out: Path, people: Path, model: Path, cache: Path, temporary: Path, *settings: str) -> None:
        self.out, self.mark = out, uuid.uuid4().hex
        words = [
            f'people="{people}"',
            f'model="{model}"',
            *FAST,
            "engine=flower",
            "workers=1",
            "compare_without_noise=false",
            "rounds=3",
            *settings,
        ]
        arguments = [word for setting in words for word in ("--set", setting)]
        environment = {"CONFIDE_TEST_MARK": self.mark, "CONFIDE_CACHE": str(cache), "TMPDIR": str(temporary)}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "confide.py"), "simulate", "--out", str(out), "--overwrite", *arguments],
            env={"RAY_TMPDIR": str(temporary), **os.environ, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, moment: Callable[[], bool]) -> None:
        until = time.monotonic() + STARTING_S
        while not moment():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.05)

    def flower_is_up(self) -> bool:
        """Return whether the server inside Flower has asked its first question, and Ray's daemons run."""
        asked = (self.out / "checkpoints" / "rounds" / "round-00000-0.query").exists()
        return asked and any("raylet" in line for line in marked_processes(self.mark))

    def said(self) -> str:
        return self.process.communicate()[0].decode()

    def left(self) -> list[str]:
        """Return what is alive after the time in which everything should have ended."""
        until = time.monotonic() + ENDING_S
        while (alive := marked_processes(self.mark)) and time.monotonic() < until:
            time.sleep(0.2)
        return alive


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Return a folder for temporary files with a short name: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="cf-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(cache: Path, tiny_model_dir: Path, tmp_path: Path, temporary: Path) -> Iterator[Callable[..., Command]]:
    people = write_people(tmp_path / "people.jsonl", PEOPLE)
    started: list[Command] = []

    def begin(*settings: str) -> Command:
        started.append(Command(tmp_path / "run", people, tiny_model_dir, cache, temporary, *settings))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
        if one.process.stdout is not None:
            one.process.stdout.close()


def sockets_in(temporary: Path) -> list[str]:
    return [path.name for path in temporary.glob("confide-*")]


def children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_somebody_elses_ray_is_not_joined(start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of this machine that has nothing to do with the run, here even one that is gone, is left alone."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    command = start("rounds=1")
    assert command.process.wait(2 * STARTING_S) == 0, command.said()


def test_flower_that_cannot_begin_ends_the_run_with_one_line(
    start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray finds no folder to be in. The thread of the ServerApp lives on then, and once the run waited for it."""
    monkeypatch.setenv("RAY_TMPDIR", os.devnull)
    command = start()
    assert command.process.wait(STARTING_S) != 0
    assert "Flower ended before the campaign did: see flower.log" in command.said()
    assert command.left() == []


def test_ctrl_c_ends_everything(start: Callable[..., Command], temporary: Path) -> None:
    command = start()
    command.wait_for(command.flower_is_up)
    assert sockets_in(temporary)
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    command.process.wait(ENDING_S)
    assert command.process.returncode != 0
    assert "Traceback" not in command.said()
    assert command.left() == []
    assert sockets_in(temporary) == []


def test_a_run_that_fails_ends_everything(start: Callable[..., Command], temporary: Path) -> None:
    """A host dies in the middle: as if there were no memory left."""
    command = start()
    command.wait_for(command.flower_is_up)
    (origin,) = [c for c in children(command.process.pid) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes()]
    (host,) = children(int(origin))
    os.kill(int(host), signal.SIGKILL)
    assert command.process.wait(ENDING_S) != 0
    said = command.said()
    assert "Traceback" not in said
    assert "a worker process ended; is there enough memory?" in said
    assert command.left() == []
    assert sockets_in(temporary) == []


@pytest.mark.parametrize("name", ["gcs_server", "raylet", "DashboardAgent"])
def test_killed_while_ray_starts_nothing_lives_on(start: Callable[..., Command], name: str) -> None:
    """A process that is just being started must go as well."""
    command = start()
    command.wait_for(lambda: any(name in line for line in marked_processes(command.mark)))
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait(ENDING_S)
    assert command.left() == []


def test_after_sigkill_nothing_lives_on_and_the_next_run_starts_and_ends(
    start: Callable[..., Command], temporary: Path
) -> None:
    command = start()
    command.wait_for(command.flower_is_up)
    os.kill(command.process.pid, signal.SIGKILL)
    command.process.wait(ENDING_S)
    assert command.left() == []
    again = start("rounds=1")  # a folder that was killed is overwritten
    assert again.process.wait(STARTING_S) == 0, again.said()
    assert again.left() == []
    assert len(sockets_in(temporary)) <= 1, "at most what the killed run could not take away"
