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
from client.scrub_strength import strength_of
from client.vault import Vault

_PLACEHOLDER = re.compile(r"<([A-Z_]{2,30})_(\d{1,9})>")


class VaultScrubber(Scrubber):
    """A scrubber whose numbering lies in the vault."""

    def __init__(self, vault: Vault, engine: AnalyzerEngine | None = None) -> None:
        super().__init__(engine, strength_of(vault))
        self._vault = vault
        self._originals: dict[str, str] = {}
        for entity, number, name in vault.select("SELECT entity, number, name FROM pseudonym"):
            self._numbers.setdefault(entity, {})[name] = int(number)

    def scrub_kept(self, kept: Sequence[tuple[int, Document]]) -> tuple[Document, ...]:
        """Return documents of the vault, each with its number, scrubbed; their pseudonyms are kept with them."""
        found = find([document.text for _, document in kept], self.engine, self.strength)
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

    def hidden(self, texts: Sequence[str]) -> list[str]:
        """Return texts with pseudonyms, those of the vault where it has them; new ones last as long as this scrubber.

        For a prompt: `back` undoes it in the reply.
        """
        made = []
        for text, findings in zip(texts, find(texts, self.engine, self.strength), strict=True):
            parts, at = [], 0
            for finding in findings:
                original = text[finding.start : finding.end]
                mark = self.placeholder(finding.entity, original)
                if len(original) > len(self._originals.get(mark, "")):
                    self._originals[mark] = original
                parts += [text[at : finding.start], mark]
                at = finding.end
            made.append("".join([*parts, text[at:]]))
        return made

    def back(self, text: str) -> str:
        """Return `text` with the names that `hidden` took out put back, then those that the vault knows."""
        return restored(self._vault, _PLACEHOLDER.sub(lambda m: self._originals.get(m.group(), m.group()), text))


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
