"""Choosing what serves a person best, by loss on the slice of their text that nothing was trained on or searched in.

    arms:   global | retrieval (BM25, dense, hybrid, re-ranked) | prompts (persona, profile, summary, refined)
            | trusted | own adapter | own + retrieval | own + trusted
    start:  `own+trusted`, else `trusted`: memories that weigh as far as they foretell what is read (`client.trust`),
            whose loss has a bound; unless `global` loses less on one half of the held-back documents
    choice: the least loss on that half, if it beats the start there beyond chance; else the start
    check:  on the other half: a choice that is worse than global there is a false choice, and is said
    dial:   how much memories weigh (`client.steering`), chosen and checked the same way for the arm that was chosen

The ladder: nobody's data -> global; a few texts -> retrieval and prompts; from `LEAST_TRAINED` on also the own adapter.
Where fewer than `FEW` texts are held back the others count too: each is searched for without itself, and its own
adapter is one that never saw it (`client.crossfit`). All arms are scored on the same tokens
(`client.personal.scored_part`), and a passage written after the text that is scored is not shown for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.crossfit import Folds
from client.extract import extracts
from client.importers import OWN as OWN_PURPOSE
from client.library import Kept, Passage, documents
from client.model import GLOBAL, OWN, Encoded, LanguageModel
from client.personal import LEAST_DOCUMENTS, LEAST_TRAINED, scored_part, window
from client.prompt import CONTEXTUAL, CONTINUE, PERSONA, PLAIN, PROFILE, REFINED, SUMMARY, About, context
from client.rerank import by_likelihood
from client.retrieve import BM25, BY_PROFILE, DENSE, IDENTITY, METHODS, PersonalIndex
from client.steering import STRENGTHS, steered_nats
from client.trust import trusted_nats
from client.vault import Vault

CONTEXT_TOKENS, DOCUMENT_TOKENS, READ_TOKENS, PASSAGES = 256, 192, 2048, 4
CANDIDATES, SENTENCES = 12, 12  # passages that are re-ranked or summed up, sentences of a summary
RESAMPLES, CONFIDENCE = 2000, 0.95
MOST_SCORED, FEW = 32, 8


@dataclass(frozen=True)
class Arm:
    """One way to serve the person: how memories are found, how they are shown, whether the own adapter is on.

    With `trusted` memories weigh as far as they foretell (`client.trust`).
    """

    name: str
    words: str
    methods: tuple[str, ...] = ()
    prompt: str = PLAIN
    own: bool = False
    rerank: bool = False
    build: str = IDENTITY
    trusted: bool = False


ARMS = (
    Arm("global", "the model as it is"),
    Arm("bm25", "your texts, found by their words", (BM25,), CONTEXTUAL),
    Arm("dense", "your texts, found by their meaning", (DENSE,), CONTEXTUAL),
    Arm("hybrid", "your texts, found by words, meaning and date", METHODS, CONTEXTUAL),
    Arm("trusted", "your texts, trusted as far as they foretell your words", METHODS, CONTEXTUAL, trusted=True),
    Arm("topics", "your texts, looked for with your usual topics in mind", METHODS, CONTEXTUAL, build=BY_PROFILE),
    Arm("rerank", "your texts, the likeliest to belong to the question first", METHODS, CONTEXTUAL, rerank=True),
    Arm("persona", "your texts with what you said about yourself", METHODS, PERSONA),
    Arm("profile", "your texts with a summary of what you write about", METHODS, PROFILE),
    Arm("summary", "a summary of you, and single sentences out of your texts", METHODS, SUMMARY),
    Arm("refined", "your texts behind words that were tried out on your older ones", METHODS, REFINED),
    Arm("own", "an adapter trained on your texts", own=True),
    Arm("own+hybrid", "an adapter trained on your texts, and the texts themselves", METHODS, CONTEXTUAL, own=True),
    Arm(
        "own+trusted",
        "an adapter trained on your texts, and the texts, trusted as far as they foretell your words",
        METHODS,
        CONTEXTUAL,
        own=True,
        trusted=True,
    ),
)
BASELINE = ARMS[0]
STARTS = ("own+trusted", "trusted")  # where nothing else is shown to be better, the first that there is


@dataclass(frozen=True)
class Choice:
    """The arm that serves, and why: bits per token of every arm, the gain on the half it was not chosen on.

    `steer` is how much memories weigh, 0 for as they are.
    """

    arm: str
    bits: Mapping[str, float]
    documents: int
    gain: float
    checked_gain: float
    false_choice: bool
    words: str
    steer: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the choice as JSON values."""
        return {**vars(self), "bits": dict(self.bits)}


