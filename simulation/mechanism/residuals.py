"""Layer 1: known inputs go in, the sum comes out, and what is left over must be the noise that was promised.

    r = sum - sum_i rint(s u_i)   over the survivors,     r_j ~ N(0, m (z S)^2 / honest)

z is the query's, honest = floor(2n/3) + 1 - floor(n/10) is computed here, from the claim; m survived. Too little noise,
too much, noise that comes again, that two devices or two slots share, or that follows from something public, shows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.audit.bounds import (
    chi_squared_p_value,
    deviation_bound,
    kolmogorov_p_value,
    normal_tail,
    seen_shortfall,
)
from privacy.query import Query
from privacy.secagg.messages import Masked
from privacy.wire import decode
from simulation.mechanism.keys import derived_keys
from simulation.mechanism.layer import Check, Layer, guarded
from simulation.mechanism.people import People, Told, Vector, layout_of, least_survivors

MOST: Final = 1e6  # what is stated where no noise at all is left, instead of infinity
LAGS: Final = 8
SLOTS: Final = 3
SHAPE_SAMPLE: Final = 20_000


@dataclass(frozen=True)
class Size:
    """How much the layer looks at: `rounds` sums of `people` vectors over four cores of `rank`; `mask_keys` derived."""

    people: int = 12
    rank: int = 128
    rounds: int = 16
    mask_keys: int = 2**18


def residuals(folder: Path, root: bytes, size: Size, false_alarm: float) -> Layer:
    """Return the layer; `root` is the noise root of the audited devices, `false_alarm` its rate over all checks."""
    started, measured = time.monotonic(), _Measured()
    error = false_alarm / 12
    with People(folder / "residuals", size.people, layout_of(size.rank), root) as people:
        checks = guarded("sums", lambda: _sums(people, size, error, measured))
        checks += guarded("slots", lambda: _slots(people, size, error))
        checks += guarded("each device", lambda: _devices(people, error))
        checks += guarded("second attempt", lambda: _second_attempt(people, error))
    checks += guarded("keys", lambda: derived_keys(folder / "keys", root, size.mask_keys))
    freedom = max(1, measured.freedom)
    return Layer(
        name="residuals",
        quantity="rho of one sum, by the noise that is in it",
        lower_bound=measured.rho(error),
        claimed=0.5,
        ceiling=None,
        power=f"noise below {seen_shortfall(freedom, error):.4f} of what is promised is found with probability 0.8 "
        f"({freedom:,} residuals)",
        false_alarm=false_alarm,
        checks=tuple(checks),
        seconds=time.monotonic() - started,
    )


@dataclass
class _Measured:
    """Residuals in units of what is promised for a sum over the honest alone: their number and sum of squares."""

    freedom: int = 0
    squares: float = 0.0

    def rho(self, error: float) -> float:
        """Return the rho that the noise found can at least not better, 1 / (2 z_up^2)."""
        if not self.freedom:
            return 0.0
        return min(MOST, 0.5 / max(deviation_bound(self.squares, self.freedom, error), 1e-9) ** 2)


def promised_deviation(query: Query, survivors: int) -> float:
    """Return the noise's deviation in a sum of so many answers, from the claim alone: z S sqrt(survivors / honest)."""
    invited = query.cohort.invited
    honest = 2 * invited // 3 + 1 - invited // 10
    return float(query.noise_multiplier) * query.integer_clip * math.sqrt(survivors / honest)


def known_updates(users: Sequence[str], query: Query, rng: np.random.Generator) -> dict[str, Vector]:
    """Return an update for each user, random and half as long as the clip, so that no clip touches it."""
    rows = rng.normal(size=(len(users), query.slot_dim))
    rows *= float(query.clip_norm) / 2 / np.linalg.norm(rows, axis=1, keepdims=True)
    return dict(zip(users, rows, strict=True))


def rounded(query: Query, update: Vector) -> NDArray[np.int64]:
    """Return an update that needs no clip in integer units, by the definition."""
    return np.rint(update * float(query.integer_clip / query.clip_norm)).astype(np.int64)


def left_over(told: Told, updates: dict[str, Vector]) -> Vector:
    """Return the sum's residuals in units of the promised deviation, float64 [dim]."""
    known = sum((rounded(told.query, updates[user]) for user in told.survivors), np.zeros(told.query.dim, np.int64))
    return (told.total - known) / promised_deviation(told.query, len(told.survivors))


