"""The person's assistant: a question, what the vault knows about it, the model's reply, and in words what was used."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from client.adopt import put_serving, serving
from client.attributes import generalised
from client.base_model import DEFAULT_MODEL, base_model_path
from client.crossfit import Folds, cross_fitted
from client.encoder import MINILM, Encoder, open_encoder
from client.generate import reply
from client.library import Passage
from client.limits import kept_limits
from client.model import GLOBAL, OWN, LanguageModel
from client.personal import LEAST_DOCUMENTS, LORA, PROMPT, active
from client.personalize import (
    ARMS,
    CANDIDATES,
    Arm,
    Choice,
    arms_for,
    choose,
    score_arms,
    score_steering,
    scored_rows,
    shown,
    with_steering,
)
from client.prompt import CHAT, CONTEXTUAL, PLAIN, About, context, templates
from client.refine import kept_advice, refine
from client.releases import kept, put_under
from client.retrieve import METHODS, PersonalIndex
from client.steering import checked_strength, steered_reply
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
        found = about_of(index.passages, generalised(dict(rows), datetime.now(UTC).date()), common)
        return dataclasses.replace(found, advice=kept_advice(self.vault))

    def personalize(self, report: Callable[[str], None] = lambda _step: None) -> Choice:
        """Score what could serve this person on the held-back slice, keep the choice in the vault and return it."""
        searched = PersonalIndex(self.vault, self.encoder, held_back=False)
        own = active(self.vault)
        put_serving(self.vault, self.model)
        about = self.about(searched)
        searched.topics = about.topics
        count = len({passage.document for passage in searched.passages if passage.own})
        if refined := refine(self.vault, self.model, searched, about):
            about = dataclasses.replace(about, advice=refined.advice)
        folds = self._folds(own[1] if own is not None else LORA, report)
        if folds is None:
            put_serving(self.vault, self.model)
        arms = arms_for(count, own is not None, about)
        made = choose(*score_arms(self.vault, self.model, searched, arms, about, report, folds))
        arm = next(arm for arm in arms if arm.name == made.arm)
        if arm.methods and not arm.trusted:
            report("the weight of memories")
            made = with_steering(made, score_steering(self.vault, self.model, searched, arm, about, folds))
        put_serving(self.vault, self.model)
        self.vault.set_setting(CHOICE_SETTING, json.dumps(made.to_json()))
        return made

    def _folds(self, kind: str, report: Callable[[str], None]) -> Folds | None:
        """Return own adapters that never saw what they are scored on, where too little text is held back."""
        held, more = scored_rows(self.vault, self.model)
        if not more or len(held) + len(more) < LEAST_DOCUMENTS:
            return None
        report("adapters of halves of your texts")
        put_under(self.model, kept(self.vault, serving(self.vault)))
        limits = kept_limits(self.vault)
        rows = [(row.kept.number, row.kept.as_document()) for row in more]
        return cross_fitted(self.model, kind, rows, limits.seconds, limits.document_tokens)

    def chosen(self) -> Arm:
        """Return the arm that was chosen last; before any choice, or without its adapter, retrieval that is trusted."""
        last = json.loads(self.vault.setting(CHOICE_SETTING, "{}"))
        by_name = {arm.name: arm for arm in ARMS}
        arm = by_name.get(last.get("arm", ""), by_name["trusted"])
        return by_name["trusted"] if arm.own and active(self.vault) is None else arm

    def steer(self) -> float:
        """Return how much memories weigh by the last choice, 0 for as they are."""
        last = json.loads(self.vault.setting(CHOICE_SETTING, "{}"))
        return float(last.get("steer", 0.0))

    def ask(
        self,
        question: str,
        most_tokens: int = 128,
        kind: str = "",
        wall: bool = True,
        steer: float | None = None,
        pseudonyms: bool = False,
    ) -> Told:
        """Return the reply to a question; `wall` False shows imported text as it is, for measuring alone.

        Memories are shown whatever arm serves the person's writing: a question is not a text of their own. `steer` is
        how much they weigh, by default what was chosen. With `pseudonyms` the model writes from placeholders in the
        place of names, numbers and addresses, the same for the same name; in the reply they are put back. Raises
        ConfigError beyond the dial's ends.
        """
        strength = checked_strength(self.steer() if steer is None else steer)
        arm = self.chosen()
        about = self.about(self.index)
        self.index.topics = about.topics
        own = active(self.vault) if arm.own else None
        if own is not None and own[1] == PROMPT:  # it stands before the upper layers, which a reply does not cut off
            own = None
        put_serving(self.vault, self.model)
        kind = kind or (arm.prompt if arm.prompt != PLAIN else CONTEXTUAL)
        hits = [] if kind == PLAIN else self.index.search(question, CANDIDATES, arm.methods or METHODS, build=arm.build)
        found = shown(self.model, question, [hit.passage for hit in hits], arm, PASSAGES)
        self.model.activate(*((GLOBAL, OWN) if own is not None else (GLOBAL,)))
        system = context(kind, CHAT, found, about, CONTEXT_TOKENS, self.count, wall)
        plain, asked = templates()[CHAT][PLAIN], question
        back: Callable[[str], str] = str
        if pseudonyms:
            from client.pseudonym import VaultScrubber  # spaCy loads here

            scrubber = VaultScrubber(self.vault)
            (system, asked), back = scrubber.hidden([system, question]), scrubber.back
        if strength and system:
            made = steered_reply(self.model, system, plain, asked, strength, most_tokens)
        else:
            made = reply(self.model, system or plain, asked, most_tokens)
        told = back(made.text)
        text = harmless_reply(told, question) if wall else told
        used = f"Used {len(found)} passages of yours" if found else "Nothing of yours matched: the base model alone"
        used += f", weighed {strength:+g}" if strength and system else ""
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
