"""Choosing what serves a person best, by loss on the slice of their text that nothing was trained on or searched in.

    arms:   global | retrieval (BM25, dense, hybrid) | persona prompt | profile prompt | own adapter | own + retrieval
    choice: the least loss on one half of the held-back documents, if it beats `global` there beyond chance; else global
    check:  on the other half: a choice that is worse than global there is a false choice, and is said

The ladder: nobody's data -> global; a few texts -> retrieval and prompts; from `LEAST_DOCUMENTS` on also the own
adapter. All arms are scored on the same tokens (`client.personal.scored_part`), and a passage written after the text
that is scored is not shown for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.importers import OWN as OWN_PURPOSE
from client.library import Kept, Passage, documents
from client.model import GLOBAL, OWN, Encoded, LanguageModel
from client.personal import LEAST_DOCUMENTS, scored_part, window
from client.prompt import CONTEXTUAL, CONTINUE, PERSONA, PLAIN, PROFILE, About, context
from client.retrieve import BM25, DENSE, METHODS, PersonalIndex
from client.vault import Vault

CONTEXT_TOKENS, DOCUMENT_TOKENS, READ_TOKENS, PASSAGES = 256, 192, 2048, 4
RESAMPLES, CONFIDENCE = 2000, 0.95
MOST_SCORED = 40


@dataclass(frozen=True)
class Arm:
    """One way to serve the person: how memories are found, how they are shown, whether the own adapter is on."""

    name: str
    words: str
    methods: tuple[str, ...] = ()
    prompt: str = PLAIN
    own: bool = False


ARMS = (
    Arm("global", "the model as it is"),
    Arm("bm25", "your texts, found by their words", (BM25,), CONTEXTUAL),
    Arm("dense", "your texts, found by their meaning", (DENSE,), CONTEXTUAL),
    Arm("hybrid", "your texts, found by words, meaning and date", METHODS, CONTEXTUAL),
    Arm("persona", "your texts with what you said about yourself", METHODS, PERSONA),
    Arm("profile", "your texts with a summary of what you write about", METHODS, PROFILE),
    Arm("own", "an adapter trained on your texts", own=True),
    Arm("own+hybrid", "an adapter trained on your texts, and the texts themselves", METHODS, CONTEXTUAL, own=True),
)
BASELINE = ARMS[0]


@dataclass(frozen=True)
class Choice:
    """The arm that serves, and why: bits per token of every arm, the gain on the half it was not chosen on."""

    arm: str
    bits: Mapping[str, float]
    documents: int
    gain: float
    checked_gain: float
    false_choice: bool
    words: str

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {**vars(self), "bits": dict(self.bits)}


@dataclass(frozen=True, eq=False)
class HeldBack:
    """A held-back document: as the vault holds it, what may be searched with, its tokens with the scored ones."""

    kept: Kept
    question: str
    encoded: Encoded


def held_back_rows(vault: Vault, model: LanguageModel, most: int = MOST_SCORED) -> list[HeldBack]:
    """Return the newest `most` held-back documents with a word to score, oldest first."""
    rows = []
    for kept in documents(vault, OWN_PURPOSE, held_back=True):
        document = kept.as_document()
        question, ranges = scored_part(document)
        encoded = model.encode_text(document.text, ranges, document.id, READ_TOKENS)
        encoded = window(encoded, DOCUMENT_TOKENS)
        if encoded.own_tokens:
            rows.append(HeldBack(kept, question, encoded))
    return rows[-most:]


def arms_for(train_documents: int, has_own: bool, about: About) -> tuple[Arm, ...]:
    """Return the arms that so much data allows: the ladder."""
    if train_documents == 0:
        return (BASELINE,)
    allowed = [arm for arm in ARMS if not arm.own or (has_own and train_documents >= LEAST_DOCUMENTS)]
    return tuple(
        arm
        for arm in allowed
        if (arm.prompt != PERSONA or about.attributes) and (arm.prompt != PROFILE or about.topics)
    )


def score_arms(
    vault: Vault,
    model: LanguageModel,
    index: PersonalIndex,
    arms: Sequence[Arm],
    about: About,
    report: Callable[[str], None] = lambda _step: None,
) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Return arm names, nats float64 [arms, documents] and scored tokens int64 [documents] on the held-back slice.

    `index` must not hold that slice (`held_back=False`). The newest `MOST_SCORED` documents with a word to score count.
    """
    assert not index.held_back, "an index that holds what is scored would find it"
    rows = held_back_rows(vault, model)
    nats = np.zeros((len(arms), len(rows)))
    tokens = np.zeros(len(rows), dtype=np.int64)
    for a, arm in enumerate(arms):
        report(arm.name)
        model.activate(*((GLOBAL, OWN) if arm.own else (GLOBAL,)))
        for d, row in enumerate(rows):
            found = earlier(index, row.question, row.kept, arm.methods) if arm.methods else []
            text = context(arm.prompt, CONTINUE, found, about, CONTEXT_TOKENS, _counter(model))
            placed = model.with_context(row.encoded, model.context_ids(text, CONTEXT_TOKENS + 8))
            nats[a, d] = float(model.document_nats([model.prefix(placed)])[0].double().sum())
            tokens[d] = row.encoded.own_tokens
    return [arm.name for arm in arms], nats, tokens


