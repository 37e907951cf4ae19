"""One person's part of the scorecard, on the host where the person lives: all arms on the same tokens of test text.

    history = to learn from (older) + tuning (the newest third, a few documents at most)

The own adapter and the tuning's memories come from the older part; the arm `chosen` and the advice of `refined` are
picked on the tuning part by `client.personalize.choose`; what is reported are test documents, which had no say in
either. Memories for test documents come from the whole history.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.documents import Document
from client.dpo import DPO, Preferred, train_dpo
from client.encoder import Encoder
from client.model import GLOBAL as GLOBAL_ADAPTER
from client.model import Cached, LanguageModel
from client.own import own_tensors
from client.own_training import OwnTraining, train_own
from client.personal import LEAST_DOCUMENTS, scored_part
from client.personalize import choose
from client.preference import pair_of
from client.prompt import templates
from simulation.extension import extension
from simulation.scorecard.arms import (
    BY_NAME,
    CHOSEN,
    EXTENDED,
    LADDER,
    NOBODY,
    OWN,
    PERSONA_CORE,
    PREFERRED,
    WRONG,
    Arm,
)
from simulation.scorecard.choice import Choice, candidate_documents, choices, unasked_documents
from simulation.scorecard.lent import CardSettings, Learned, Loan, Tensors
from simulation.scorecard.memories import Memories
from simulation.scorecard.reader import Reader, Rows, Written
from simulation.scorecard.tasks import CHOICE, task_named

if TYPE_CHECKING:
    from simulation.work import HostWork

Vector = NDArray[np.float64]
TUNING_SHARE = 3
COLD_ARM, COLD = "hybrid@4", (0, 1, 2, 4, 8, 16)


@dataclass
class PersonCard:
    """One person's scores by arm, those of the probes, what the model wrote, what was chosen on tuning text.

    `cold` holds the arm `COLD_ARM` with so many of the newest own texts alone, `text_bytes` each test document's
    scored words, `choices` what each arm chose where the task is a choice. `learned_tokens` went into the own adapter,
    which took `cpu_s`; `tuning_documents` into the choice. `read_tokens` of memories each arm reads before a document.
    `tuned` are the tuning documents' rows of arms that depend on no seed.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    probes: dict[str, Rows] = field(default_factory=dict)
    written: dict[str, list[Written]] = field(default_factory=dict)
    cold: dict[int, Rows] = field(default_factory=dict)
    choices: dict[str, list[Choice]] = field(default_factory=dict)
    text_bytes: dict[str, int] = field(default_factory=dict)
    chosen: str = "global"
    advice: int = 0
    tuning_documents: int = 0
    history_documents: int = 0
    read_tokens: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    tuned: dict[str, Rows] = field(default_factory=dict)
    learned_tokens: int = 0


def split_history(history: Sequence[Document], most: int) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return (to learn from, for tuning), both oldest first; with fewer than `LEAST_DOCUMENTS` none is for tuning.

    The newest third, so that four documents to choose by need a history of twelve, and `most` at most.
    """
    tuning = min(most, len(history) // TUNING_SHARE) if len(history) >= LEAST_DOCUMENTS else 0
    cut = len(history) - tuning
    return tuple(history[:cut]), tuple(history[cut:])


def train_for_card(
    work: HostWork, user: str, core: Vector, settings: CardSettings, seed: int, preferred: bool = False
) -> Learned:
    """Train the person's own LoRA over `core` on the part of the history to learn from; return it and its tokens.

    With `preferred` it is taught further by preference pairs, beside it; with `settings.adapter` the adapter of that
    class too, on the same documents.
    """
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
    begun = time.process_time()
    tensors, _ = train_own(work.model, documents[::-1], training, generator)
    cpu_s = time.process_time() - begun
    taught = _preferring(work.model, documents[: settings.preference_pairs], generator) if preferred else None
    extended = None
    if settings.adapter:
        work.model.activate(GLOBAL_ADAPTER)
        fitted = extension("adapter", settings.adapter)().fit(work.model, documents[::-1], generator)
        extended = _arrays(fitted)
    return Learned(_arrays(tensors), total, extended, taught, cpu_s)


def _preferring(model: LanguageModel, documents: Sequence[Cached], generator: torch.Generator) -> Tensors:
    """Return the active own adapter after DPO on the person's own last words against samples of its own (DITTO)."""
    pairs = [pair_of(model, document, generator) for document in documents if document.encoded.own_tokens]
    if pairs:
        train_dpo(model, [Preferred(pair.own, pair.sample) for pair in pairs], DPO(), generator)
    return _arrays(own_tensors(model))


