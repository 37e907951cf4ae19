"""What a person preferred: a prompt, the text they chose and the one they did not; kept only where they said so.

    chosen among several    the chosen one over each of the others
    edited                  what the person made of it over what it was
    thumbs                  each reply that was found good over each that was found bad, behind the same prompt

What was preferred behind a prompt that held memories belongs to their documents, and goes with the first of them that
is forgotten. A thumb alone is kept and is no pair until there is one of the other kind.
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
    _require(kind, prompt, chosen)
    others = [text for text in dict.fromkeys(rejected) if text != chosen]
    if any(len(text) > MOST_CHARACTERS for text in others):
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


def thumb(vault: Vault, prompt: str, text: str, up: bool, documents: Iterable[int] = (), kind: str = CHAT) -> None:
    """Keep that a reply was found good, or bad, in place of what was said of it before.

    Raises ConfigError for a text that is empty or too long.
    """
    _require(kind, prompt, text)
    with vault.change() as rows:
        rows.execute("DELETE FROM thumb WHERE prompt = ? AND kind = ? AND text = ?", (prompt, kind, text))
        number = rows.execute(
            "INSERT INTO thumb (time, prompt, text, kind, up) VALUES (?, ?, ?, ?, ?)",
            (time.time(), prompt, text, kind, int(up)),
        ).lastrowid
        rows.executemany(
            "INSERT INTO thumb_document SELECT ?, id FROM document WHERE id = ?",
            [(number, document) for document in sorted(set(documents))],
        )


def thumbs(vault: Vault) -> dict[str, int]:
    """Return how many replies were found good and how many bad."""
    kept = dict(vault.select("SELECT up, count(*) FROM thumb GROUP BY up"))
    return {"good": int(kept.get(1, 0)), "bad": int(kept.get(0, 0))}


def preferences(vault: Vault) -> list[Preference]:
    """Return every pair, those of choices and edits first, oldest first; each once, whatever it came from."""
    rows = vault.select("SELECT id, prompt, chosen, rejected, kind FROM preference ORDER BY id")
    rows += vault.select(
        "SELECT -good.id, good.prompt, good.text, bad.text, good.kind FROM thumb good JOIN thumb bad"
        " ON good.prompt = bad.prompt AND good.kind = bad.kind WHERE good.up AND NOT bad.up ORDER BY good.id, bad.id"
    )
    found = {row[1:]: Preference(*row) for row in reversed(rows)}
    return list(reversed(found.values()))


def choices_of_documents(vault: Vault) -> dict[int, int]:
    """Return behind how many prompts with a choice each document stood, by its number."""
    rows = vault.select(
        "SELECT document, count(DISTINCT prompt) FROM ("
        " SELECT document, prompt FROM preference_document JOIN preference ON id = preference"
        " UNION SELECT document, prompt FROM thumb_document JOIN thumb ON id = thumb) GROUP BY document"
    )
    return {int(document): int(count) for document, count in rows}


def drop_preferences(vault: Vault) -> int:
    """Delete every pair and every thumb and return how many there were."""
    with vault.change() as rows:
        return sum(int(rows.execute(f"DELETE FROM {table}").rowcount) for table in ("preference", "thumb"))  # noqa: S608


def _require(kind: str, prompt: str, text: str) -> None:
    if kind not in SEPARATOR:
        raise ConfigError(f"there is no preference of kind {kind}: there is {', '.join(SEPARATOR)}")
    if not text.strip() or max(len(prompt), len(text)) > MOST_CHARACTERS:
        raise ConfigError(f"what is preferred is a text of at most {MOST_CHARACTERS} characters")
