"""The federated retriever: a small core on the query's side of a frozen encoder, and what it learns from.

    score(q, d) = (q + U' R U q) . d          q, d unit embeddings [e], U frozen directions [r, e], R the core [r, r]

Only the query passes through the core, so an index of documents stays as it is when a new core is published, and the
loss is convex in R. It is taught by the language model itself: how much a document d of the person's, read before a
query, helps to predict what the person wrote next (Shi et al. 2023, arXiv:2301.12652, section 4),

    L = sum_d t_d ln(t_d / p_d),   t = softmax(gain in nats),   p = softmax(score / TEMPERATURE)

or, for comparison, by contrast: t is 1 for the rest of the query's own document (Lee et al. 2019, arXiv:1906.00300).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
TEMPERATURE = 0.05
TEACHER_NATS = 0.3  # by so many nats must one document help more than another to be e times as likely a teacher's pick


@dataclass(frozen=True)
class Example:
    """One query, float64 [e], the documents to choose from, [C, e], and the teacher's weights on them, [C], sum 1."""

    query: Vector
    documents: Vector
    teacher: Vector


@dataclass(frozen=True)
class RetrieverCore:
    """`directions` U, float64 [r, e] with orthonormal rows, frozen and public; `core` R, [r, r]."""

    directions: Vector
    core: Vector

    @classmethod
    def from_row(cls, row: Vector, dim: int) -> RetrieverCore:
        """Return the core at the beginning of a row and the directions [r, dim] behind it; else ValueError."""
        numbers = len(row)
        rank = round((-dim + (dim * dim + 4 * numbers) ** 0.5) / 2)
        if rank < 1 or rank * rank + rank * dim != numbers:
            raise ValueError("no retriever has so many numbers")
        return cls(row[rank * rank :].reshape(rank, dim), row[: rank * rank].reshape(rank, rank))

    def queries(self, embeddings: Vector) -> Vector:
        """Return q + U' R U q for each row of `embeddings`, float64 [n, e]."""
        moved: Vector = embeddings + (embeddings @ self.directions.T) @ self.core.T @ self.directions
        return moved

    def scores(self, query: Vector, documents: Vector) -> Vector:
        """Return the score of each document [C, e] for one query [e], float64 [C]."""
        found: Vector = documents @ self.queries(query[None])[0]
        return found

    def loss(self, examples: Sequence[Example]) -> float:
        """Return the mean of L over `examples`, in nats; 0 for none."""
        total = 0.0
        for example in examples:
            chosen = softmax(self.scores(example.query, example.documents) / TEMPERATURE)
            taught = example.teacher > 0
            total += float((example.teacher[taught] * np.log(example.teacher[taught] / chosen[taught])).sum())
        return total / len(examples) if examples else 0.0

    def gradient(self, examples: Sequence[Example]) -> Vector:
        """Return dL/dR, float64 [r, r]; zeros for no example."""
        total = np.zeros_like(self.core)
        for example in examples:
            chosen = softmax(self.scores(example.query, example.documents) / TEMPERATURE)
            pull = (chosen - example.teacher) @ example.documents / TEMPERATURE
            total += np.outer(self.directions @ pull, self.directions @ example.query)
        gradient: Vector = total / max(1, len(examples))
        return gradient

    def update(self, examples: Sequence[Example]) -> Vector:
        """Return the direction of steepest descent, float64 [r^2] of norm 1, or zeros where nothing is to be learned.

        A whole unit from everybody, as in the adapters' training: who has more to teach pulls no harder.
        """
        step = -self.gradient(examples).ravel()
        length = float(np.linalg.norm(step))
        return step / length if length > 0 else step


def softmax(values: Vector) -> Vector:
    """Return exp(values) divided by its sum, without overflow."""
    raised = np.exp(values - values.max())
    weights: Vector = raised / raised.sum()
    return weights


def taught_by_gain(gains: Vector) -> Vector:
    """Return the teacher's weights for gains in nats, float64 [C]."""
    return softmax(gains / TEACHER_NATS)
