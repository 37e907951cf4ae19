"""What a person preferred: a prompt, the text they chose and the one they did not; kept only where they said so.

A preference whose prompt held memories belongs to their documents, and goes with the first of them that is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.vault import Vault
from privacy.errors import ConfigError

MOST_CHARACTERS = 20_000


@dataclass(frozen=True)
class Preference:
    """One pair: after `prompt` the person would rather read `chosen` than `rejected`."""

    number: int
    prompt: str
    chosen: str
    rejected: str


def prefer(vault: Vault, prompt: str, chosen: str, rejected: Sequence[str], documents: Iterable[int] = ()) -> int:
    """Keep one pair for each text that was not chosen, with the documents that stood in the prompt; return how many.

    Equal texts make no pair. Raises ConfigError for a text that is empty or too long.
    """
    others = [text for text in dict.fromkeys(rejected) if text != chosen]
    if not chosen.strip() or any(len(text) > MOST_CHARACTERS for text in (prompt, chosen, *others)):
        raise ConfigError(f"what is preferred is a text of at most {MOST_CHARACTERS} characters")
    shown = sorted(set(documents))
    with vault.change() as rows:
        for other in others:
            number = rows.execute(
                "INSERT INTO preference (time, prompt, chosen, rejected) VALUES (?, ?, ?, ?)",
                (time.time(), prompt, chosen, other),
            ).lastrowid
            rows.executemany(
                "INSERT INTO preference_document SELECT ?, id FROM document WHERE id = ?",
                [(number, document) for document in shown],
            )
    return len(others)


def preferences(vault: Vault) -> list[Preference]:
    """Return every pair, oldest first."""
    rows = vault.select("SELECT id, prompt, chosen, rejected FROM preference ORDER BY id")
    return [Preference(int(number), prompt, chosen, rejected) for number, prompt, chosen, rejected in rows]


def drop_preferences(vault: Vault) -> int:
    """Delete every pair and return how many there were."""
    with vault.change() as rows:
        return int(rows.execute("DELETE FROM preference").rowcount)
