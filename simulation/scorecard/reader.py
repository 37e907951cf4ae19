"""Scores and writes documents with one person's model, under one arm after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.documents import Document
from client.model import GLOBAL as GLOBAL_ADAPTER
from client.model import OWN as OWN_ADAPTER
from client.model import Cached, Encoded, LanguageModel
from client.own import load_own
from client.personal import scored_part
from client.prompt import CONTINUE, PLAIN, REFINED, About, context, templates
from client.steering import steered
from client.trust import all_words, mixed_nats, scored
from simulation.extension import extension
from simulation.scorecard.arms import BASE, BY_NAME, EXTENDED, OWN, PREFERRED, WRONG, Arm
from simulation.scorecard.lent import CardSettings, Loan
from simulation.scorecard.memories import Memories
from simulation.scorecard.shared_context import continued, plain_states, shared_nats, shared_states
from simulation.scorecard.tasks import task_named

if TYPE_CHECKING:
    from simulation.work import HostWork

MOST_KEPT_TOKENS = 60_000  # of prefixes in memory: 70 MB for a model of width 576 in bfloat16
LEAST_SHARED = 24  # tokens of a context that is worth being read once for several documents
MOST_ADVISED = 3  # documents that decide how memories are introduced
Rows = list[tuple[str, float, int]]  # document, nats, tokens


@dataclass(frozen=True)
class Written:
    """What the model wrote in place of a document's own words, and these words."""

    document: str
    text: str
    own: str


