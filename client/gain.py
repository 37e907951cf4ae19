"""What a document of the person's own is worth: by how many nats it helps the base model to write the person's words.

gain(d) = nats(words | opening) - nats(words | d, opening)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.documents import Document
from client.model import GLOBAL, Encoded, LanguageModel

Vector = NDArray[np.float64]
OPENING_SHARE = 3  # a document without an opening by others: its first third is the opening
TARGET_TOKENS = 32
MEMORY_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """A document cut in two: what is known when a retriever is asked, and what the person wrote then."""

    document: str
    opening: str
    words: str


def question_of(document: Document) -> Question | None:
    """Return the question of a document, None where it has too few words to be cut in two.

    The opening is all before the person's first own word, or, where that is nothing, the first third of their words.
    """
    first = next(iter(document.target_ranges()), None)
    if first is None:
        return None
    start, end = first
    opening, words = document.text[:start], document.text[start:end]
    if not opening.strip():
        own = document.text[start:].split(" ")
        cut = len(own) // OPENING_SHARE
        opening, words = " ".join(own[:cut]), " " + " ".join(own[cut:])
    if not opening.strip() or not words.strip():
        return None
    return Question(document.id, opening, words)


def gains(model: LanguageModel, question: Question, memories: Sequence[str]) -> Vector:
    """Return the gain of each memory in nats, float64 [memories], on the first 32 tokens of the question's words.

    The base model reads: its adapter is set to zero, so that a gain stays what it is from round to round.
    """
    text = question.opening + question.words
    plain = model.encode_text(text, [(len(question.opening), len(text))], question.document, 4 * TARGET_TOKENS)
    own = plain.target.nonzero()[:, 0]
    if not len(own):
        return np.zeros(len(memories))
    stop = int(own[:TARGET_TOKENS][-1]) + 1
    plain = Encoded(plain.document, plain.ids[:stop], plain.target[:stop])
    rows = [plain] + [model.with_context(plain, _head(model, memory)) for memory in memories]
    if model.layout is not None:
        model.set_cores(model.layout.zero_cores())
        model.activate(GLOBAL)
    nats = [float(each.double().sum()) for each in model.document_nats([model.prefix(row) for row in rows])]
    return nats[0] - np.array(nats[1:], dtype=np.float64)


def _head(model: LanguageModel, text: str) -> torch.Tensor:
    """Return the first tokens of a memory, with an empty line behind."""
    ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:MEMORY_TOKENS]
    return torch.cat([torch.tensor(ids, dtype=torch.long), model.context_ids("\n", 4)])