def _arrays(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def score_for_card(
    work: HostWork, user: str, arms: Sequence[str], loan: Loan, settings: CardSettings, encoder: Encoder
) -> PersonCard:
    """Return the person's card for the named arms; those whose core or adapter is not lent are left out."""
    person = work.people[user]
    learn, tuning = split_history(person.history, settings.tuning_documents)
    card = PersonCard(tuning_documents=len(tuning), history_documents=len(person.history))
    here = [a for name in arms if name in BY_NAME and _lent(a := BY_NAME[name], loan)]
    reader = Reader(work, loan, settings)
    tuned = Memories(learn, encoder)
    if tuning and "refined" in arms:
        card.advice = reader.best_advice(tuning, tuned)
    if len(tuning) >= 1 and CHOSEN in arms:
        card.chosen, card.tuned = _choice(reader, tuning, tuned, loan)
    found_by = extension("retriever", settings.retriever) if settings.retriever else None
    memories = {
        OWN: Memories(person.history, encoder, loan.dated, found_by),
        WRONG: Memories(loan.wrong_history, encoder, loan.dated),
    }
    test = person.test[-settings.test_documents :]
    advice = templates()["advice"]["attempts"][card.advice]
    extra = [BY_NAME[card.chosen]] if CHOSEN in arms else []
    is_choice = task_named(settings.task).kind == CHOICE
    among = candidate_documents(test, loan.labels) if is_choice else ()
    unasked = reader.score(BY_NAME["global"], unasked_documents(among), None, "") if among else []
    for arm in {a.name: a for a in (*here, *extra)}.values():
        found = memories.get(arm.memories)
        card.rows[arm.name] = reader.score(arm, test, found, advice)
        card.read_tokens[arm.name] = reader.read_tokens
        if loan.probes and arm.name in loan.probed:
            card.probes[arm.name] = _probed(work, reader, arm, loan, found, advice)
        if among:
            rows = reader.score(arm, among, found, advice)
            card.choices[arm.name] = choices(rows, test, loan.labels, unasked)
        if arm.name in loan.write_with:
            card.written[arm.name] = reader.write(arm, test, found, advice)
    for number in COLD if settings.cold_start and COLD_ARM in card.rows else ():
        if number == 0 or number <= len(person.history):
            few = Memories(person.history[len(person.history) - number :], encoder, loan.dated)
            card.cold[number] = reader.score(BY_NAME[COLD_ARM], test, few, advice)
    if CHOSEN in arms:
        told: list[dict[str, Any]] = [card.rows, card.probes, card.choices, card.read_tokens]
        for kept in told:
            if card.chosen in kept:
                kept[CHOSEN] = kept[card.chosen]
    card.rows = {name: rows for name, rows in card.rows.items() if name in arms}
    card.text_bytes = reader.text_bytes(test)
    return card


def _probed(work: HostWork, reader: Reader, arm: Arm, loan: Loan, memories: Memories | None, advice: str) -> Rows:
    """Return the rows of the probes. Planted ones are each searched for; neutral ones stand behind one search a kind.

    Under an arm of nobody's own the answers are everybody's, and asked once on a host.
    """
    if loan.dated:  # planted people: their own history decides
        return reader.score(arm, loan.probes, memories, advice)
    key = (arm.name, loan.cores.get(arm.core, loan.cores["global"]).tobytes())
    if arm.own == NOBODY and arm.memories == NOBODY and arm.core != PERSONA_CORE and key in work.answered:
        return work.answered[key]
    rows: Rows = []
    for kind in dict.fromkeys(d.id.split("/")[0] for d in loan.probes):
        some = [d for d in loan.probes if d.id.split("/")[0] == kind]
        rows += reader.score(arm, some, memories, advice, asked=scored_part(some[0])[0])
    if arm.own == NOBODY and arm.memories == NOBODY and arm.core != PERSONA_CORE:
        work.answered[key] = rows
    return rows


def _lent(arm: Arm, loan: Loan) -> bool:
    if arm.core == PERSONA_CORE and PERSONA_CORE not in loan.cores and arm.own != OWN:
        return False
    if arm.own == EXTENDED:
        return loan.extended is not None
    if arm.own == PREFERRED:
        return loan.preferred is not None
    if arm.own == WRONG:
        return loan.wrong_own is not None
    return bool(loan.wrong_history) if arm.memories == WRONG else True


def _choice(reader: Reader, tuning: Sequence[Document], memories: Memories, loan: Loan) -> tuple[str, dict[str, Rows]]:
    """Return what is chosen on tuning documents, and the rows of the arms that no seed changes."""
    ladder = [name for name in LADDER if _lent(BY_NAME[name], loan)]
    rows = [
        loan.tuned[name] if name in loan.tuned else reader.score(BY_NAME[name], tuning, memories, "") for name in ladder
    ]
    nats = np.array([[n for _, n, _ in row] for row in rows]).reshape(len(ladder), -1)
    kept = {name: row for name, row in zip(ladder, rows, strict=True) if BY_NAME[name].own == NOBODY}
    tokens = np.array([number for _, _, number in rows[0]], dtype=np.int64)
    return choose(ladder, nats, tokens, starts=("all_trusted", "trusted")).arm, kept
