"""The person's assistant: a question, what the vault knows about it, the model's reply, and in words what was used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from client.adopt import put_serving
from client.attributes import generalised
from client.base_model import DEFAULT_MODEL, base_model_path
from client.encoder import MINILM, Encoder, open_encoder
from client.generate import reply
from client.library import Passage
from client.model import GLOBAL, OWN, LanguageModel
from client.personal import active
from client.personalize import ARMS, Arm, Choice, arms_for, choose, score_arms
from client.prompt import CHAT, CONTEXTUAL, PLAIN, About, context, templates
from client.retrieve import METHODS, PersonalIndex
from client.topics import about_of
from client.vault import Vault
from client.wall import harmless_reply

MODEL_SETTING, CHOICE_SETTING = "model", "choice"
PASSAGES = 6
CONTEXT_TOKENS = 700
COMMON_WORDS = 3000


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

    def __init__(self, vault: Vault, model: LanguageModel, encoder: Encoder | None) -> None:
        self.vault, self.model, self.encoder = vault, model, encoder
        self.index = PersonalIndex(vault, encoder)

    def about(self, index: PersonalIndex) -> About:
        """Return what the vault and the passages of an index say of the person."""
        rows = self.vault.select("SELECT name, value FROM attribute")
        common = self.encoder.common_words(COMMON_WORDS) if self.encoder is not None else ()
        return about_of(index.passages, generalised(dict(rows), datetime.now(UTC).date()), common)

    def personalize(self, report: Callable[[str], None] = lambda _step: None) -> Choice:
        """Score what could serve this person on the held-back slice, keep the choice in the vault and return it."""
        searched = PersonalIndex(self.vault, self.encoder, held_back=False)
        own = active(self.vault)
        put_serving(self.vault, self.model)
        about = self.about(searched)
        count = len({passage.document for passage in searched.passages if passage.own})
        arms = arms_for(count, own is not None, about)
        made = choose(*score_arms(self.vault, self.model, searched, arms, about, report))
        self.vault.set_setting(CHOICE_SETTING, json.dumps(made.to_json()))
        return made

    def chosen(self) -> Arm:
        """Return the arm that was chosen last; before any choice, or without its adapter, retrieval alone."""
        kept = json.loads(self.vault.setting(CHOICE_SETTING, "{}"))
        by_name = {arm.name: arm for arm in ARMS}
        arm = by_name.get(kept.get("arm", ""), by_name["hybrid"])
        return by_name["hybrid"] if arm.own and active(self.vault) is None else arm

    def ask(
        self, question: str, most_tokens: int = 128, kind: str = "", wall: bool = True, pseudonyms: bool = False
    ) -> Told:
        """Return the reply to a question; `wall` False shows imported text as it is, for measuring alone.

        With `pseudonyms` the model sees placeholders in the place of names, numbers and addresses, the same for the
        same name; in the reply they are put back.

        Memories are shown whatever arm serves the person's writing: a question is not a text of their own.
        """
        arm = self.chosen()
        own = active(self.vault) if arm.own else None
        put_serving(self.vault, self.model)
        self.model.activate(*((GLOBAL, OWN) if own is not None else (GLOBAL,)))
        kind = kind or (arm.prompt if arm.prompt != PLAIN else CONTEXTUAL)
        hits = [] if kind == PLAIN else self.index.search(question, PASSAGES, arm.methods or METHODS)
        found = [hit.passage for hit in hits]
        system = context(kind, CHAT, found, self.about(self.index), CONTEXT_TOKENS, self.count, wall)
        system, asked = system or templates()[CHAT][PLAIN], question
        back: Callable[[str], str] = str
        if pseudonyms:
            from client.pseudonym import VaultScrubber  # spaCy loads here

            scrubber = VaultScrubber(self.vault)
            (system, asked), back = scrubber.hidden([system, question]), scrubber.back
        made = reply(self.model, system, asked, most_tokens)
        told = back(made.text)
        text = harmless_reply(told, question) if wall else told
        used = f"Used {len(found)} passages of yours" if found else "Nothing of yours matched: the base model alone"
        used += ", with your own adapter." if own is not None else "."
        return Told(text, used, tuple(found), made.prompt_tokens, made.tokens)

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def open_assistant(vault: Vault, model: str = "") -> Assistant:
    """Return the assistant over a vault; `model` empty means the one in the vault's settings, else the embedded one."""
    return Assistant(vault, model_of(vault, model), open_encoder(MINILM))


def model_of(vault: Vault, model: str = "") -> LanguageModel:
    """Return the model `model`, loaded; empty means the one in the vault's settings, else the embedded one."""
    return LanguageModel.load(base_model_path(model or vault.setting(MODEL_SETTING, DEFAULT_MODEL)))
