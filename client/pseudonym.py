"""Pseudonyms that hold over time: the same name has the same placeholder in every text of a person, and can come back.

    "Ann met Bob." -> "<PERSON_1> met <PERSON_2>."      the table lies in the vault and never leaves it
    a reply with <PERSON_2> -> Bob                      on the device, for its owner

A pseudonym belongs to the documents in which its name stands; when the last of them is forgotten it goes too. Two
people's tables have nothing in common, so equal placeholders of two devices do not mean the same name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from presidio_analyzer import AnalyzerEngine

from client.documents import Document
from client.importers import SHARED
from client.library import documents
from client.scrub import Scrubber, find
from client.vault import Vault

_PLACEHOLDER = re.compile(r"<([A-Z_]{2,30})_(\d{1,9})>")


class VaultScrubber(Scrubber):
    """A scrubber whose numbering lies in the vault."""

    def __init__(self, vault: Vault, engine: AnalyzerEngine | None = None) -> None:
        super().__init__(engine)
        self._vault = vault
        self._originals: dict[tuple[str, str], str] = {}
        for entity, number, name in vault.select("SELECT entity, number, name FROM pseudonym"):
            self._numbers.setdefault(entity, {})[name] = int(number)

    def scrub_kept(self, kept: Sequence[tuple[int, Document]]) -> tuple[Document, ...]:
        """Return documents of the vault, each with its number, scrubbed; their pseudonyms are kept with them."""
        found = find([document.text for _, document in kept], self.engine)
        made = []
        with self._vault.change() as rows:
            for (number, document), findings in zip(kept, found, strict=True):
                made.append(self._scrubbed(document, findings))
                for finding in findings:
                    original = document.text[finding.start : finding.end]
                    name = " ".join(original.casefold().split())
                    place = self._numbers[finding.entity][name]
                    rows.execute(
                        "INSERT OR IGNORE INTO pseudonym VALUES (?, ?, ?, ?)", (finding.entity, place, name, original)
                    )
                    rows.execute(
                        "INSERT OR IGNORE INTO pseudonym_document VALUES (?, ?, ?)", (finding.entity, name, number)
                    )
        return tuple(made)


def shared_documents(vault: Vault, engine: AnalyzerEngine | None = None) -> tuple[Document, ...]:
    """Return what may train what is shared: scrubbed documents of the sources whose owner said so.

    Others' words in them are context and never a target (`client.documents`).
    """
    kept = [(d.number, d.as_document()) for d in documents(vault, SHARED, held_back=False)]
    return VaultScrubber(vault, engine).scrub_kept([(n, d) for n, d in kept if d.own_words]) if kept else ()


def restored(vault: Vault, text: str) -> str:
    """Return `text` with every placeholder that the vault knows replaced by the longest name it stands for."""

    def name(found: re.Match[str]) -> str:
        original = vault.one(
            "SELECT original FROM pseudonym WHERE entity = ? AND number = ? ORDER BY length(original) DESC, original",
            (found.group(1), int(found.group(2))),
        )
        return found.group() if original is None else str(original)

    return _PLACEHOLDER.sub(name, text)
