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
from client.model import Encoded, LanguageModel
from client.own import load_own
from client.personal import scored_part
from client.prompt import CONTINUE, PLAIN, REFINED, About, context, templates
from simulation.extension import extension
from simulation.scorecard.arms import BASE, BY_NAME, EXTENDED, OWN, PREFERRED, WRONG, Arm
from simulation.scorecard.lent import CardSettings, Loan
from simulation.scorecard.memories import Memories

if TYPE_CHECKING:
    from simulation.work import HostWork

Rows = list[tuple[str, float, int]]  # document, nats, tokens


@dataclass(frozen=True)
class Written:
    """What the model wrote in place of a document's own words, and these words."""

    document: str
    text: str
    own: str


class Reader:
    """Scores documents under an arm: the same tokens in every arm, whatever stands before them."""

    def __init__(self, work: HostWork, loan: Loan, settings: CardSettings) -> None:
        self.model: LanguageModel = work.model
        self._layout, self._loan, self._settings = work.learner.layout, loan, settings
        self._prompt: Any = extension("prompt", settings.prompt)() if settings.prompt else None
        self._adapter: Any = extension("adapter", settings.adapter)() if settings.adapter else None

    def score(
        self,
        arm: Arm,
        documents: Sequence[Document],
        memories: Memories | None,
        advice: str,
        switch_on: Callable[[], None] | None = None,
    ) -> Rows:
        """Return (document, nats, tokens) of every document with a token to score.

        `switch_on` is called when the arm is ready: baselines put their own adapters over it.
        """
        self._prepare(arm)
        if switch_on is not None:
            switch_on()
        placed, named = [], []
        for document in documents:
            question, encoded = self._encoded(document)
            if not encoded.own_tokens:
                continue
            ids = self.model.context_ids(self._context(arm, question, memories, advice), self._budget(arm) + 8)
            placed.append(self.model.prefix(self.model.with_context(encoded, ids)))
            named.append(encoded)
        nats = self.model.document_nats(placed)
        return [(e.document, float(n.double().sum()), e.own_tokens) for e, n in zip(named, nats, strict=True)]

    def write(self, arm: Arm, documents: Sequence[Document], memories: Memories | None, advice: str) -> list[Written]:
        """Return what the model writes in place of each document's scored words, the likeliest token each time."""
        self._prepare(arm)
        found = []
        for document in documents:
            question, ranges = scored_part(document)
            if not ranges:
                continue
            start = ranges[0][0]
            own = document.text[start : ranges[0][1]].strip()
            context = self._context(arm, question, memories, advice)
            found.append(Written(document.id, self._continued(context, document.text[:start]), own))
        return found

    @torch.no_grad()
    def _continued(self, context: str, opening: str) -> str:
        tokenizer: Any = self.model.tokenizer
        most = self._settings.document_tokens
        ids = tokenizer(opening.rstrip(" "), add_special_tokens=False, verbose=False)["input_ids"][-most:]
        before = self.model.context_ids(context, most * 8)
        both = torch.cat([before, torch.tensor(ids, dtype=torch.long)])[None].to(self.model.device)
        if not both.shape[1]:
            return ""
        end = tokenizer.eos_token_id
        made = self.model.net.generate(
            input_ids=both,
            attention_mask=torch.ones_like(both),
            max_new_tokens=self._settings.written_tokens,
            do_sample=False,
            repetition_penalty=1.1,
            use_cache=True,
            pad_token_id=end if end is not None else 0,
        )
        return str(tokenizer.decode(made[0, both.shape[1] :], skip_special_tokens=True)).strip()

    def best_advice(self, tuning: Sequence[Document], memories: Memories) -> int:
        """Return the number of the introduction with the least loss on the tuning documents."""
        arm = BY_NAME["refined"]
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
