"""A device revoked while a campaign is on its way, by the command: what becomes of its round, its node and its name."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.load.__main__ import end
from deploy.load.books import books_agree, flushed
from deploy.load.crew import Crew, founded, made_basis
from deploy.local.federation import free_ports
from privacy.ledger import read_ledger
from tests.federation_by_command import until
from tests.load_by_command import ROOT, Server, connected, noted

OUT = "device-0002"


@pytest.mark.slow
def test_a_device_revoked_inside_a_campaign_ends_its_round_and_is_asked_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis, ports = made_basis(4, 4), free_ports(3)
    # Five of six are invited, so that a cohort can be drawn from those who are left.
    operator = founded(tmp_path / "server", 6, 4, (ports[0], ports[1], ports[2]), basis, cohort=5, stage_s=120)
    crew = Crew(operator, tmp_path / "crew", 6, basis)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(crew.sockets))
    server = Server(operator, tmp_path / "first")
    # A SuperNode that is refused asks its own process to end; here all of them live in this one.
    ended: list[int] = []
    kept = signal.signal(signal.SIGINT, lambda number, _: ended.append(number))
    try:
        with connected(operator, crew):
            run = server.begun("run")
            until(lambda: noted(operator, "stage", round=1, stage="fit"), "round 1, asked", 600.0)
            told = subprocess.run(
                [sys.executable, "-P", "-m", "confide", "server", "revoke", str(operator.folder), OUT, "--json"],
                cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            assert told.returncode == 0, told.stderr
            facts = json.loads(told.stdout)
            assert facts["devices"] == 5 and facts["cut_off"] is True
            assert noted(operator, "sum") <= 2, "the campaign was still on its way"
            assert run.wait(1200.0) == 0, (tmp_path / "first" / "run.err").read_text()
            assert ended, "its SuperNode is refused from then on, and ends"
    finally:
        signal.signal(signal.SIGINT, kept)
        end(server.process)
        crew.close()

    sums = list(flushed(operator.home))
    assert len(sums) == 4 and all(crew.exact(*each) for each in sums)
    assert books_agree(operator, tmp_path / "crew" / "ledgers")
    by_round = {query.round: set(survivors) for query, _, survivors in sums}
    assert len(by_round[1]) >= 4, "the round goes on with the others, or with it if it had answered"
    others = set(crew.names) - {OUT}
    assert by_round[2] == by_round[3] == others
    # Whoever audits the ledger sees that it left, and it paid for nothing that it was not asked.
    entries = read_ledger(operator.home / "ledger" / "federation.jsonl").entries
    left = [entry for entry in entries if entry.kind == "POLICY" and entry.body.get("left") == [OUT]]
    assert len(left) == 1
    asked = [entry for entry in entries if entry.kind == "RESERVE" and entry.seq > left[0].seq]
    assert asked and not any(OUT in json.dumps(entry.body) for entry in asked)