@dataclass(frozen=True, eq=False)
class HeldBack:
    """A held-back document: as the vault holds it, what may be searched with, its tokens with the scored ones."""

    kept: Kept
    question: str
    encoded: Encoded


def scored_rows(vault: Vault, model: LanguageModel) -> tuple[list[HeldBack], list[HeldBack]]:
    """Return the held-back documents, and, where they are fewer than `FEW`, the newest others to score with them."""
    held = held_back_rows(vault, model)
    return held, (held_back_rows(vault, model, 2 * FEW, held_back=False) if len(held) < FEW else [])


def held_back_rows(
    vault: Vault, model: LanguageModel, most: int = MOST_SCORED, held_back: bool = True
) -> list[HeldBack]:
    """Return the newest `most` held-back documents with a word to score, oldest first; or of the others."""
    rows = []
    for kept in documents(vault, OWN_PURPOSE, held_back=held_back):
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
    allowed = [arm for arm in ARMS if not arm.own or (has_own and train_documents >= LEAST_TRAINED)]
    needs = {PERSONA: about.attributes, PROFILE: about.topics, SUMMARY: about.topics, REFINED: about.advice}
    return tuple(arm for arm in allowed if arm.prompt not in needs or needs[arm.prompt])


def score_arms(
    vault: Vault,
    model: LanguageModel,
    index: PersonalIndex,
    arms: Sequence[Arm],
    about: About,
    report: Callable[[str], None] = lambda _step: None,
    folds: Folds | None = None,
) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Return arm names, nats float64 [arms, documents] and scored tokens int64 [documents] on the held-back slice.

    `index` must not hold that slice (`held_back=False`). The newest `MOST_SCORED` documents with a word to score count;
    with `folds` also the others of `scored_rows`.
    """
    assert not index.held_back, "an index that holds what is scored would find it"
    held, more = scored_rows(vault, model)
    rows = held + more if folds is not None else held
    nats = np.zeros((len(arms), len(rows)))
    tokens = np.array([row.encoded.own_tokens for row in rows], dtype=np.int64)
    for a, arm in enumerate(arms):
        report(arm.name)
        placed = [_placed(model, index, row, arm, about) for row in rows]
        for d, (row, each) in enumerate(zip(rows, placed, strict=True)):
            _activate(model, arm, row, folds)
            if arm.trusted:
                nats[a, d] = trusted_nats(model, each, row.encoded)
            else:
                nats[a, d] = float(model.document_nats([model.prefix(each)])[0].double().sum())
    return [arm.name for arm in arms], nats, tokens


def score_steering(
    vault: Vault,
    model: LanguageModel,
    index: PersonalIndex,
    arm: Arm,
    about: About,
    folds: Folds | None = None,
) -> NDArray[np.float64]:
    """Return the nats of an arm with memories at every strength of the dial, float64 [strengths, documents]."""
    held, more = scored_rows(vault, model)
    rows = held + more if folds is not None else held
    placed = [_placed(model, index, row, arm, about) for row in rows]
    found = []
    for each, row in zip(placed, rows, strict=True):
        _activate(model, arm, row, folds)
        found.append(steered_nats(model, each, row.encoded))
    return np.array(found).reshape(len(rows), len(STRENGTHS)).T


def _activate(model: LanguageModel, arm: Arm, row: HeldBack, folds: Folds | None) -> None:
    """Switch on what an arm reads a document with: never an own adapter that was trained on it."""
    if arm.own and folds is not None:
        folds.activate(row.kept.number)
    else:
        model.activate(*((GLOBAL, OWN) if arm.own else (GLOBAL,)))


def _placed(model: LanguageModel, index: PersonalIndex, row: HeldBack, arm: Arm, about: About) -> Encoded:
    """Return a held-back document behind what an arm shows for it."""
    if not arm.methods:
        return row.encoded
    found = earlier(index, row.question, row.kept, arm.methods, CANDIDATES, arm.build)
    text = context(arm.prompt, CONTINUE, shown(model, row.question, found, arm), about, CONTEXT_TOKENS, _counter(model))
    return model.with_context(row.encoded, model.context_ids(text, CONTEXT_TOKENS + 8))


def shown(
    model: LanguageModel, question: str, found: Sequence[Passage], arm: Arm, most: int = PASSAGES
) -> list[Passage]:
    """Return what an arm shows of the passages that were found, best first: re-ranked, summed up, or the first."""
    if arm.rerank:
        return by_likelihood(model, question, found, most)
    if arm.prompt == SUMMARY:
        return extracts(found, question, SENTENCES)
    return list(found[:most])


def earlier(
    index: PersonalIndex,
    question: str,
    kept: Kept,
    methods: Sequence[str],
    most: int = PASSAGES,
    build: str = IDENTITY,
) -> list[Passage]:
    """Return the best passages that were there before a document was written; undated ones count as earlier."""
    hits = index.search(question, 4 * most, methods, build=build)
    before = [
        hit.passage
        for hit in hits
        if hit.passage.document != kept.number
        and (hit.passage.written is None or kept.written is None or hit.passage.written < kept.written)
    ]
    return before[:most]


def with_steering(made: Choice, nats: NDArray[np.float64], seed: int = 0) -> Choice:
    """Return the choice with the weight of memories that is best on the half that chose, if beyond chance.

    `nats` are those of `score_steering`. What it is worth is said by the half that had no say.
    """
    half, still = np.arange(nats.shape[1]) % 2 == 0, STRENGTHS.index(0.0)
    best = int(np.argmin(nats[:, half].sum(1)))
    if best == still or _share_better(nats[still, half], nats[best, half], seed) < CONFIDENCE:
        return made
    ordered = nats[[still, best]]
    checked = _gain(ordered, 1, ~half)
    if checked < 0:
        said = f" Weighing them by {STRENGTHS[best]:+g} looked better and was not: left as they are."
        return dataclasses.replace(made, words=made.words + said)
    said = f" They weigh {STRENGTHS[best]:+g} of the dial: {checked:.1%} more on the half that had no say."
    return dataclasses.replace(made, steer=STRENGTHS[best], words=made.words + said)


def choose(
    names: Sequence[str],
    nats: NDArray[np.float64],
    tokens: NDArray[np.int64],
    seed: int = 0,
    starts: Sequence[str] = STARTS,
) -> Choice:
    """Return the choice of the module's rule; `names[0]` is the baseline. Documents of even number choose, odd check.

    The start is the first of `starts` that is among the names, the baseline where none is or where the baseline loses
    less. Beyond chance: in 95 % of paired bootstrap samples of the documents the arm's loss is below the start's. With
    fewer than four documents the start stays: nothing can be told from them.
    """
    count = len(tokens)
    bits = {n: float(row.sum() / max(1, tokens.sum()) / np.log(2)) for n, row in zip(names, nats, strict=True)}
    half = np.arange(count) % 2 == 0
    start = next((names.index(name) for name in starts if name in names), 0)
    if nats[0, half].sum() < nats[start, half].sum():
        start = 0
    best = int(np.argmin(nats[:, half].sum(1))) if count >= LEAST_DOCUMENTS else start
    if best != start and _share_better(nats[start, half], nats[best, half], seed) < CONFIDENCE:
        best = start
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
        return f"Uses {words}: there are {count} texts of yours to measure by, and {LEAST_DOCUMENTS} are needed."
    if name == BASELINE.name:
        return f"Uses {words}: nothing was better beyond chance on {count} texts of yours."
    said = f"Uses {words}: {gain:.1%} better than the model as it is on half of {count} texts"
    if false:
        return f"{said}, but {-checked:.1%} worse on the other half: a false choice, look at it again with more text."
    return f"{said}, {checked:.1%} on the other half, which had no say."


def _counter(model: LanguageModel) -> Callable[[str], int]:
    return lambda text: len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