def earlier(index: PersonalIndex, question: str, kept: Kept, methods: Sequence[str]) -> list[Passage]:
    """Return the best passages that were there before a document was written; undated ones count as earlier."""
    hits = index.search(question, 4 * PASSAGES, methods)
    before = [
        hit.passage
        for hit in hits
        if hit.passage.written is None or kept.written is None or hit.passage.written < kept.written
    ]
    return before[:PASSAGES]


def choose(names: Sequence[str], nats: NDArray[np.float64], tokens: NDArray[np.int64], seed: int = 0) -> Choice:
    """Return the choice of the module's rule; `names[0]` is the baseline. Documents of even number choose, odd check.

    Beyond chance: in 95 % of paired bootstrap samples of the documents the arm's loss is below the baseline's. With
    fewer than four documents the baseline stays: nothing can be told from them.
    """
    count = len(tokens)
    bits = {n: float(row.sum() / max(1, tokens.sum()) / np.log(2)) for n, row in zip(names, nats, strict=True)}
    half = np.arange(count) % 2 == 0
    best = int(np.argmin(nats[:, half].sum(1))) if count >= LEAST_DOCUMENTS else 0
    if best and _share_better(nats[0, half], nats[best, half], seed) < CONFIDENCE:
        best = 0
    gain, checked = _gain(nats, best, half), _gain(nats, best, ~half)
    false = best > 0 and checked < 0
    words = _in_words(names[best], count, gain, checked, false)
    return Choice(names[best], bits, count, gain, checked, false, words)


def _share_better(base: NDArray[np.float64], arm: NDArray[np.float64], seed: int) -> float:
    draws = np.random.default_rng(seed).integers(0, len(base), (RESAMPLES, len(base)))
    return float(np.mean((base - arm)[draws].sum(1) > 0))


def _gain(nats: NDArray[np.float64], arm: int, part: NDArray[np.bool_]) -> float:
    base = float(nats[0, part].sum())
    return (base - float(nats[arm, part].sum())) / base if base > 0 else 0.0


def _in_words(name: str, count: int, gain: float, checked: float, false: bool) -> str:
    words = next((arm.words for arm in ARMS if arm.name == name), name)
    if count < LEAST_DOCUMENTS:
        return f"Uses {words}: {count} texts of yours are held back to measure by, and {LEAST_DOCUMENTS} are needed."
    if name == BASELINE.name:
        return f"Uses {words}: nothing was better beyond chance on {count} texts of yours that nothing was trained on."
    said = f"Uses {words}: {gain:.1%} better than the model as it is on half of {count} texts held back"
    if false:
        return f"{said}, but {-checked:.1%} worse on the other half: a false choice, look at it again with more text."
    return f"{said}, {checked:.1%} on the other half, which had no say."


def _counter(model: LanguageModel) -> Callable[[str], int]:
    return lambda text: len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
