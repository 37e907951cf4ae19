"""Where little text is held back: own adapters trained on halves of it, each scored on the half that it never saw.

    documents -> A, B        own(A) is scored on B, own(B) on A

An adapter of half the text is worth less than the one that serves, so what is measured is on the careful side.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.documents import Document
from client.model import GLOBAL, OWN, LanguageModel
from client.own import load_own
from client.own_training import train_own
from client.personal import add_untrained, settings_of, window


@dataclass(frozen=True, eq=False)
class Fold:
    """An own adapter and the documents, by number, that it may be scored on."""

    tensors: dict[str, Tensor]
    scored: frozenset[int]


class Folds:
    """The adapters of a cross-fit; `activate` puts the one into the model that never saw a document."""

    def __init__(self, model: LanguageModel, folds: Sequence[Fold]) -> None:
        self._model, self._folds = model, folds
        self._loaded = -1

    def activate(self, document: int) -> None:
        """Switch to the adapter that may be scored on a document; one that neither saw is scored by the first."""
        at = next((i for i, fold in enumerate(self._folds) if document in fold.scored), 0)
        if at != self._loaded:
            load_own(self._model, self._folds[at].tensors)
            self._loaded = at
        self._model.activate(GLOBAL, OWN)


def cross_fitted(
    model: LanguageModel, kind: str, rows: Sequence[tuple[int, Document]], seconds: float, tokens: int
) -> Folds:
    """Return two adapters of a kind, each trained on every other of the documents; nothing of them is kept."""
    settings = settings_of(kind, None, max(1.0, seconds / 2))
    add_untrained(model, kind, settings)
    model.activate(GLOBAL)
    encoded = [(number, window(model.encode(document, 8 * tokens), tokens)) for number, document in rows]
    cached = [(number, model.prefix(each)) for number, each in encoded]
    folds = []
    for half in (0, 1):
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        tensors, _ = train_own(model, [each for _, each in cached[half::2]], settings, generator)
        folds.append(Fold(tensors, frozenset(number for number, _ in cached[1 - half :: 2])))
    return Folds(model, folds)
