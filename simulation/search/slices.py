"""Three kinds of people that never overlap: those who train, those a choice is made on, those who are reported.

    train   from the pool, their first documents             select, report   others, one test document each

Choices are made on `select` alone; `report` is scored when the choice stands. Prefixes are kept in a work folder,
since they cost as much as a training step; that folder holds personal text in another form and is never committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from client.documents import Document, Person
from client.learner import parts_of
from client.model import Cached, LanguageModel

SPLIT_SEED = 20261125  # fixes who trains, who selects, who is reported, for every search


@dataclass(frozen=True)
class SearchPeople:
    """People of the three slices, in a fixed order; a run takes the first so many of each."""

    train: tuple[Person, ...]
    select: tuple[Person, ...]
    report: tuple[Person, ...]


def slices_of(pool: Sequence[Person], others: Sequence[Person], report: int) -> SearchPeople:
    """Return the slices: everybody in `pool` with a history trains, `report` of `others` are reported, the rest select.

    Orders are drawn by one fixed seed over sorted names, so that neither a file's order nor a run decides them. People
    of `others` without a test document are left out.
    """
    train = _shuffled([person for person in pool if person.history], 0)
    scored = _shuffled([person for person in others if person.test], 1)
    return SearchPeople(tuple(train), tuple(scored[report:]), tuple(scored[:report]))


def _shuffled(people: Sequence[Person], stream: int) -> list[Person]:
    ordered = sorted(people, key=lambda person: person.user)
    return [ordered[i] for i in np.random.default_rng([SPLIT_SEED, stream]).permutation(len(ordered))]


def train_parts(
    model: LanguageModel, people: Sequence[Person], documents: int, tokens: int, longest: int = 256
) -> list[list[list[Cached]]]:
    """Return everybody's parts of at most `tokens` own tokens, of their first `documents` history documents.

    Documents are cut at `longest` tokens, as a device cuts them. People without an own token are left out.
    """
    found = []
    for person in people:
        encoded = [model.encode(document, longest) for document in person.history[:documents]]
        parts = parts_of([whole for whole in encoded if whole.own_tokens], tokens)
        if parts:
            found.append([[model.prefix(piece) for piece in part] for part in parts])
    return found


def score_documents(people: Sequence[Person]) -> list[list[Document]]:
    """Return the first test document of every person."""
    return [[person.test[0]] for person in people]


def cached(
    model: LanguageModel, documents: Sequence[Sequence[Document]], tokens: int, file: Path | None
) -> list[list[Cached]]:
    """Return everybody's documents, at most `tokens` tokens each, with their prefixes: from `file` where it has them.

    `file` None keeps nothing; a model without a prefix needs none. What the file lacks is made and added to it.
    """
    kept: dict[str, Tensor] = load_file(file) if file is not None and file.exists() else {}
    found, made = [], 0
    for own in documents:
        row = []
        for document in own:
            encoded = model.encode(document, tokens)
            if model.first == 0:
                row.append(model.prefix(encoded))
                continue
            hidden = kept.get(document.id)
            if hidden is None or len(hidden) != len(encoded.ids):
                kept[document.id] = model.prefix(encoded).hidden
                made += 1
            row.append(Cached(encoded, kept[document.id]))
        found.append(row)
    if file is not None and made:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, file)
    return found