def _sums(people: People, size: Size, error: float, measured: _Measured) -> Iterator[Check]:
    """Check size, mean, freshness and shape of the noise in masked sums, every second one at the floor of survivors."""
    rng, rows, masked = np.random.default_rng(11), list[Vector](), np.zeros(256)
    for number in range(size.rounds):
        query = people.query(number)
        updates = known_updates(people.users, query, rng)
        told = people.sum(query, updates, least_survivors(people.users, query) if number % 2 else ())
        rows.append(left_over(told, updates))
        masked += _masked_bytes(told)
    values = np.concatenate(rows)
    measured.freedom, measured.squares = len(values), float(values @ values)
    ratio = math.sqrt(measured.squares / measured.freedom)
    p_value = chi_squared_p_value(measured.squares, measured.freedom)
    yield Check("noise of a sum", p_value >= error, f"{ratio:.4f} of the promised deviation (p {p_value:.2g})")
    shift = float(values.sum()) / math.sqrt(len(values))
    yield Check("mean of the noise", 2 * normal_tail(abs(shift)) >= error, f"{shift:+.2f} standard errors from zero")
    yield _fresh("between rounds", rows, error)
    lags = [float(row[lag:] @ row[:-lag]) / math.sqrt(len(row) - lag) for row in rows for lag in range(1, LAGS + 1)]
    yield _largest("within a vector", lags, error, "lag by lag")
    p_value = kolmogorov_p_value(values[:SHAPE_SAMPLE])
    yield Check("shape of the noise", p_value >= error, f"against a Gaussian: p {p_value:.2g}")
    expected = masked.sum() / 256
    p_value = chi_squared_p_value(float(((masked - expected) ** 2).sum() / expected), 255)
    yield Check("masked vectors", p_value >= error, f"bytes of single devices against uniform: p {p_value:.2g}")


def _masked_bytes(told: Told) -> Vector:
    """Return how often each byte value stands in the masked vectors that the server holds, float64 [256]."""
    messages = (decode(frame) for frames in told.frames.values() for frame in frames)
    data = b"".join(message.vector.tobytes() for message in messages if isinstance(message, Masked))
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256).astype(np.float64)


def _slots(people: People, size: Size, error: float) -> Iterator[Check]:
    """Check that every slot, and the weights, carry the whole noise whichever slot a person chose."""
    rng, squares, freedom = np.random.default_rng(12), np.zeros(SLOTS + 1), np.zeros(SLOTS + 1, int)
    people.learner.slot_of = {user: i % SLOTS for i, user in enumerate(people.users)}
    for number in range(max(2, size.rounds // 4)):
        query = people.query(10_000 + number, slots=SLOTS)
        plain = known_updates(people.users, query, rng)
        told = people.sum(query, plain)
        full = {user: _in_slot(query, update, people.learner.slot_of[user]) for user, update in plain.items()}
        row = left_over(told, full)
        places = [row[k * query.slot_dim : (k + 1) * query.slot_dim] for k in range(SLOTS)]
        for k, part in enumerate([*places, row[SLOTS * query.slot_dim :]]):
            squares[k], freedom[k] = squares[k] + part @ part, freedom[k] + part.size
    people.learner.slot_of = {}
    p_values = [chi_squared_p_value(float(s), int(f)) for s, f in zip(squares[:SLOTS], freedom, strict=False)]
    ratios = ", ".join(f"{math.sqrt(s / f):.3f}" for s, f in zip(squares, freedom, strict=True))
    holds = min(p_values) >= error / (SLOTS + 1) and 0.02 < squares[SLOTS] / freedom[SLOTS] < 6
    yield Check("every slot", holds, f"{ratios} of the promised deviation in slots and weights")


def _in_slot(query: Query, update: Vector, slot: int) -> Vector:
    """Return what a device of this slot should send, by the definition: the update there, a weight of c / 4."""
    vector = np.zeros(query.dim)
    vector[slot * query.slot_dim : (slot + 1) * query.slot_dim] = update
    vector[SLOTS * query.slot_dim + slot] = float(query.clip_norm) / 4
    return vector


def _devices(people: People, error: float) -> Iterator[Check]:
    """Check each device's own share of the noise, seen in the clear, and that no two devices share it."""
    query = people.query(20_000, transport="ideal")
    updates = known_updates(people.users, query, np.random.default_rng(13))
    unit = promised_deviation(query, 1)
    rows = [
        (people.integers(user, query, updates[user]) - rounded(query, updates[user])) / unit for user in people.users
    ]
    p_values = [chi_squared_p_value(float(row @ row), row.size) for row in rows]
    worst = int(np.argmin(p_values))
    detail = f"the furthest has {float(np.std(rows[worst])):.3f} of its share (p {p_values[worst]:.2g})"
    yield Check("noise of each device", min(p_values) >= error / len(rows), detail)
    yield _fresh("between devices", rows, error)


def _second_attempt(people: People, error: float) -> Iterator[Check]:
    """Check that a round that is asked again, in a new attempt, is answered with new noise and charged again."""
    updates = known_updates(people.users, people.query(0), np.random.default_rng(14))
    before = people.charged(people.users[0])
    first, second = (people.sum(people.query(30_000, attempt=attempt), updates) for attempt in (0, 1))
    yield _fresh("a second attempt", [left_over(first, updates), left_over(second, updates)], error)
    cost = people.charged(people.users[0]) - before
    yield Check("its charge", cost == 1, f"two attempts at z = 1 were charged rho {cost}, 1 is right")


def _fresh(name: str, rows: Sequence[Vector], error: float) -> Check:
    pairs = [float(a @ b) / math.sqrt(a.size) for a, b in combinations(rows, 2)]
    return _largest(name, pairs, error, "pair by pair")


def _largest(name: str, scores: Sequence[float], error: float, how: str) -> Check:
    """Return whether the largest of standard normal scores is one that chance brings, at `error` over all of them."""
    limit = NormalDist().inv_cdf(1 - error / (2 * len(scores)))
    found = max(map(abs, scores))
    return Check(name, found <= limit, f"largest correlation {how}: {found:.2f} standard errors, chance {limit:.2f}")
