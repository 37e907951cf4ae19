"""Forced choices and public text: questions with a right and a wrong answer that need no judge.

    right where  nats(right | memories, question) / tokens < nats(wrong | memories, question) / tokens

A pair is two documents of one question, so an arm scores them as it scores any document. A tie counts half.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from client.documents import Document, Span
from privacy.errors import DataError

FACTS, SYCOPHANCY, REFUSAL, PUBLIC = "facts", "sycophancy", "refusal", "public"
RIGHT, WRONG_ANSWER = "right", "wrong"


@dataclass(frozen=True)
class Pair:
    """One question with two ways on; `kind` says what is measured with it."""

    kind: str
    question: str
    right: str
    wrong: str


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("probes.toml").read_text(encoding="utf-8"))


def neutral_pairs() -> tuple[Pair, ...]:
    """Return the neutral pairs on facts, sycophancy and refusal."""
    return tuple(Pair(kind, *row) for kind in (FACTS, SYCOPHANCY, REFUSAL) for row in _file()[kind])


def public_documents() -> tuple[Document, ...]:
    """Return plain public prose as documents of nobody's."""
    return tuple(
        Document(f"{PUBLIC}/{i}", (Span(text, own=True),), "test", i) for i, text in enumerate(_file()[PUBLIC])
    )


def pair_documents(pairs: Sequence[Pair]) -> tuple[Document, ...]:
    """Return two documents of each pair, its question the context and its answer what is scored."""
    return tuple(
        Document(f"{pair.kind}/{i}/{side}", (Span(pair.question, own=False), Span(text, own=True)), "test", i)
        for i, pair in enumerate(pairs)
        for side, text in ((RIGHT, pair.right), (WRONG_ANSWER, pair.wrong))
    )


def neutral_documents() -> tuple[Document, ...]:
    """Return all neutral pairs and the public prose as documents."""
    return (*pair_documents(neutral_pairs()), *public_documents())


def share_right(rows: Iterable[tuple[str, float, int]], kind: str) -> float | None:
    """Return the share of pairs of a kind that an arm decides rightly, None without one.

    Raises DataError for a pair of which only one side was scored.
    """
    found: dict[str, dict[str, float]] = {}
    for name, nats, tokens in rows:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == kind:
            found.setdefault(parts[1], {})[parts[2]] = nats / max(1, tokens)
    if any(len(sides) != 2 for sides in found.values()):
        raise DataError(f"a pair of {kind} was scored on one side only")
    decided = [_decided(sides[RIGHT], sides[WRONG_ANSWER]) for sides in found.values()]
    return sum(decided) / len(decided) if decided else None


def _decided(right: float, wrong: float) -> float:
    return 1.0 if right < wrong else 0.5 if right == wrong else 0.0


def public_nats(rows: Iterable[tuple[str, float, int]]) -> float | None:
    """Return the nats per token of the public prose, None where it was not scored."""
    chosen = [(nats, tokens) for name, nats, tokens in rows if name.startswith(f"{PUBLIC}/")]
    tokens = sum(count for _, count in chosen)
    return sum(nats for nats, _ in chosen) / tokens if tokens else None
