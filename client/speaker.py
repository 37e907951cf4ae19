"""What the page and the API let a person's model say: find, continue in the person's voice, chat, two replies blind.

    find      passages of the person's own text at once; a reply made from them while it is shown
    continue  several continuations drawn at once, the `CANDIDATES` likeliest under the personal model, best first
    chat      a conversation with or without memories; who speaks and what was shown to it stand beside every reply

The index has a lock of its own, so that finding never waits for a reply that is being made.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from client.adopt import put_serving, serving
from client.assistant import CONTEXT_TOKENS, MODEL_SETTING, PASSAGES, Assistant
from client.base_model import DEFAULT_MODEL
from client.decode import LIKELIEST, Sampling, Steering, drawn, pieces
from client.encoder import Encoder
from client.library import Passage
from client.live_reply import LiveReply
from client.model import GLOBAL, OWN, LanguageModel
from client.personal import PROMPT, active
from client.preferences import REPLY, SENTENCE, SEPARATOR, SUBJECT
from client.prompt import CHAT, CONTEXTUAL, CONTINUE, PLAIN, context, templates
from client.retrieve import METHODS, PersonalIndex
from client.serving import Serving, in_place
from client.steering import checked_strength
from client.vault import Vault
from client.wall import harmless_reply
from privacy.errors import ConfideError, ConfigError

PERSONAL, BASE = "personal", "base"
VOICES = (PERSONAL, BASE)
KINDS = (SENTENCE, SUBJECT, REPLY)
CANDIDATES, DRAWN, MOST_DRAWN = 3, 6, 40
CONTINUE_TOKENS = 256
QUOTED, LEAST_QUOTED = 3, 4  # passages that are read for a quotation, words that it has at least
MOST_TOKENS, MOST_CHARACTERS = 2048, 20_000
DRAW = Sampling(temperature=0.8, top_p=0.9)
_SENTENCE_END = re.compile(r"[.!?…]+[\"')\]]*(?=\s|$)")

Turn = tuple[str, str]  # who speaks (system, user, assistant), and what


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, int64 [T], who will speak, and the passages that stand in it, best first."""

    ids: torch.Tensor
    question: str
    voice: str
    own: bool
    shown: tuple[Passage, ...]
    steering: Steering | None = None


@dataclass(frozen=True)
class Candidate:
    """A continuation and its mean log-likelihood a token under the model that drew it."""

    text: str
    likelihood: float


