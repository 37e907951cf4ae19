"""What a device computes that is no adapter: its owner's portrait, the public words they use, how adapters serve them.

Every figure is bounded before it is written, so that no answer is ever clipped: see `privacy.objective` and section 2
of PROTOCOL.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from client.encoder import Encoder, unit
from client.lexical import words
from client.model import GLOBAL, Cached, LanguageModel, batches_by_length, padded
from client.style import FIGURES, style_of
from privacy.adapter import Cores
from privacy.canonical import canonical_json, sha256_hex
from privacy.errors import ModelError
from privacy.objective import GAIN_EDGES, LOSS_UNIT, METRICS

Vector = NDArray[np.float64]
PUBLIC_WORDS = 2000  # of the encoder's own vocabulary: their principal directions are a retriever's
MAX_EMBEDDED = 32  # the newest documents of a person that go into the mean embedding
MEANING, STYLE, BOTH = "meaning", "style", "both"
PORTRAITS = (BOTH, MEANING, STYLE)


@dataclass(frozen=True)
class PublicTables:
    """What is public and everybody must have the same: an encoder, the words that may be counted, what portraits show.

    A *portrait* is what personas are clustered by, of norm at most 1: the mean of the person's embeddings ("meaning",
    what they write about), their figures of style ("style", how they write), or one behind the other ("both").
    """

    encoder: Encoder
    words: tuple[str, ...] = ()
    shows: str = MEANING

    @cached_property
    def sha256(self) -> str:
        """Return the hash that a policy pins: of the encoder's weights and of the word list."""
        listed = sha256_hex("\n".join(self.words).encode())
        figures = [[each.name, repr(each.typical), repr(each.spread)] for each in FIGURES]
        return sha256_hex(
            canonical_json({"encoder": self.encoder.sha256, "shows": self.shows, "style": figures, "words": listed})
        )

    def directions(self, rank: int) -> Vector:
        """Return the first `rank` principal directions of the embeddings of public words, float64 [rank, dim].

        Where a retriever may turn a query: nobody's text went into them. Raises ModelError where there are too few.
        """
        rows = self.encoder.encode(self.encoder.common_words(PUBLIC_WORDS)).astype(np.float64)
        found: Vector = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:rank]
        if len(found) < rank:
            raise ModelError(f"the encoder has no {rank} directions")
        return np.ascontiguousarray(found * np.where(found.sum(axis=1, keepdims=True) < 0, -1.0, 1.0))

    @property
    def portrait_dim(self) -> int:
        """Return the length of a portrait."""
        meaning = self.encoder.dim if self.shows != STYLE else 0
        return meaning + (len(FIGURES) if self.shows != MEANING else 0)

    def portrait(self, texts: Sequence[str]) -> Vector:
        """Return a person's portrait, float64 [portrait_dim], of norm at most 1; zeros for no text."""
        if self.shows == MEANING:
            return self.mean_embedding(texts)
        if self.shows == STYLE:
            return style_of(texts)
        both: Vector = np.concatenate([self.mean_embedding(texts), style_of(texts)]) / np.sqrt(2)
        return both

    def mean_embedding(self, texts: Sequence[str]) -> Vector:
        """Return the direction of the mean of the texts' embeddings, float64 [dim], of norm 1; zeros for no text."""
        rows = self.encoder.encode([text for text in texts if text.strip()][-MAX_EMBEDDED:])
        return unit(rows.astype(np.float64).sum(axis=0)) if len(rows) else np.zeros(self.encoder.dim)

    def word_marks(self, texts: Sequence[str]) -> Vector:
        """Return 1/sqrt(n) for each of the n public words that the texts use, else 0: float64 [words], norm 1 or 0.

        A person counts the same in all, whatever the length of what they wrote: whoever uses more words adds less to
        each.
        """
        used = {word for text in texts for word in words(text)}
        marks = np.array([float(word in used) for word in self.words])
        return unit(marks)


@dataclass(frozen=True)
class Served:
    """How well some adapters serve a person: nats on the same tokens, and votes in blind comparisons.

    `personas` are the nats under each persona; `compared` and `preferred` count the owner's blind choices between the
    shared adapters' writing and the base model's.
    """

    tokens: int
    base: float
    global_: float
    personas: tuple[float, ...]
    chosen: float
    right: int
    compared: int = 0
    preferred: int = 0


def metrics(served: Served) -> Vector:
    """Return the figures of one person in the order of `privacy.objective.METRICS`, each in [0, 1].

    Who has no token, or an adapter that gives no finite loss, is present and counts zero everywhere else.
    """
    figures = dict.fromkeys(METRICS, 0.0) | {"present": 1.0}
    losses = (served.base, served.global_, served.chosen)
    if served.tokens and all(np.isfinite(losses)):
        for name, nats in zip(("loss_base", "loss_global", "loss_chosen"), losses, strict=True):
            figures[name] = min(1.0, max(0.0, nats / served.tokens / LOSS_UNIT))
        figures["accuracy"] = served.right / served.tokens
        gain = 1 - served.chosen / served.base if served.base > 0 else 0.0
        figures[f"gain_{int(np.searchsorted(GAIN_EDGES, gain, side='right'))}"] = 1.0
        if served.personas and min(served.personas) >= served.global_:
            figures["without_persona"] = 1.0
    if served.compared:
        figures |= {"compared": 1.0, "preferred": min(1.0, served.preferred / served.compared)}
    return np.array([figures[name] for name in METRICS])


def served_by(
    model: LanguageModel, documents: Sequence[Cached], shared: Cores, personas: Sequence[Cores], slot: int
) -> Served:
    """Return how the base model, the global core and each persona's serve `documents`; `slot` is the chosen persona."""
    assert model.layout is not None
    model.activate(GLOBAL)

    def nats(cores: Cores) -> float:
        model.set_cores(cores)
        return sum(float(n.double().sum()) for n in model.document_nats(documents))

    base, global_ = nats(model.layout.zero_cores()), nats(shared)
    each = tuple(nats(cores) for cores in personas)
    model.set_cores(personas[slot] if personas else shared)
    tokens = sum(document.encoded.own_tokens for document in documents)
    return Served(tokens, base, global_, each, each[slot] if each else global_, _right(model, documents))


@torch.no_grad()
def _right(model: LanguageModel, documents: Sequence[Cached]) -> int:
    """Return how many target tokens are the model's first choice."""
    right = 0
    for batch in batches_by_length([len(d.encoded.ids) for d in documents], 2048):
        rows = padded([documents[i] for i in batch])
        states = model.top(rows.hidden)[rows.where]
        for part, labels in zip(states.split(256), rows.labels.split(256), strict=True):
            right += int((torch.argmax(part.float() @ model.head32.T, dim=-1) == labels).sum())
    return right
