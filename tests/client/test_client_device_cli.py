"""The command `confide device`, from an empty vault to a reply and to nothing again, over a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import confide
from client import assistant, vault_key
from client.encoder import HashedEncoder

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs `confide device …` and returns its JSON; a failure is its line and status."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "correct horse")
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    monkeypatch.setattr(assistant, "open_encoder", lambda _name: HashedEncoder(64))

    def call(*arguments: str) -> Any:
        words = list(arguments)
        if words[0] in ("ask", "train", "adopt", "export"):
            words += ["--model", str(tiny_model_dir)]
        result: Result = CliRunner().invoke(confide.confide, ["device", *words, "--json"])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return confide.error_line(result.exception)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"Note {i}: the boat number {i % 7} needs paint before the summer.")
    (folder / "ferry.txt").write_text("The ferry to the island leaves at dawn on Tuesdays.")
    (folder / "photo.png").write_bytes(b"x")
    return folder


def test_from_an_empty_vault_to_a_reply_and_to_nothing(run: Run, notes: Path, tmp_path: Path) -> None:
    assert run("init") == {"home": str(tmp_path / "home"), "opens_by": "passphrase"}
    assert run("ask", "When does the ferry leave?")["sources"] == []
    added = run("add", str(notes))
    assert added["new"] == 31 and added["skipped"] == {"image/png is not read, only text": 1}
    assert run("add", str(notes))["same"] == 31
    told = run("ask", "When does the ferry leave?", "--most-tokens", "4")
    assert told["sources"][0]["title"] == "ferry" and told["tokens"] <= 4 and "passages of yours" in told["used"]
    status = run("status")
    assert status["documents"] == 31 and status["sources"][0]["for"] == ["own"]
    assert run("forget", "--document", str(told["sources"][0]["document"]))["documents"] == [
        told["sources"][0]["document"]
    ]
    assert "ferry" not in json.dumps(run("ask", "When does the ferry leave?", "--most-tokens", "2")["sources"])
    assert run("forget", "--all") == {"destroyed": True}
    assert run("status")[0].startswith("there is no vault here, or its key was destroyed")


def test_an_own_adapter_is_trained_measured_and_used(run: Run, notes: Path) -> None:
    run("init")
    run("add", str(notes))
    trained = run("train", "--kind", "lora")
    choice = trained["choice"]
    assert trained["documents"] >= 20 and {"global", "hybrid", "own", "own+hybrid"} <= set(choice["bits"])
    assert choice["words"].startswith("Uses ") and run("status")["adapters"] == 1
    told = run("ask", "Which boat?", "--most-tokens", "2")
    assert ("your own adapter" in told["used"]) == choice["arm"].startswith("own")
    assert "weighed -1" in run("ask", "Which boat?", "--most-tokens", "2", "--steer", "-1")["used"]
    refused = run("export", str(notes.parent / "out"))
    assert "stays here" in refused[0] and not (notes.parent / "out").exists()
    left = run("export", str(notes.parent / "out"), "--record-epsilon", "8")
    assert 0 < left["epsilon"] <= 8 and (notes.parent / "out" / "adapter_model.safetensors").is_file()
    assert run("ask", "Which boat?", "--most-tokens", "2")["used"] == told["used"], "the one without noise serves on"


def test_mistakes_end_in_one_line(run: Run, tmp_path: Path) -> None:
    assert "there is no vault here" in run("status")[0]
    run("init")
    assert "has a vault already" in run("init")[0]
    assert "say what" in run("forget")[0] and "say what" in run("forget", "--all", "--document", "1")[0]
    assert run("forget", "--document", "7")[0] == "the vault has no document 7"
    assert "no such file" in run("add", str(tmp_path / "nowhere"))[0]
    assert "needs 3 documents" in run("train")[0]
    assert "no own adapter of kind full" in run("train", "--kind", "full")[0]
    assert "more than 128 MB" in run("train", "--memory-mb", "7")[0]
    assert "raise --memory-mb" in with_notes(run, tmp_path, "--memory-mb", "200", "--hours", "0", "24")
    assert "from -1 (none) to 3" in run("ask", "x", "--steer", "9")[0]
    assert "no own adapter to export" in run("export", str(tmp_path / "out"))[0]
    assert "no release here" in run("adopt", str(tmp_path))[0]


def with_notes(run: Run, tmp_path: Path, *words: str) -> str:
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"Note {i}: the boat number {i % 7} needs paint before the summer.")
    run("add", str(folder))
    return str(run("train", *words)[0])
