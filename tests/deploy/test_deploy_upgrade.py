"""A server lost in the middle of a round: its backup goes on elsewhere, under a newer confide, by the commands."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy.load.__main__ import end
from deploy.load.books import books_agree, flushed
from deploy.load.crew import Crew, founded, made_basis
from deploy.local.federation import free_ports
from privacy.ledger import read_ledger
from server.folder import OperatorFolder
from server.found import bundle_sha256
from tests.federation_by_command import until
from tests.load_by_command import ROOT, Server, connected, noted


def newer_confide(folder: Path) -> Path:
    """Return a checkout of a later version, whose bundle is another one."""
    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["fab-include"]
    for name in ("privacy", "server", "client"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in {"confide.py", *(each for each in names if "/" not in each)}:
        shutil.copy(ROOT / name, folder)
    project = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(project.replace('\nversion = "', '\nversion = "99.', 1))
    with (folder / "server" / "app.py").open("a") as source:
        source.write('\n\nraise RuntimeError("the code of a newer bundle ran")\n')
    return folder


def script(name: str, *words: Path) -> None:
    subprocess.run([str(ROOT / "deploy" / "backup" / name), *map(str, words)], check=True)


@pytest.mark.slow
def test_a_campaign_goes_on_from_a_backup_elsewhere_and_under_a_newer_confide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis, ports = made_basis(4, 4), free_ports(3)
    operator = founded(tmp_path / "server", 4, 3, (ports[0], ports[1], ports[2]), basis, stage_s=120)
    crew = Crew(operator, tmp_path / "crew", 4, basis)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(crew.sockets))
    servers: list[Server] = []

    def serve(folder: OperatorFolder, name: str, source: Path = ROOT) -> Server:
        servers.append(Server(folder, tmp_path / name, source))
        return servers[-1]

    try:
        first = serve(operator, "first")
        with connected(operator, crew):
            run = first.begun("run")
            until(lambda: noted(operator, "sum"), "the first sum", 600.0)
            script("backup", operator.folder, tmp_path / "one.tar")
            # Every device has handed its vector over: what it charged for round 1 is spent, whatever becomes of it.
            until(lambda: noted(operator, "stage", round=1, stage="confirm"), "round 1, nearly done", 600.0)
            run.kill()
            first.vanish()
        operator.folder.rename(tmp_path / "lost")

        # The machine is gone in round 1. Its backup of round 0 goes on in another folder, under a newer confide.
        newer = newer_confide(tmp_path / "newer")
        again = OperatorFolder(tmp_path / "again")
        script("restore", tmp_path / "one.tar", again.folder)
        assert bundle_sha256(newer) != again.settings.bundle_sha256 == bundle_sha256(again.folder / "bundle")
        second = serve(again, "second", newer)
        with connected(again, crew):
            status, said = second.run()
            assert status == 0, said
        end(second.process)
        assert (again.home / "release" / "release.json").exists()
        lost = list((again.home / "checkpoints" / "rounds").glob("*.lost"))
        assert noted(again, "sum") == 3 and len(lost) == 1, "round 1 was asked anew, at a new charge"
        sums = list(flushed(again.home))
        assert len(sums) == 3 and all(crew.exact(*each) for each in sums)
        assert books_agree(again, tmp_path / "crew" / "ledgers")

        # A backup of round 0 once more: devices have seen later entries, and answer no server that lost them.
        spent = {
            file: read_ledger(file).account.spent_rho() for file in (tmp_path / "crew" / "ledgers").glob("*.jsonl")
        }
        stale = OperatorFolder(tmp_path / "stale")
        script("restore", tmp_path / "one.tar", stale.folder)
        third = serve(stale, "third")
        with connected(stale, crew):
            status, said = third.run()
        assert status != 0 and "federation.history" in said and len(said.splitlines()) == 1
        # Of round 1 it got what the devices had answered already, to the very same question: the same bytes, no charge.
        name = "checkpoints/rounds/round-00001-1.sum"
        assert noted(stale, "sum") == 2 and (stale.home / name).read_bytes() == (again.home / name).read_bytes()
        assert spent == {file: read_ledger(file).account.spent_rho() for file in spent}, "nobody paid for it"
    finally:
        for each in servers:
            end(each.process)
        crew.close()
