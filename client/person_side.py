"""What a resident agent does for its person: questions over the vault, with the model that is in memory already."""

from __future__ import annotations

import threading
from typing import Any

from client.assistant import Assistant
from client.encoder import MINILM, Encoder, open_encoder
from client.model import LanguageModel
from client.vault import Vault
from privacy.errors import ConfigError

MOST_TOKENS = 2048
MOST_CHARACTERS = 20_000


class PersonSide:
    """Answers the owner of `vault`; `lock` is held while the model works, so that training and replies take turns."""

    def __init__(self, vault: Vault, model: LanguageModel, lock: threading.RLock, encoder: Encoder | None) -> None:
        self._vault, self._model, self._lock, self._encoder = vault, model, lock, encoder
        self._assistant: Assistant | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to `question` in at most `most_tokens`, see `Assistant.ask`. Raises ConfideError."""
        question, most = request.get("question"), request.get("most_tokens", 128)
        if not isinstance(question, str) or not 0 < len(question) <= MOST_CHARACTERS:
            raise ConfigError(f"a question is a text of at most {MOST_CHARACTERS} characters")
        if type(most) is not int or not 1 <= most <= MOST_TOKENS:
            raise ConfigError(f"most_tokens is a number from 1 to {MOST_TOKENS}")
        steer = request.get("steer")
        if steer is not None and type(steer) not in (int, float):
            raise ConfigError("steer is a number")
        with self._lock:
            assistant = self._opened()
            assistant.index.refresh()  # what was added or forgotten by another program since
            pseudonyms = request.get("pseudonyms") is True
            return assistant.ask(question, most, steer=steer, pseudonyms=pseudonyms).to_json()

    def forgot(self) -> None:
        """Drop the index and the adapter in memory; the next question builds both from what the vault still holds."""
        with self._lock:
            self._assistant = None
            self._model.drop_own()

    def _opened(self) -> Assistant:
        if self._assistant is None:
            self._assistant = Assistant(self._vault, self._model, self._encoder or open_encoder(MINILM))
        return self._assistant
