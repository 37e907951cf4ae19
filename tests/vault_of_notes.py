"""A vault over a folder of invented notes, opened by a passphrase that is quick to stretch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client import vault_key
from client.importers import add
from client.vault import Vault
from client.vault_key import Opener


@contextmanager
def vault_of_notes(folder: Path, monkeypatch: pytest.MonkeyPatch, texts: Iterable[str]) -> Iterator[Vault]:
    """Yield a vault in `folder`/home that holds the texts as notes, in their order."""
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    notes = folder / "notes"
    notes.mkdir()
    for i, text in enumerate(texts):
        (notes / f"{i:02}.txt").write_text(text)
    with Vault.create(folder / "home", Opener(passphrase="x")) as made:
        add(made, notes)
        yield made
