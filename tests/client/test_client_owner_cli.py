"""What a person decides on the command line: dials, consent, attributes; each change is kept with its line or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import confide
from client import assistant, vault_key
from client.assistant import Assistant
from client.dial import ALL, METRICS, PERSONAS
from client.encoder import HashedEncoder
from client.gains import by_stop, gains, measure
from client.importers import add
from client.journal import changes
from client.model import LanguageModel
from client.pseudonym import VaultScrubber, shared_documents
from client.scrub import find
from client.scrub_strength import IDENTIFIERS, LEFT_ALONE, REMOVES, STANDARD, STRICT
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfigError

Run = Callable[..., Any]
OPENER = Opener(passphrase="correct horse")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what runs `confide device …` and returns its JSON; a failure is its line."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "correct horse")
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    monkeypatch.setattr(assistant, "open_encoder", lambda _name: HashedEncoder(64))

    def call(*arguments: str, as_json: bool = True) -> Any:
        words = ["device", *arguments, *(["--json"] if as_json else [])]
        result: Result = CliRunner().invoke(confide.confide, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            return confide.error_line(result.exception)[0]
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if as_json else result.stdout

    call("init")
    return call


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"Note {i}: write to zebedee@example.org, the boat {i % 7} needs paint.")
    return folder


def test_the_dial_shows_each_stop_with_its_price_and_gain(run: Run) -> None:
    shown = run("dial")
    assert (shown["dial"], shown["scrubbing"], shown["federation"]) == ("alone", STANDARD, None)
    assert [row["epsilon_a_year"] for row in shown["stops"]] == [0.0] * 4
    assert {row["gain"] for row in shown["stops"]} == {None}
    turned = run("dial", "metrics", "--scrubbing", STRICT)
    assert (turned["dial"], turned["scrubbing"], turned["turns"]) == ("metrics", STRICT, 1)
    table = run("dial", as_json=False)
    assert "not measured" in table and "every number" in table and "No federation is joined" in table
    assert "the dial has the stops" in run("dial", "some") and "never off" in run("dial", "--scrubbing", "off")
    assert "no release to measure" in run("dial", "--measure")
    with Vault.open(vault_folder(run), OPENER) as vault:
        kinds = [next(k for k in ("dial", "scrubbing", "consent") if k in line) for line in changes(vault)]
    assert kinds == ["dial", "scrubbing"], "what was refused left no line"


def vault_folder(run: Run) -> Path:
    return Path(run("status")["home"])


def test_consent_is_given_and_taken_back_source_by_source(run: Run, notes: Path) -> None:
    run("add", str(notes))
    assert run("status")["sources"][0]["for"] == ["own"]
    assert run("consent", "1", "shared", "on")["changed"] is True
    assert run("consent", "1", "shared", "on")["changed"] is False
    assert sorted(run("status")["sources"][0]["for"]) == ["own", "shared"]
    run("consent", "1", "own", "off")
    with Vault.open(vault_folder(run), OPENER) as vault:
        lines = [(line["consent"], line["source"], line["granted"]) for line in changes(vault)]
        assert lines == [("shared", 1, True), ("own", 1, False)]
        assert len(Assistant(vault, None, HashedEncoder(64)).index) == 0  # type: ignore[arg-type]
    assert "no source 9" in run("consent", "9", "own", "on") and "no purpose all" in run("consent", "1", "all", "on")
    assert "say on or off" in run("consent", "1", "own", "maybe")


def test_attributes_are_kept_whole_and_shown_general(run: Run) -> None:
    run("attributes", "born", "1991-05-02")
    run("attributes", "Place", "Strandgaten 1, Bergen, Norway")
    shown = run("attributes", "employer", "Acme")
    assert shown["attributes"]["place"] == "Strandgaten 1, Bergen, Norway"
    assert shown["general"]["region"] == "Norway" and set(shown["general"]) == {"age", "region"}
    text = run("attributes", as_json=False)
    assert "A prompt sees: age 30 to 39, region Norway." in text
    assert "place" not in run("attributes", "place")["attributes"]


def test_each_strength_takes_more_and_none_takes_nothing(tmp_path: Path, notes: Path) -> None:
    text = "Dr. Anna Smith of Microsoft is 34 years old and lives in Bergen; call +47 555 01 234.\n"
    text += "We moved in on Tuesday, 3 March 2021, to room 42."
    taken = {s: {f.entity for f in find([text], strength=s)[0]} for s in LEFT_ALONE}
    assert taken[IDENTIFIERS] < taken[STANDARD] < taken[STRICT] and "PERSON" in taken[IDENTIFIERS]
    assert {"LOCATION", "AGE"} <= taken[STANDARD] - taken[IDENTIFIERS]
    assert {"DATE_TIME", "NUMBER"} <= taken[STRICT] - taken[STANDARD]
    assert set(REMOVES) == set(LEFT_ALONE)
    with pytest.raises(ConfigError, match="never off"):
        find([text], strength="off")


def test_the_vaults_strength_is_what_shared_text_is_scrubbed_with(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"On 3 March 2021 we moved to room 4{i} at Microsoft, by the water.")
    run("add", str(folder))
    run("consent", "1", "shared", "on")
    for strength, plain in ((STANDARD, True), (STRICT, False)):
        run("dial", "--scrubbing", strength)
        with Vault.open(vault_folder(run), OPENER) as vault:
            texts = " ".join(document.text for document in shared_documents(vault))
        assert texts and ("3 March 2021" in texts) == plain


def test_with_pseudonyms_the_model_sees_no_name_and_the_owner_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "ben.txt").write_text("Lunch with Wilhelmina Stackpole, wil@example.org, is on Thursday.")
    run("add", str(folder))
    seen: list[str] = []

    def parrot(_model: object, system: str, question: str, _most: int) -> Any:
        seen.append(system + question)
        return assistant_reply(f"Write to <EMAIL_ADDRESS_1>. {question}")

    monkeypatch.setattr(assistant, "reply", parrot)
    monkeypatch.setattr(assistant, "put_serving", lambda *_: None)
    with Vault.open(vault_folder(run), OPENER) as vault:
        asked = "When is lunch with Wilhelmina Stackpole and Theodora Blenkinsop?"
        model: Any = Silent()
        told = Assistant(vault, model, HashedEncoder(64)).ask(asked, pseudonyms=True)
        assert not any(name in seen[0] for name in ("Stackpole", "Blenkinsop", "wil@example.org"))
        assert "wil@example.org" in told.text and "Stackpole" in told.text and "Blenkinsop" in told.text
        assert vault.one("SELECT count(*) FROM pseudonym") == 0, "a question leaves no table behind"
        Assistant(vault, model, HashedEncoder(64)).ask(asked)
        assert "Stackpole" in seen[1], "without them it does: the test can fail"
        one, two = VaultScrubber(vault).hidden(["wil@example.org", "to wil@example.org"])
        assert two == f"to {one}"


class Silent:
    """The part of a model that `ask` touches beside the reply."""

    def activate(self, *_adapters: str) -> None:
        return None

    def tokenizer(self, text: str, **_options: object) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


def assistant_reply(text: str) -> Any:
    from client.generate import Reply

    return Reply(text, 1, 1)


def test_a_gain_is_of_the_texts_that_had_no_say() -> None:
    nats = np.array([[10.0, 10, 10, 10], [9, 8, 9, 8], [5, 11, 5, 11], [9, 1, 9, 1]])
    found = by_stop(nats, personas=True)
    assert found == {ALL: pytest.approx(0.2), PERSONAS: pytest.approx(-0.1)}, "the even texts chose the worse persona"
    assert by_stop(nats[:2], personas=False) == {ALL: pytest.approx(0.2)}


def test_a_release_is_measured_on_held_back_text_and_shown(
    run: Run, notes: Path, cored: LanguageModel, tiny_basis: Any
) -> None:
    from privacy.release import Release

    run("add", str(notes))
    rng = np.random.default_rng(0)
    layout = tiny_basis.layout
    cores = {name: layout.unflatten(rng.normal(0, 0.3, layout.dim)) for name in ("global", "persona-1")}
    release = Release(None, tiny_basis, cores, b"x")  # type: ignore[arg-type]
    with Vault.open(vault_folder(run), OPENER) as vault:
        found = measure(vault, cored, release)
        assert set(found) == {ALL, PERSONAS} and found[ALL] != 0 and gains(vault) == found
        vault.set_setting("choice", json.dumps({"arm": "own", "checked_gain": 0.05}))
    by_name = {row["stop"]: row["gain"] for row in run("dial")["stops"]}
    assert by_name == {**found, "alone": 0.05, METRICS: 0.05}


def test_too_little_text_is_measured_by_nothing(run: Run, tmp_path: Path, cored: LanguageModel) -> None:
    (tmp_path / "n.txt").write_text("One.")
    with Vault.open(vault_folder(run), OPENER) as vault:
        add(vault, tmp_path / "n.txt")
        with pytest.raises(ConfigError, match="4 are needed"):
            measure(vault, cored, None)  # type: ignore[arg-type]
