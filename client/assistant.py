"""The person's assistant: a question, what the vault knows about it, the model's reply, and in words what was used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from client.base_model import DEFAULT_MODEL, base_model_path
from client.encoder import MINILM, Encoder, open_encoder
from client.generate import reply
from client.library import Passage
from client.model import LanguageModel
from client.prompt import CHAT, CONTEXTUAL, NOBODY, PLAIN, About, context, templates
from client.retrieve import IDENTITY, METHODS, PersonalIndex
from client.vault import Vault
from client.wall import harmless_reply

MODEL_SETTING = "model"
PASSAGES = 6
CONTEXT_TOKENS = 700


@dataclass(frozen=True)
class Told:
    """A reply, the passages that stood in the prompt (best first), and what was used in words."""

    text: str
    used: str
    shown: tuple[Passage, ...]
    prompt_tokens: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """Return the reply as JSON values; sources by number and title."""
        shown = [{"document": p.document, "type": p.type, "title": p.title} for p in self.shown]
        return {"reply": self.text, "used": self.used, "sources": shown, "tokens": self.tokens}


class Assistant:
    """One person's model and index; the model is loaded once and serves every question."""

    def __init__(self, vault: Vault, model: LanguageModel, encoder: Encoder | None, about: About = NOBODY) -> None:
        self.vault, self.model, self.about = vault, model, about
        self.index = PersonalIndex(vault, encoder)

    def ask(self, question: str, most_tokens: int = 128, kind: str = CONTEXTUAL, wall: bool = True) -> Told:
        """Return the reply to a question; `wall` False shows imported text as it is, for measuring alone."""
        hits = [] if kind == PLAIN else self.index.search(question, PASSAGES, METHODS, build=IDENTITY)
        found = [hit.passage for hit in hits]
        system = context(kind, CHAT, found, self.about, CONTEXT_TOKENS, self.count, wall)
        made = reply(self.model, system or templates()[CHAT][PLAIN], question, most_tokens)
        text = harmless_reply(made.text, question) if wall else made.text
        used = f"Used {len(found)} passages of yours." if found else "Nothing of yours matched: the base model alone."
        return Told(text, used, tuple(found), made.prompt_tokens, made.tokens)

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def open_assistant(vault: Vault, model: str = "") -> Assistant:
    """Return the assistant over a vault; `model` empty means the one in the vault's settings, else the embedded one."""
    name = model or vault.setting(MODEL_SETTING, DEFAULT_MODEL)
    return Assistant(vault, LanguageModel.load(base_model_path(name)), open_encoder(MINILM))
