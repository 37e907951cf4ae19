"""Flower's own database, locked for longer than Flower waits; and Flower's program that starts runs, killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from deploy.load.__main__ import end
from deploy.load.books import books_agree, flushed
from deploy.load.crew import Crew, founded, made_basis
from deploy.local.federation import free_ports
from server.superlink import SuperLink
from tests.federation_by_command import until
from tests.load_by_command import Server, connected, noted

LOCKED_S = 12.0  # Flower waits 5


def superexec(link: SuperLink) -> int:
    """Return the number of the process that starts this SuperLink's runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        line = path.read_bytes()
        if b"flower-superexec" in line and f"127.0.0.1:{link.port}".encode() in line:
            return int(path.parent.name)
    raise AssertionError("it is not there")


@pytest.mark.slow
def test_a_locked_database_loses_nobody_and_a_killed_starter_of_runs_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis, ports = made_basis(4, 4), free_ports(3)
    operator = founded(tmp_path / "server", 6, 2, (ports[0], ports[1], ports[2]), basis, stage_s=90)
    crew = Crew(operator, tmp_path / "crew", 6, basis)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(crew.sockets))
    server, link = Server(operator, tmp_path / "first"), SuperLink(operator)
    try:
        os.kill(superexec(link), signal.SIGKILL)
        until(lambda: not link.starts_runs(), "its end", 30.0)
        with connected(operator, crew):
            run = server.begun("run")
            for number, stage in ((0, "fit"), (1, "release")):
                until(lambda n=number, s=stage: noted(operator, "stage", round=n, stage=s), stage, 600.0)  # type: ignore[misc]
                with closing(sqlite3.connect(link.folder / "superlink.db", timeout=60.0)) as rows:
                    rows.execute("BEGIN IMMEDIATE")
                    time.sleep(LOCKED_S)
                    rows.rollback()
            assert run.wait(1200.0) == 0, (tmp_path / "first" / "run.err").read_text()
            assert link.starts_runs(), "it is there for the next campaign too"
    finally:
        end(server.process)
        crew.close()
    sums = list(flushed(operator.home))
    assert [len(survivors) for _, _, survivors in sums] == [6, 6] and noted(operator, "lost") == 0
    assert all(crew.exact(*each) for each in sums) and books_agree(operator, tmp_path / "crew" / "ledgers")
