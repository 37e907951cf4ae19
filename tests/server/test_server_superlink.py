"""What a SuperLink is started with, and what is done where the program that starts its runs has ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from flwr.supercore import constant, sql_mixin

import server.patient_superlink
from server import superlink
from server.patient_superlink import WAIT_MS, patient
from server.superlink import SuperLink
from tests.operator_by_hand import operator_in

PROBE = """
import sys
from sqlalchemy import text
from flwr.supercore.sql_mixin import SqlMixin

class Rows(SqlMixin):
    def get_metadata(self):
        from sqlalchemy import MetaData
        return MetaData()

rows = Rows(sys.argv[1])
rows._run_migrations = lambda *_: None
rows.initialize()
with rows.session() as session:
    print(session.execute(text("PRAGMA busy_timeout")).scalar(), session.execute(text("PRAGMA journal_mode")).scalar())
print(*sys.argv)
"""


def test_flowers_own_database_waits_a_minute_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "flower-superlink").write_text(PROBE)
    words = [sys.executable, "-P", server.patient_superlink.__file__, str(tmp_path / "flower-superlink"), "x.db"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == [f"{WAIT_MS} wal", f"{tmp_path / 'flower-superlink'} x.db"]


def test_it_changes_the_one_setting_and_flower_still_has_it() -> None:
    assert vars(sql_mixin)["SQLITE_PRAGMAS"] is constant.SQLITE_PRAGMAS
    before, after = dict(constant.SQLITE_PRAGMAS), dict(patient(constant.SQLITE_PRAGMAS))
    assert int(before["busy_timeout"]) < int(WAIT_MS), "no longer needed where Flower waits as long"
    assert {name for name in before if before[name] != after[name]} == {
        "busy_timeout"
    } and before.keys() == after.keys()


def test_a_superlink_without_the_program_that_starts_runs_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = SuperLink(operator_in(tmp_path / "f"))
    assert not link.starts_runs()
    sleeper = "import time; time.sleep(600)"
    names = ["flower-superexec", "--runtime-api-address", f"127.0.0.1:{link.port}"]
    process = subprocess.Popen([sys.executable, "-c", sleeper, *names])
    try:
        while not link.starts_runs():
            time.sleep(0.01)
        other = SuperLink(operator_in(tmp_path / "g", control=link.port + 1))
        assert not other.starts_runs(), "another server's on this machine is not this one's"
    finally:
        process.kill()
        process.wait()
    assert not link.starts_runs()

    link.folder.mkdir(exist_ok=True)
    (link.folder / "pid").write_text("1")
    ended: list[int] = []

    def end(_: SuperLink) -> None:
        ended.append(1)
        (link.folder / "pid").write_text("2")  # what the serving process does: it starts it again

    monkeypatch.setattr(SuperLink, "end_left_over", end)
    monkeypatch.setattr(SuperLink, "starts_runs", lambda _: True)
    monkeypatch.setattr(superlink, "listens", lambda _: True)
    link.start_anew()
    assert ended == [1]
