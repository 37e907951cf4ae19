"""Pseudonyms hold over documents and days, come back on the device alone, and go with the last text that names them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from client import vault_key
from client.attributes import generalised
from client.forget import Wanted, forget
from client.importers import add
from client.pseudonym import restored, shared_documents
from client.vault import Vault
from client.vault_key import Opener

NOTES = {
    "a.txt": "My name is Wilhelmina Stackpole and my mail is wil@example.org, as always this year.",
    "b.txt": "Write to wil@example.org or to bob@example.org about the boat and its new paint.",
    "c.txt": "I told bob@example.org that the ferry was late again, and he only laughed at me.",
}


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    from client import importers

    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    monkeypatch.setattr(importers, "held_back", lambda _digest: 0)
    folder = tmp_path / "notes"
    folder.mkdir()
    for name, text in NOTES.items():
        (folder / name).write_text(text)
    with Vault.create(tmp_path / "home", Opener(passphrase="x")) as made:
        add(made, folder)
        yield made


def share(vault: Vault) -> list[str]:
    with vault.change() as rows:
        rows.execute("UPDATE consent SET granted = 1 WHERE purpose = 'shared'")
    return [document.text for document in shared_documents(vault)]


def test_nothing_is_shared_by_default(vault: Vault) -> None:
    assert shared_documents(vault) == () and vault.one("SELECT count(*) FROM pseudonym") == 0


def test_the_same_name_has_the_same_placeholder_in_every_text_and_after_a_day(vault: Vault, tmp_path: Path) -> None:
    first = share(vault)
    assert "example.org" not in "".join(first) and "Stackpole" not in "".join(first)
    mark = first[0].split("mail is ")[1].split(",")[0]
    assert f"Write to {mark} or to " in first[1] and mark.startswith("<EMAIL_ADDRESS_")
    assert share(vault) == first, "a second time the same"
    (tmp_path / "notes" / "d.txt").write_text("Now carol@example.org writes to wil@example.org as well, and at length.")
    add(vault, tmp_path / "notes")
    assert share(vault)[:3] == first and mark in share(vault)[3]


def test_replies_get_the_names_back(vault: Vault) -> None:
    shown = share(vault)
    assert restored(vault, shown[1]) == NOTES["b.txt"]
    assert restored(vault, "<EMAIL_ADDRESS_99> and <NOTHING_1>") == "<EMAIL_ADDRESS_99> and <NOTHING_1>"


def test_a_pseudonym_goes_with_the_last_text_that_names_it(vault: Vault) -> None:
    share(vault)
    number = {row[1]: row[0] for row in vault.select("SELECT id, key FROM document")}
    forget(vault, Wanted(documents=(number["b.txt"],)))
    kept = {row[0] for row in vault.select("SELECT original FROM pseudonym")}
    assert {"wil@example.org", "bob@example.org"} <= kept
    forget(vault, Wanted(documents=(number["c.txt"],)))
    kept = {row[0] for row in vault.select("SELECT original FROM pseudonym")}
    assert "bob@example.org" not in kept and "wil@example.org" in kept


def test_attributes_are_made_general() -> None:
    said = {
        "Age": "34",
        "address": "Strandgaten 1, Bergen, Norway",
        "role": "nurse",
        "email": "ann@example.org",
        "name": "Ann",
        "shoe": "size 39",
        "salary": "secret@4000",
    }
    assert generalised(said, date(2025, 1, 1)) == {"age": "30 to 39", "region": "Norway", "role": "nurse"}
    assert generalised({"born": "2 May 1931"}, date(2025, 1, 1)) == {"age": "90 or more"}
    assert generalised({"city": "Bergen", "address": "Strandgaten 1"}, date(2025, 1, 1)) == {}
    assert generalised({"country": "Norway"}, date(2025, 1, 1)) == {"region": "Norway"}
