"""What a device gives before clip and noise: it chooses a slot, and works the same whatever it chose."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.adapter import AdapterLayout, Cores
from privacy.answer import slotted_update
from privacy.objective import (
    DECLARED,
    LEAST_LOSS,
    METRICS_OBJECTIVE,
    NEAREST,
    TRAINS_A_CORE,
    TRAINS_A_RETRIEVER,
    rows_of,
)
from privacy.query import Query

Rows = NDArray[np.float32]


class Learner(Protocol):
    """What trains and scores for a device; in simulation one learner serves many devices."""

    @property
    def layout(self) -> AdapterLayout:
        """Return the order of the cores in a flat vector."""

    @property
    def public_sha256(self) -> str | None:
        """Return the hash of the encoder and word list that this device holds; None without."""

    def update(self, user: str, start: Cores, query: Query, seed: int) -> NDArray[np.float64]:
        """Return the person's local update from `start` on this round's documents, float64 [slot_dim]."""

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        """Return the mean nats per own token of this round's documents under `cores`."""

    def distance(self, user: str, row: Rows, query: Query) -> float:
        """Return how far the person's portrait lies from the centroid at the end of `row`, float32 [numbers]."""

    def declared(self, user: str) -> int | None:
        """Return the persona that the owner named, if any."""

    def figures(self, user: str, rows: Rows, query: Query, slot: int, seed: int) -> NDArray[np.float64]:
        """Return what an objective that trains no adapter gives for `slot`, float64 [slot_dim]."""


def contribution(learner: Learner, user: str, query: Query, rows: Rows, seed: int) -> NDArray[np.float64]:
    """Return the vector [dim] that a device clips and noises; `seed` draws its batches and samples.

    The work does not depend on the choice: every slot is scored and one is trained, also where the owner has named no
    persona and the answer is zeros.
    """
    slot = chosen_slot(learner, user, query, rows)
    used = slot if slot is not None else 0
    if query.objective in TRAINS_A_CORE:
        update = learner.update(user, cores_of(learner.layout, rows[used]), query, seed)
    else:
        update = learner.figures(user, rows, query, used, seed)
    vector = slotted_update(update, query, used)
    return vector if slot is not None else np.zeros(query.dim)


def chosen_slot(learner: Learner, user: str, query: Query, rows: Rows) -> int | None:
    """Return the slot that a device chooses, the first of equals; None where its owner has declared none."""
    if query.slots == 1:
        return 0
    if query.choice == DECLARED:
        named = learner.declared(user)
        return named if named is not None and 0 <= named < query.slots else None
    candidates = rows[1:] if query.objective == METRICS_OBJECTIVE else rows
    if query.choice == LEAST_LOSS:
        return int(np.argmin([learner.loss(user, cores_of(learner.layout, row), query) for row in candidates]))
    return int(np.argmin([learner.distance(user, row, query) for row in candidates]))


def fits(learner: Learner, query: Query, rows: Rows) -> bool:
    """Return whether `rows`, float32 [rows, numbers], have the shape that the query's objective starts from."""
    width, numbers = rows.shape[1], learner.layout.dim
    if len(rows) != rows_of(query.objective, query.slots):
        return False
    if query.objective in TRAINS_A_RETRIEVER:
        rank = math.isqrt(query.slot_dim)
        return bool(rank * rank == query.slot_dim < width and (width - query.slot_dim) % rank == 0)
    if query.objective not in TRAINS_A_CORE:
        return True
    return bool(width > numbers if query.choice == NEAREST and query.slots > 1 else width == numbers)


def cores_of(layout: AdapterLayout, row: Rows) -> Cores:
    """Return the cores at the beginning of a row."""
    return layout.unflatten(row[: layout.dim].astype(np.float64))