class Speaker:
    """One person's model as page and API use it; `lock` is held while the model works."""

    def __init__(self, vault: Vault, model: LanguageModel, lock: threading.RLock, encoder: Encoder | None) -> None:
        self.vault, self.model, self._lock = vault, model, lock
        self._reading = threading.RLock()
        self._assistant = Assistant(vault, model, encoder)
        self._about = self._assistant.about(self._assistant.index)
        self._serving = Serving(vault, model)

    @property
    def encoder(self) -> Encoder | None:
        """Return the encoder of the index."""
        return self._assistant.encoder

    @property
    def label(self) -> str:
        """Return the name of the base model as its owner gave it."""
        return self.vault.setting(MODEL_SETTING, DEFAULT_MODEL)

    def find(self, question: str, k: int = PASSAGES) -> list[Passage]:
        """Return the k passages that fit a question best, of what the vault holds now. Raises ConfigError."""
        _require_text(question)
        with self._reading:
            index = self._fresh()
            arm = self._assistant.chosen()
            return [hit.passage for hit in index.search(question, k, arm.methods or METHODS, build=arm.build)]

    def quote(self, question: str, found: Sequence[Passage]) -> dict[str, Any] | None:
        """Return the sentence of the best passages that is nearest to a question, word for word, and its document."""
        sentences = [(p, text) for p in found[:QUOTED] for text in _sentences(p.text)]
        if not sentences or self.encoder is None:
            return None
        rows = self.encoder.encode([question, *(text for _, text in sentences)])
        passage, text = sentences[int(np.argmax(rows[1:] @ rows[0]))]
        return {"document": passage.document, "title": passage.title, "text": text}

    def written(self, text: str, voice: str = PERSONAL) -> Prompt:
        """Return the prompt that a text is itself, behind memories of the person for `personal`. Raises ConfigError."""
        _require_text(text)
        found = self.find(text[-1000:]) if voice == PERSONAL else []
        before = context(CONTEXTUAL, CONTINUE, found, self._about, CONTINUE_TOKENS, self._assistant.count)
        ids = self._ids("\n\n".join(filter(None, (before, text))))[-self._longest() :]
        own, mixed = voice == PERSONAL and self._has_own(), None
        if before and self._assistant.chosen().trusted:
            mixed = Steering(self._ids(text)[-self._longest() :], trusted=True)
        return Prompt(ids, text, voice, own, tuple(found), mixed)

    def prompt(
        self,
        turns: Sequence[Turn],
        voice: str = PERSONAL,
        passages: int = PASSAGES,
        budget: int = CONTEXT_TOKENS,
        steer: float | None = 0.0,
    ) -> Prompt:
        """Return the prompt of a conversation whose last turn is the person's; only `personal` is shown memories.

        At most `passages` of them, in at most `budget` tokens: what is not read is not waited for. `steer` is how much
        they weigh, None for what was chosen on the person's own text; other than 0 it takes twice the time.

        Where all of it is too long the oldest turns go first, in pairs. Raises ConfigError for what is no conversation.
        """
        if voice not in VOICES:
            raise ConfigError(f"there is no voice {voice}: there is {', '.join(VOICES)}")
        if not turns or turns[-1][0] != "user":
            raise ConfigError("a conversation ends with a turn of the user")
        question = turns[-1][1]
        _require_text("".join(text for _, text in turns))
        asked = "\n\n".join(text for who, text in turns if who == "system")
        strength = checked_strength(self._assistant.steer() if steer is None else steer)
        system, found = asked or templates()[CHAT][PLAIN], []
        plain = system
        if voice == PERSONAL:
            found = self.find(question, passages)
            memories = context(CONTEXTUAL, CHAT, found, self._about, budget, self._assistant.count)
            system = "\n\n".join(filter(None, (asked, memories))) or system
        spoken = [turn for turn in turns if turn[0] != "system"]
        ids = self._chat_ids(system, spoken)
        while len(ids) > self._longest() and len(spoken) > 1:
            spoken = spoken[2:] or spoken[-1:]
            ids = self._chat_ids(system, spoken)
        mixed = Steering(self._chat_ids(plain, spoken)[-self._longest() :], strength) if strength and found else None
        own = voice == PERSONAL and self._has_own()
        return Prompt(ids[-self._longest() :], question, voice, own, tuple(found), mixed)

    def spoken(
        self, prompt: Prompt, most: int = 256, sampling: Sampling = LIKELIEST, stopped: threading.Event | None = None
    ) -> Iterator[tuple[str, int]]:
        """Yield the reply in harmless pieces, each with the number of tokens made; ends early once `stopped` is set.

        The model is this reply's alone until the iterator ends: run it to its end, or close it, in one thread.
        """
        live, count = LiveReply(prompt.question), 0
        with self._lock, self._speaking(prompt):
            for piece, count in pieces(self.model, prompt.ids, most, sampling, prompt.steering):
                if stopped is not None and stopped.is_set():
                    return
                if ready := live.add(piece):
                    yield ready, count
        if rest := live.end():
            yield rest, count

    def candidates(self, text: str, kind: str = SENTENCE, seed: int | None = None) -> tuple[list[Candidate], Prompt]:
        """Return up to `CANDIDATES` different continuations of the person's text, likeliest first, and the prompt.

        Raises ConfigError for a kind that there is not, or a text that is empty or too long.
        """
        if kind not in KINDS:
            raise ConfigError(f"there is no continuation of kind {kind}: there is {', '.join(KINDS)}")
        _require_text(text)
        written = text.rstrip() if kind == SENTENCE else text.strip()
        prompt = self.written(written + SEPARATOR[kind].rstrip(" "))
        rows: list[list[int]] = [[] for _ in range(DRAWN)]
        likelihoods = np.zeros((MOST_DRAWN, DRAWN))
        with self._lock, self._speaking(prompt):
            draw = Sampling(DRAW.temperature, DRAW.top_p, seed)
            made_of = drawn(self.model, prompt.ids, MOST_DRAWN, draw, DRAWN, prompt.steering)
            for step, (chosen, likelihood) in enumerate(made_of):
                likelihoods[step] = likelihood.numpy()
                for row, token in zip(rows, chosen.tolist(), strict=True):
                    row.append(token)
        made: dict[str, Candidate] = {}
        for i, row in enumerate(rows):
            shown, tokens = self._cut(row, kind)
            shown = harmless_reply(shown, text).strip()
            if shown and tokens:
                mean = float(likelihoods[:tokens, i].mean())
                made[shown] = max(made.get(shown, Candidate(shown, -np.inf)), Candidate(shown, mean), key=_likelihood)
        return sorted(made.values(), key=_likelihood, reverse=True)[:CANDIDATES], prompt

    def warm(self) -> None:
        """Make ready what serves now, so that no reply waits for it; what fails is for that reply to tell."""
        own = active(self.vault)
        with suppress(ConfideError), self._lock:
            self._serving.layers(serving(self.vault), own[0] if own is not None and self._has_own() else 0)

    def forgot(self) -> None:
        """Drop from memory what the vault holds no more."""
        with self._reading:
            self._fresh()
            self._about = self._assistant.about(self._assistant.index)
        with self._lock:
            self._serving.forget()
            self.model.drop_own()

    def _fresh(self) -> PersonalIndex:
        index = self._assistant.index
        before = len(index)
        index.refresh()
        if len(index) != before:
            self._about = self._assistant.about(index)
        index.topics = self._about.topics
        return index

    def _has_own(self) -> bool:
        now = active(self.vault)  # a soft prompt stands before the upper layers, which a reply does not cut off
        return self._assistant.chosen().own and now is not None and now[1] != PROMPT

    @contextmanager
    def _speaking(self, prompt: Prompt) -> Iterator[None]:
        """Make the model the one that speaks: bare, or with what serves the person; never with a round's cores."""
        if prompt.voice == BASE:
            with in_place(self.model, None):
                yield
            return
        own = active(self.vault)
        layers = self._serving.layers(serving(self.vault), own[0] if prompt.own and own is not None else 0)
        if layers is not None:
            with in_place(self.model, layers):
                yield
            return
        put_serving(self.vault, self.model)  # IA3 scales what a layer gives: no sum of matrices
        self.model.activate(*((GLOBAL, OWN) if prompt.own else (GLOBAL,)))
        yield

    def _longest(self) -> int:
        """Return how many tokens of prompt leave room for a reply."""
        return max(64, int(getattr(self.model.net.config, "max_position_embeddings", 2048)) - 256)

    def _ids(self, text: str) -> torch.Tensor:
        tokenizer: Any = self.model.tokenizer
        found: torch.Tensor = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        return found

    def _chat_ids(self, system: str, turns: Sequence[Turn]) -> torch.Tensor:
        tokenizer: Any = self.model.tokenizer
        if getattr(tokenizer, "chat_template", None):
            chat = [{"role": who, "content": text} for who, text in (("system", system), *turns)]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            names = {"user": "Question", "assistant": "Answer"}
            text = "\n".join([f"{system}\n", *(f"{names[who]}: {said}" for who, said in turns), "Answer:"])
        ids: torch.Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"]
        return ids[0]

    def _cut(self, row: list[int], kind: str) -> tuple[str, int]:
        """Return a row as text up to the end of its sentence, line or paragraph, and how many tokens that takes."""
        tokenizer: Any = self.model.tokenizer
        end = tokenizer.eos_token_id
        row = row[: row.index(end)] if end in row else row
        text = str(tokenizer.decode(row, skip_special_tokens=True))
        body = text.lstrip()
        stop = len(body)
        if kind == REPLY:
            stop = len(body.partition("\n\n")[0])
        else:
            stop = len(body.partition("\n")[0])
        if kind == SENTENCE and (ended := _SENTENCE_END.search(body[:stop])):
            stop = ended.end()
        body = body[:stop]
        count = next((n for n in range(1, len(row) + 1) if body in tokenizer.decode(row[:n])), len(row))
        return body, count


def source(passage: Passage) -> dict[str, Any]:
    """Return a passage as JSON values: where it stands, when it was written, its words."""
    return {
        "document": passage.document,
        "type": passage.type,
        "title": passage.title,
        "written": passage.written,
        "text": passage.text,
    }


def _likelihood(candidate: Candidate) -> float:
    return candidate.likelihood


def _sentences(text: str) -> list[str]:
    """Return the sentences of a passage, lines of prose joined; neither cut nor changed but for white space."""
    joined = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[#*-])|(?<=[^\n])\n(?=[A-Z#])", text)]
    found = [each.strip() for part in joined for each in re.split(r"(?<=[.!?…])\s+(?=[\"'(A-Z0-9])", part)]
    return [each for each in found if len(each.split()) >= LEAST_QUOTED] or [each for each in found if each]


def _require_text(text: str) -> None:
    if not text.strip():
        raise ConfigError("there is no text to work with")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"a text has at most {MOST_CHARACTERS} characters here")
