"""Which persona a device belongs to, from all that the server holds of it: the slot of its answer.

In the clear the slot is whichever is not zero. With protection the server holds a masked vector, sizes that follow from
the question, and the sum; every slot carries noise, and the weight that counts members lies under the same clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from privacy.fixedpoint import from_ring
from privacy.query import Query
from privacy.secagg.messages import Masked
from privacy.wire import decode
from simulation.attacks.outcome import Attack, allowed_guess, share
from simulation.mechanism.people import People, Vector, layout_of


@dataclass(frozen=True)
class Size:
    """How many people in how many personas, and over how many rounds the same person is looked at."""

    people: int = 40
    slots: int = 4
    rank: int = 16
    rounds: int = 4
    noise_multiplier: Fraction = Fraction(4)


def attack_persona(folder: Path, root: bytes, rng: np.random.Generator, size: Size) -> Attack:
    """Return the attack: for each person the slot with the most energy, added up over all rounds."""
    with People(folder, size.people, layout_of(size.rank), root) as people:
        slots = {
            user: int(slot) for user, slot in zip(people.users, rng.integers(size.slots, size=size.people), strict=True)
        }
        people.learner.slot_of = slots
        off = np.zeros((size.people, size.slots))
        on = np.zeros((size.people, size.slots))
        for number in range(size.rounds):
            updates = {user: rng.normal(size=people.layout.dim) / 1000 for user in people.users}
            clear = people.query(number, slots=size.slots, transport="off", purpose="train.persona")
            off += [_energy(from_ring(people.answer(u, clear, updates[u]).vector), clear) for u in people.users]
            masked = people.query(1000 + number, slots=size.slots, noise_multiplier=size.noise_multiplier)
            told = people.sum(masked, updates)
            on += [_energy(_masked(told.frames[user]), masked) for user in people.users]
        mu = float(2 * people.charged(people.users[0])) ** 0.5
    truth = np.array(list(slots.values()))
    chance = max(1 / size.slots, float(np.bincount(truth).max()) / size.people)
    allowed = allowed_guess(2 * mu, chance)
    return Attack(
        "persona",
        "which persona somebody belongs to",
        share(int((off.argmax(axis=1) == truth).sum()), size.people, "told from answers in the clear"),
        share(int((on.argmax(axis=1) == truth).sum()), size.people, "told from masked vectors"),
        chance,
        allowed,
        f"allowed up to {allowed:.2f} by mu = {mu:.2f} over all rounds; the largest persona holds {chance:.2f}",
    )


def _energy(vector: np.ndarray[tuple[int, ...], np.dtype[np.int64]], query: Query) -> Vector:
    """Return the square norm of each slot in an answer, float64 [slots]."""
    parts = vector[: query.slots * query.slot_dim].astype(np.float64).reshape(query.slots, query.slot_dim)
    energy: Vector = np.square(parts).sum(axis=1)
    return energy


def _masked(frames: Sequence[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    found = [message for message in map(decode, frames) if isinstance(message, Masked)]
    return from_ring(found[0].vector)
