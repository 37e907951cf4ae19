"""What lies in deploy/: each file says whether anything runs it, and stopping finds exactly what was started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import confide
from deploy.local import federation
from deploy.local.processes import MARK, Processes

ROOT = Path(confide.__file__).parent
HEADERS = ("Run in the end-to-end test (tests/deploy)", "Checked by a linter only")
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_every_file_of_deploy_says_in_its_first_lines_whether_it_is_run() -> None:
    files = [
        path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file() and "__pycache__" not in path.parts
    ]
    silent = [path.name for path in files if not any(h in "".join(path.read_text().splitlines()[:2]) for h in HEADERS)]
    assert len(files) > 5 and silent == []


def test_what_ends_is_what_was_started_with_all_that_it_started(tmp_path: Path) -> None:
    mine, others = Processes(tmp_path / "mine"), Processes(tmp_path / "others")
    environment = {**os.environ}
    stubborn = "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN); "
    stubborn += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    stubborn += "time.sleep(600)"
    mine.start("a", SLEEP, environment)
    other = others.start("b", SLEEP, environment)
    mine.start("stubborn", [sys.executable, "-c", stubborn], environment)
    unmarked = subprocess.Popen(SLEEP, env={**environment, MARK: "another"})
    try:
        for _ in range(200):
            if len(mine.running()) == 3:
                break
            time.sleep(0.05)
        assert len(mine.running()) == 3, "a grandchild in a session of its own is found too"
        assert mine.running("no such word") == []
        assert mine.stop(10.0) == [] == mine.running()
        assert others.running() == [other] and unmarked.poll() is None
    finally:
        others.stop()
        unmarked.kill()
        unmarked.wait()


def test_two_people_are_needed(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"user": "a", "text": "x"}\n')
    with pytest.raises(Exception, match="two people"):
        federation.people_of(tmp_path / "one.jsonl")
    assert sorted(federation.people_of(None)) == ["ada", "ben"]


def test_a_free_port_is_nobodys() -> None:
    ports = federation.free_ports(3)
    assert len(set(ports)) == 3 and not any(map(federation.listens, ports))
