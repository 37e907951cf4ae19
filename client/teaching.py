"""What a device teaches the federated retriever with: questions from its owner's text, and weights on documents.

A question is a document cut in two, see `client.gain`; the documents to choose from are others of the same person: the
nearest under the present core, which is where a core errs, and as many at random.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.documents import Document
from client.encoder import Encoder
from client.gain import TARGET_TOKENS, Question, gains, question_of
from client.model import LanguageModel
from client.retriever_core import Example, RetrieverCore, taught_by_gain
from privacy.objective import RETRIEVER_CONTRAST
from privacy.query import Query

Vector = NDArray[np.float64]
CHOICES = 6  # documents that a question chooses from: half the nearest, half at random


@dataclass
class Shelf:
    """A person's documents with their embeddings, float64 [documents, e], and the questions made of them.

    All of it is personal text in another form; it lives in memory and goes with its owner's `forget`.
    """

    texts: list[str]
    embeddings: Vector
    questions: list[tuple[int, Question]]
    known: dict[tuple[str, int], float] = field(default_factory=dict)  # gains, which no round changes

    @classmethod
    def of(cls, documents: Sequence[Document], encoder: Encoder) -> Shelf:
        """Return the shelf of `documents`; those without own words are not on it."""
        held = [document for document in documents if document.own_text.strip()]
        texts = [document.own_text.strip() for document in held]
        asked = [(place, question_of(document)) for place, document in enumerate(held)]
        questions = [(place, question) for place, question in asked if question is not None]
        return cls(texts, encoder.encode(texts).astype(np.float64), questions)

    def gains(self, model: LanguageModel, question: Question, places: Sequence[int]) -> Vector:
        """Return the gain in nats of the documents at `places`, float64 [places]; each is computed once."""
        new = [place for place in places if (question.document, place) not in self.known]
        for place, gain in zip(new, gains(model, question, [self.texts[i] for i in new]), strict=True):
            self.known[question.document, place] = float(gain)
        return np.array([self.known[question.document, place] for place in places])


def examples(
    model: LanguageModel, encoder: Encoder, shelf: Shelf, core: RetrieverCore, query: Query, seed: int
) -> list[Example]:
    """Return a person's examples of a round; `seed` draws the documents at random.

    The next questions of each round, so many that their targets fit the query's limit of own tokens, one at least; none
    begins after its seconds. Somebody with fewer than two other documents has nothing to teach.
    """
    number = max(1, query.limits.own_tokens // TARGET_TOKENS)
    until, found = time.monotonic() + query.limits.seconds, list[Example]()
    if not shelf.questions:
        return []
    rng = np.random.default_rng([seed, 1])
    for turn in range(min(number, len(shelf.questions))):
        if turn and time.monotonic() > until:
            break
        place, question = shelf.questions[(query.round * number + turn) % len(shelf.questions)]
        asked = encoder.encode([question.opening])[0].astype(np.float64)
        places = _choices(core.scores(asked, shelf.embeddings), place, rng)
        if len(places) < 2:
            continue
        documents = shelf.embeddings[places]
        if query.objective == RETRIEVER_CONTRAST:
            own = encoder.encode([question.words]).astype(np.float64)
            found.append(Example(asked, np.concatenate([own, documents]), np.eye(1, 1 + len(places))[0]))
        else:
            found.append(Example(asked, documents, taught_by_gain(shelf.gains(model, question, places))))
    return found


def _choices(scores: Vector, without: int, rng: np.random.Generator) -> list[int]:
    """Return the places of the best half and of a random half of `CHOICES` documents, never `without`."""
    order = [int(place) for place in np.argsort(-scores, kind="stable") if place != without]
    best, rest = order[: CHOICES // 2], order[CHOICES // 2 :]
    return best + [rest[i] for i in rng.permutation(len(rest))[: CHOICES - CHOICES // 2].tolist()]
