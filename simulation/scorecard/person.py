"""One person's part of the scorecard, on the host where the person lives: all arms on the same tokens of test text.

    history = to learn from (older) + tuning (the newest third, a few documents at most)

The own adapter and the tuning's memories come from the older part; the arm `chosen` and the advice of `refined` are
picked on the tuning part by `client.personalize.choose`; what is reported are test documents, which had no say in
either. Memories for test documents come from the whole history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.documents import Document
from client.encoder import Encoder
from client.model import GLOBAL as GLOBAL_ADAPTER
from client.model import OWN as OWN_ADAPTER
from client.model import Cached, Encoded, LanguageModel
from client.own import load_own
from client.personal import LEAST_DOCUMENTS, scored_part
from client.personalize import choose
from client.prompt import CONTINUE, PLAIN, REFINED, About, context, templates
from client.train import OwnTraining, train_own
from privacy.errors import ConfigError
from simulation.scorecard.arms import BASE, BY_NAME, CHOSEN, LADDER, OWN, PERSONA_CORE, WRONG, Arm
from simulation.scorecard.memories import Memories

if TYPE_CHECKING:
    from simulation.work import HostWork

Vector = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]
Rows = list[tuple[str, float, int]]  # document, nats, tokens
TUNING_SHARE = 3
REFINING = "hybrid@4"


@dataclass(frozen=True)
class CardSettings:
    """What the scorecard costs: own tokens learned from, test documents (the newest) and tokens of each that are read.

    `tuning_documents` at most decide what is chosen, `passage_tokens` are allowed for each memory that is shown.
    """

    own_tokens: int = 1280
    test_documents: int = 3
    document_tokens: int = 192
    tuning_documents: int = 6
    passage_tokens: int = 96
    encoder: str = "minilm"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"scorecard.{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Loan:
    """What a person is lent for the arms: flat cores by name, their own adapter, and the controls' from another."""

    cores: Mapping[str, Vector]
    own: Tensors
    wrong_own: Tensors | None
    wrong_history: tuple[Document, ...]


@dataclass
class PersonCard:
    """One person's scores by arm, the bytes of each test document's scored words, and what was chosen on tuning text.

    `learned_tokens` went into the own adapter; `tuning_documents` into the choice.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    text_bytes: dict[str, int] = field(default_factory=dict)
    chosen: str = "global"
    advice: int = 0
    tuning_documents: int = 0
    history_documents: int = 0
    learned_tokens: int = 0


def split_history(history: Sequence[Document], most: int) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return (to learn from, for tuning), both oldest first; with fewer than `LEAST_DOCUMENTS` none is for tuning.

    The newest third, so that four documents to choose by need a history of twelve, and `most` at most.
    """
    tuning = min(most, len(history) // TUNING_SHARE) if len(history) >= LEAST_DOCUMENTS else 0
    cut = len(history) - tuning
    return tuple(history[:cut]), tuple(history[cut:])


def train_for_card(work: HostWork, user: str, core: Vector, settings: CardSettings, seed: int) -> tuple[Tensors, int]:
    """Train the person's own LoRA over `core` on the part of the history to learn from; return it and its tokens."""
    learn, _ = split_history(work.people[user].history, settings.tuning_documents)
    documents: list[Cached] = []
    total = 0
    for document in reversed(learn):
        encoded = work.model.encode(document, settings.document_tokens)
        if encoded.own_tokens and (not documents or total + encoded.own_tokens <= settings.own_tokens):
            documents.append(work.model.prefix(encoded))
            total += encoded.own_tokens
    own = work.config.own
    work.model.set_cores(work.learner.layout.unflatten(core))
    training = OwnTraining(own.rank, own.epochs, own.learning_rate, batch_documents=1)
    generator = torch.Generator().manual_seed(seed)  # nothing of it leaves: no secret rests on it
    tensors, _ = train_own(work.model, documents[::-1], training, generator)
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}, total


def score_for_card(
    work: HostWork, user: str, arms: Sequence[str], loan: Loan, settings: CardSettings, encoder: Encoder
) -> PersonCard:
    """Return the person's card for the named arms; those whose core or adapter is not lent are left out."""
    person = work.people[user]
    learn, tuning = split_history(person.history, settings.tuning_documents)
    card = PersonCard(tuning_documents=len(tuning), history_documents=len(person.history))
    here = [a for name in arms if name in BY_NAME and _lent(a := BY_NAME[name], loan)]
    reader = _Reader(work, loan, settings)
    tuned = Memories(learn, encoder)
    if tuning and "refined" in arms:
        card.advice = reader.best_advice(tuning, tuned)
    if len(tuning) >= 1 and CHOSEN in arms:
        card.chosen = _choice(reader, tuning, tuned, loan)
    memories = {OWN: Memories(person.history, encoder), WRONG: Memories(loan.wrong_history, encoder)}
    test = person.test[-settings.test_documents :]
    extra = [BY_NAME[card.chosen]] if CHOSEN in arms else []
    for arm in {a.name: a for a in (*here, *extra)}.values():
        advice = templates()["advice"]["attempts"][card.advice]
        card.rows[arm.name] = reader.score(arm, test, memories.get(arm.memories), advice)
    if CHOSEN in arms:
        card.rows[CHOSEN] = card.rows[card.chosen]
    card.rows = {name: rows for name, rows in card.rows.items() if name in arms}
    card.text_bytes = reader.text_bytes(test)
    return card


def _lent(arm: Arm, loan: Loan) -> bool:
    if arm.core == PERSONA_CORE and PERSONA_CORE not in loan.cores and arm.own != OWN:
        return False
    if arm.own == WRONG:
        return loan.wrong_own is not None
    return bool(loan.wrong_history) if arm.memories == WRONG else True


def _choice(reader: _Reader, tuning: Sequence[Document], memories: Memories, loan: Loan) -> str:
    ladder = [name for name in LADDER if _lent(BY_NAME[name], loan)]
    rows = [reader.score(BY_NAME[name], tuning, memories, "") for name in ladder]
    nats = np.array([[n for _, n, _ in row] for row in rows]).reshape(len(ladder), -1)
    return choose(ladder, nats, np.array([tokens for _, _, tokens in rows[0]], dtype=np.int64)).arm


class _Reader:
    """Scores documents under an arm: the same tokens in every arm, whatever stands before them."""

    def __init__(self, work: HostWork, loan: Loan, settings: CardSettings) -> None:
        self.model: LanguageModel = work.model
        self._layout, self._loan, self._settings = work.learner.layout, loan, settings

    def score(self, arm: Arm, documents: Sequence[Document], memories: Memories | None, advice: str) -> Rows:
        """Return (document, nats, tokens) of every document with a token to score."""
        self._prepare(arm)
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
        own = loan.wrong_own if arm.own == WRONG else loan.own if arm.own == OWN else None
        if own is None:
            self.model.activate(GLOBAL_ADAPTER)
            return
        self.model.activate(GLOBAL_ADAPTER, OWN_ADAPTER)
        load_own(self.model, {key: torch.from_numpy(value) for key, value in own.items()})
