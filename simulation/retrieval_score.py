"""How well a retriever ranks a person's own documents: recall@k and NDCG@k against the language model's own gains.

    NDCG@k = sum_{i<=k} g_i / log2(i+1)  over its largest value,   g = max(0, gain in nats)

(Jaervelin, Kekaelaeinen 2002, "Cumulated gain-based evaluation of IR techniques").
The frozen encoder is scored on the same questions. Questions come from test documents, the documents to rank from the
history, so nothing here was taught with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.documents import Document
from client.encoder import Encoder
from client.gain import question_of
from client.model import LanguageModel
from client.retriever_core import RetrieverCore
from client.teaching import Shelf

Vector = NDArray[np.float64]
AT = 3
POOL = 8  # documents that a question ranks, drawn at random: each costs one reading by the model
QUESTIONS = 2  # of each person


@dataclass(frozen=True)
class Ranked:
    """One question: the gain of each document in nats, and its score by the frozen encoder and by the core, all [n]."""

    gains: Vector
    frozen: Vector
    taught: Vector


def ranked(
    model: LanguageModel,
    encoder: Encoder,
    shelf: Shelf,
    test: Sequence[Document],
    core: RetrieverCore,
    rng: np.random.Generator,
) -> list[Ranked]:
    """Return a person's ranked questions, none for somebody with fewer than three documents."""
    found: list[Ranked] = []
    asked = [question for question in map(question_of, test) if question is not None]
    for question in asked[:QUESTIONS] if len(shelf.texts) >= AT else ():
        places = rng.permutation(len(shelf.texts))[:POOL].tolist()
        query, documents = encoder.encode([question.opening])[0].astype(np.float64), shelf.embeddings[places]
        gains = shelf.gains(model, question, places)
        found.append(Ranked(gains, documents @ query, core.scores(query, documents)))
    return found


def recall(gains: Vector, scores: Vector, k: int = AT) -> float:
    """Return 1 if the document that helps most is among the k best by `scores`, else 0."""
    return float(int(np.argmax(gains)) in np.argsort(-scores, kind="stable")[:k])


def ndcg(gains: Vector, scores: Vector, k: int = AT) -> float:
    """Return NDCG@k, in [0, 1]; 0 where no document helps."""
    worth = np.maximum(gains, 0.0)
    weights = 1 / np.log2(np.arange(2, min(k, len(worth)) + 2))
    best = float(np.sort(worth)[::-1][: len(weights)] @ weights)
    order = np.argsort(-scores, kind="stable")[: len(weights)]
    return float(worth[order] @ weights) / best if best > 0 else 0.0


def summary(questions: Sequence[Ranked]) -> Mapping[str, float]:
    """Return the means over all questions: recall and NDCG at `AT`, the gain of the first document in nats."""
    rows = {}
    for name in ("frozen", "taught"):
        scored = [(each.gains, getattr(each, name)) for each in questions]
        rows[f"recall_{name}"] = _mean([recall(*pair) for pair in scored])
        rows[f"ndcg_{name}"] = _mean([ndcg(*pair) for pair in scored])
        rows[f"gain_{name}"] = _mean([float(gains[np.argmax(scores)]) for gains, scores in scored])
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
