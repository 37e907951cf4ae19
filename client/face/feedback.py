"""What a person says of a reply that was given: good, bad, or what it should have been. Kept as pairs in their vault.

The last replies wait in memory alone, by name, so that what is kept is what was really said, with the documents that
stood in its prompt. Of a longer conversation the last question stands for the prompt.
"""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass
from typing import Any

from client.face.asked import field
from client.preferences import prefer, thumb
from client.speaker import Prompt
from client.vault import Vault
from privacy.errors import ConfigError

WAITING = 256


@dataclass(frozen=True)
class Said:
    """A reply behind what it answers, the kind of it, and the documents that stood in its prompt."""

    question: str
    text: str
    kind: str
    documents: tuple[int, ...]


class Replies:
    """The last replies of one program, until they are forgotten."""

    def __init__(self, vault: Vault) -> None:
        self._vault, self._lock = vault, threading.Lock()
        self._said: dict[str, Said] = {}

    def put(self, name: str, prompt: Prompt, text: str, kind: str) -> None:
        """Remember a whole reply by its name; the oldest beyond `WAITING` goes."""
        documents = tuple(sorted({passage.document for passage in prompt.shown}))
        with self._lock:
            self._said[name] = Said(prompt.question, text.strip(), kind, documents)
            for old in list(self._said)[:-WAITING]:
                del self._said[old]

    def judge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Keep what is said of the reply `id`: `thumb` "up" or "down", or the text it should be as `edited`.

        Returns how many pairs, or thumbs, were kept. Raises ConfigError for a reply that there is not, or nothing said.
        """
        name, verdict, edited = field(asked, "id", str), asked.get("thumb"), asked.get("edited")
        with self._lock:
            said = self._said.get(name)
        if said is None:
            raise ConfigError("this reply is no longer known here: what was said of it cannot be kept")
        if verdict in ("up", "down") and edited is None:
            thumb(self._vault, said.question, said.text, verdict == "up", said.documents, said.kind)
            return {"kept": 1}
        if isinstance(edited, str) and verdict is None:
            text = edited.strip()
            return {"kept": prefer(self._vault, said.question, text, [said.text], said.documents, said.kind)}
        raise ConfigError("say thumb (up or down), or edited (the text it should have been)")

    def forget(self) -> None:
        """Drop every reply that waits."""
        with self._lock:
            self._said.clear()


def new_name() -> str:
    """Return a name for a reply that nobody can guess."""
    return secrets.token_hex(12)
