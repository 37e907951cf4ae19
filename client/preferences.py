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
CHAT, SENTENCE, SUBJECT, REPLY = "chat", "sentence", "subject", "reply"
SEPARATOR = {CHAT: "", SENTENCE: " ", SUBJECT: "\n\nSubject: ", REPLY: "\n\nMy reply:\n"}
"""What stands between a prompt and what was chosen, by the kind of text that was asked for."""


@dataclass(frozen=True)
class Preference:
    """One pair: after `prompt` the person would rather read `chosen` than `rejected`; `kind` as in `SEPARATOR`."""

    number: int
    prompt: str
    chosen: str
    rejected: str
    kind: str = CHAT


def prefer(
    vault: Vault, prompt: str, chosen: str, rejected: Sequence[str], documents: Iterable[int] = (), kind: str = CHAT
) -> int:
    """Keep one pair for each text that was not chosen, with the documents that stood in the prompt; return how many.

    Equal texts make no pair. Raises ConfigError for a text that is empty or too long.
    """
    if kind not in SEPARATOR:
        raise ConfigError(f"there is no preference of kind {kind}: there is {', '.join(SEPARATOR)}")
    others = [text for text in dict.fromkeys(rejected) if text != chosen]
    if not chosen.strip() or any(len(text) > MOST_CHARACTERS for text in (prompt, chosen, *others)):
        raise ConfigError(f"what is preferred is a text of at most {MOST_CHARACTERS} characters")
    shown = sorted(set(documents))
    with vault.change() as rows:
        for other in others:
            number = rows.execute(
                "INSERT INTO preference (time, prompt, chosen, rejected, kind) VALUES (?, ?, ?, ?, ?)",
                (time.time(), prompt, chosen, other, kind),
            ).lastrowid
            rows.executemany(
                "INSERT INTO preference_document SELECT ?, id FROM document WHERE id = ?",
                [(number, document) for document in shown],
            )
    return len(others)


def preferences(vault: Vault) -> list[Preference]:
    """Return every pair, oldest first."""
    rows = vault.select("SELECT id, prompt, chosen, rejected, kind FROM preference ORDER BY id")
    return [Preference(*row) for row in rows]


def drop_preferences(vault: Vault) -> int:
    """Delete every pair and return how many there were."""
    with vault.change() as rows:
        return int(rows.execute("DELETE FROM preference").rowcount)