def _groups(contexts: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return the places of equal contexts together, in order of their first."""
    found: dict[bytes, list[int]] = {}
    for place, ids in enumerate(contexts):
        found.setdefault(ids.numpy().tobytes(), []).append(place)
    return list(found.values())


class Reader:
    """Scores documents under an arm: the same tokens in every arm, whatever stands before them."""

    def __init__(self, work: HostWork, loan: Loan, settings: CardSettings) -> None:
        self.model: LanguageModel = work.model
        self._layout, self._loan, self._settings = work.learner.layout, loan, settings
        self.read_tokens = 0.0  # of memories, a document, in the last score
        self._kept: dict[bytes, torch.Tensor] = {}
        self._shown: dict[tuple[Any, ...], torch.Tensor] = {}
        self._prompt: Any = extension("prompt", settings.prompt)() if settings.prompt else None
        self._adapter: Any = extension("adapter", settings.adapter)() if settings.adapter else None

    def score(
        self,
        arm: Arm,
        documents: Sequence[Document],
        memories: Memories | None,
        advice: str,
        switch_on: Callable[[], None] | None = None,
        asked: str | None = None,
    ) -> Rows:
        """Return (document, nats, tokens) of every document with a token to score.

        `switch_on` is called when the arm is ready: baselines put their own adapters over it. With `asked` memories are
        searched once, by it, and stand before all documents alike, else by each document's own question.
        """
        self._prepare(arm)
        if switch_on is not None:
            switch_on()
        contexts: list[torch.Tensor] = []
        named: list[Encoded] = []
        for document in documents:
            question, encoded = self._encoded(document)
            if encoded.own_tokens:
                contexts.append(self._context_ids(arm, question if asked is None else asked, memories, advice))
                named.append(encoded)
        self.read_tokens = sum(map(len, contexts)) / max(1, len(contexts))
        if arm.trusted:
            sums = self._trusted(contexts, named)
        else:
            sums = self._steered(contexts, named, arm.steer) if arm.steer else self._sums(contexts, named)
        return [(e.document, nats, e.own_tokens) for e, nats in zip(named, sums, strict=True)]

    def _sums(self, contexts: Sequence[torch.Tensor], named: Sequence[Encoded]) -> list[float]:
        return [float(nats.double().sum()) for nats in self._nats(contexts, named)]

    def _nats(self, contexts: Sequence[torch.Tensor], named: Sequence[Encoded]) -> list[torch.Tensor]:
        """Return the nats of every document's targets; documents behind one long context read it once together."""
        found, groups = [torch.empty(0)] * len(named), _groups(contexts)
        alone = [i for group in groups if not self._worth(contexts[group[0]], group) for i in group]
        placed = [self._prefix(self.model.with_context(named[i], contexts[i])) for i in alone]
        for i, nats in zip(alone, self.model.document_nats(placed), strict=True):
            found[i] = nats
        for group in groups:
            if self._worth(contexts[group[0]], group):
                together = shared_nats(self.model, contexts[group[0]], [named[i] for i in group])
                for i, nats in zip(group, together, strict=True):
                    found[i] = nats
        return found

    def _trusted(self, contexts: Sequence[torch.Tensor], named: Sequence[Encoded]) -> list[float]:
        """Return the nats of every document's targets where memories are trusted as far as they foretell."""
        read, none = [all_words(each) for each in named], [torch.empty(0, dtype=torch.long)] * len(named)
        both = zip(self._nats(contexts, read), self._nats(none, read), named, strict=True)
        return [scored(mixed_nats(first.double().numpy(), second.double().numpy())[0], e) for first, second, e in both]

    def _worth(self, context: torch.Tensor, group: Sequence[int]) -> bool:
        return len(group) > 1 and len(context) >= LEAST_SHARED and self.model.prompt is None

    def _prefix(self, encoded: Encoded) -> Cached:
        """Return `model.prefix`, remembered: the frozen layers give the same in every arm that shows the same text."""
        if self.model.first == 0:
            return self.model.prefix(encoded)
        key = encoded.ids.numpy().tobytes()
        if key not in self._kept:
            if sum(map(len, self._kept.values())) > MOST_KEPT_TOKENS:
                self._kept.clear()
            self._kept[key] = self.model.prefix(encoded).hidden
        return Cached(encoded, self._kept[key])

    @torch.no_grad()
    def _steered(self, contexts: Sequence[torch.Tensor], named: Sequence[Encoded], strength: float) -> list[float]:
        """Return the nats of every document's targets where its memories weigh by `strength`."""
        plain = plain_states(self.model, [self._prefix(each) for each in named])
        placed: list[torch.Tensor] = [torch.empty(0)] * len(named)
        for group in _groups(contexts):
            before, texts = contexts[group[0]], [named[i] for i in group]
            if self._worth(before, group):
                states = shared_states(self.model, before, texts)
            else:
                rows = [self._prefix(self.model.with_context(text, before)) for text in texts]
                states = plain_states(self.model, rows)
            for i, state in zip(group, states, strict=True):
                placed[i] = state
        sums = []
        for first, second, text in zip(placed, plain, named, strict=True):
            both = [(states.float() @ self.model.head32.T).log_softmax(-1) for states in (first, second)]
            labels = text.ids[text.target].to(self.model.device)
            sums.append(-float(steered(both[0], both[1], strength).gather(1, labels[:, None]).double().sum()))
        return sums

    def write(self, arm: Arm, documents: Sequence[Document], memories: Memories | None, advice: str) -> list[Written]:
        """Return what the model writes in place of each document's scored words, the likeliest token each time."""
        self._prepare(arm)
        begun, found = [], []
        for document in documents:
            question, ranges = scored_part(document)
            if ranges:
                start = ranges[0][0]
                before = self._context_ids(arm, question, memories, advice)
                begun.append(torch.cat([before, self._opening(document.text[:start])]))
                found.append((document.id, document.text[start : ranges[0][1]].strip()))
        one_line = task_named(self._settings.task).one_line
        texts = continued(self.model, begun, self._settings.written_tokens)
        return [
            Written(name, text.split("\n", 1)[0].strip() if one_line else text, own)
            for (name, own), text in zip(found, texts, strict=True)
        ]

    def _opening(self, text: str) -> torch.Tensor:
        """Return the last tokens of what stands before the words to write."""
        tokenizer: Any = self.model.tokenizer
        ids = tokenizer(text.rstrip(" "), add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids[-self._settings.document_tokens :], dtype=torch.long)

    def best_advice(self, tuning: Sequence[Document], memories: Memories) -> int:
        """Return the number of the introduction with the least loss on the tuning documents."""
        arm, tuning = BY_NAME["refined"], tuning[-MOST_ADVISED:]
        losses = [
            sum(nats for _, nats, _ in self.score(arm, tuning, memories, advice))
            for advice in templates()["advice"]["attempts"]
        ]
        return int(np.argmin(losses))

    def text_bytes(self, documents: Sequence[Document]) -> dict[str, int]:
        """Return the UTF-8 bytes of the words that are scored in each document."""
        found = {}
        for document in documents:
            _, encoded = self._encoded(document)
            if encoded.own_tokens:
                text: Any = self.model.tokenizer.decode(encoded.ids[encoded.target])
                found[document.id] = len(str(text).encode())
        return found

    def _encoded(self, document: Document) -> tuple[str, Encoded]:
        question, ranges = scored_part(document)
        return question, self.model.encode_text(document.text, ranges, document.id, self._settings.document_tokens)

    def _context_ids(self, arm: Arm, question: str, memories: Memories | None, advice: str) -> torch.Tensor:
        """Return the tokens of what stands before a document, remembered: several arms show the same."""
        if arm.prompt == PLAIN or memories is None:
            return torch.empty(0, dtype=torch.long)
        key = (memories, arm.methods, arm.passages, arm.prompt, advice if arm.prompt == REFINED else "", question)
        if key not in self._shown:
            text = self._context(arm, question, memories, advice)
            self._shown[key] = self.model.context_ids(text, self._budget(arm) + 8)
        return self._shown[key]

    def _context(self, arm: Arm, question: str, memories: Memories | None, advice: str) -> str:
        if arm.prompt == PLAIN or memories is None:
            return ""
        found = memories.search(question, arm.methods, arm.passages)
        if arm.prompt == EXTENDED:
            style = memories.about.attributes.get("style", "")
            return str(self._prompt.build([passage.text for passage in found], memories.about.topics, style))
        about = About(memories.about.attributes, memories.about.topics, memories.about.topics_by_type, advice)
        if arm.prompt != REFINED:
            about = memories.about
        return context(arm.prompt, CONTINUE, found, about, self._budget(arm), self._count)

    def _budget(self, arm: Arm) -> int:
        return self._settings.passage_tokens * max(1, arm.passages)

    def _count(self, text: str) -> int:
        return len(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _prepare(self, arm: Arm) -> None:
        cores, loan = self._loan.cores, self._loan
        name = arm.core if arm.core in cores else "global"
        core = np.zeros_like(cores["global"]) if arm.core == BASE else cores[name]
        self.model.set_cores(self._layout.unflatten(core))
        own = {WRONG: loan.wrong_own, OWN: loan.own, PREFERRED: loan.preferred}.get(arm.own)
        if arm.own == EXTENDED:
            self.model.activate(GLOBAL_ADAPTER)
            self._adapter.load(self.model, {k: torch.from_numpy(v) for k, v in (loan.extended or {}).items()})
            return
        if own is None:
            self.model.activate(GLOBAL_ADAPTER)
            return
        self.model.activate(GLOBAL_ADAPTER, OWN_ADAPTER)
        load_own(self.model, {key: torch.from_numpy(value) for key, value in own.items()})
