"""The scorecard from the command line: its files, `--json`, finished cards put together, refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import confide
from simulation.scorecard.evaluate import scorecard


@pytest.fixture
def here(hosts_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `confide` work without worker processes."""
    monkeypatch.setattr(scorecard, "__kwdefaults__", {**(scorecard.__kwdefaults__ or {}), "open_hosts": hosts_here})


def command(*arguments: object) -> int:
    return confide.run(confide.confide, [str(argument) for argument in arguments])


def test_a_card_is_written_read_and_put_beside_another(
    here: None, run: Any, strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, one, both = tmp_path / "run", tmp_path / "one", tmp_path / "both"
    run(folder, "rounds=1", "compare_without_noise=false")
    small = ["--card", "document_tokens=48", "--card", "test_documents=1", "--card", "encoder=hashed"]
    some = ["--arms", "base,global,bm25@1", "--own-people", 2, *small]
    capsys.readouterr()
    assert command("evaluate", folder, "--people", strangers, "--out", one, *some, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((one / "report.json").read_text())
    assert sorted(path.suffix for path in one.iterdir()) == [".html", ".json", ".md"]
    assert command("evaluate", folder, "--people", "own", "--with", one, "--out", both, *some) == 0
    assert "Whom it serves" in capsys.readouterr().out
    tasks = [task["task"] for task in json.loads((both / "report.json").read_text())["table"]["tasks"]]
    assert tasks == ["people", "strangers"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate"], "name the folder of a run"),
        (["evaluate", "a", "b"], "say where with --out FOLDER"),
        (["evaluate", "--out", "card"], "a scorecard of text needs the folder of a run"),
        (["evaluate", "--with", "nothing", "--out", "card"], "nothing holds no scorecard"),
        (["evaluate", "a", "--out", "card", "--card", "nonsense=1"], "unknown key nonsense"),
        (["evaluate", "a", "--out", "card", "--arms", "nonsense"], "unknown arm nonsense"),
        (["evaluate", "a", "--out", "card", "--recipe", "gone.toml"], "gone.toml: cannot be read"),
        (["simulate", "--out", "grid", "--grid", "rounds"], "--grid takes key=a,b"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) != 0
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
