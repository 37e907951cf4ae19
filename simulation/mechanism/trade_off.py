"""Layer 4: false alarms against misses over many sums, beside the trade-off that the charges allow.

A person answers along a direction of its own, or zero, by a coin, round after round; the adversary thresholds the
projection of what was released at half a clip, fixed beforehand. Upper limits of both error rates give a lower bound on
mu of Gaussian differential privacy (Dong, Roth, Su 2022), and mu is what the ledgers' rho allows, sqrt(2 rho). Every
attempt of a round is one more look for the adversary, and must be one more charge.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from privacy.audit.bounds import all_right_mu, gaussian_mu, normal_tail
from simulation.mechanism.layer import Check, Layer, guarded
from simulation.mechanism.one_run import TOO_LONG, directions
from simulation.mechanism.people import People, Vector, layout_of, least_survivors

THRESHOLD = 0.5


@dataclass(frozen=True)
class Size:
    """How many rounds, of how many attempts each; the attempts of one round together cost rho 1/2, so mu 1."""

    people: int = 12
    rank: int = 16
    rounds: int = 256
    attempts: int = 2


@dataclass
class _Counts:
    """Errors of one attack: alarms for who was out, misses of who was in."""

    alarms: int = 0
    outs: int = 0
    misses: int = 0
    ins: int = 0

    def add(self, scores: Vector, inside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> None:
        """Take in scores in units of the clip, float64 [people], and who was in."""
        guessed = scores > THRESHOLD
        self.alarms, self.outs = self.alarms + int(guessed[~inside].sum()), self.outs + int((~inside).sum())
        self.misses, self.ins = self.misses + int((~guessed[inside]).sum()), self.ins + int(inside.sum())

    def mu(self, error: float) -> float:
        """Return the lower bound on mu."""
        return gaussian_mu(self.alarms, self.outs, self.misses, self.ins, error) if self.outs and self.ins else 0.0


@dataclass
class _Attack:
    """Two adversaries: one averages the attempts of a round; one takes the sum of the next round away from it."""

    mean: _Counts = field(default_factory=_Counts)
    difference: _Counts = field(default_factory=_Counts)
    given: int = 0
    charged: int = 0
    mu: float = 0.0


def trade_off(folder: Path, root: bytes, coins: np.random.Generator, size: Size, false_alarm: float) -> Layer:
    """Return the layer; `coins` decides who is in, round by round."""
    started, attack = time.monotonic(), _Attack()
    error = false_alarm / 2
    checks = guarded("false alarms and misses", lambda: _checks(folder, root, coins, size, error, attack))
    samples = size.rounds * (2 * size.people // 3 + 1) // 2
    return Layer(
        name="trade-off",
        quantity="mu of one round, all attempts together",
        lower_bound=attack.mean.mu(error),
        claimed=attack.mu,
        ceiling=all_right_mu(samples, samples, error),
        power=power_of(size, samples, error),
        false_alarm=false_alarm,
        checks=tuple(checks),
        seconds=time.monotonic() - started,
    )


def _checks(
    folder: Path, root: bytes, coins: np.random.Generator, size: Size, error: float, attack: _Attack
) -> Iterator[Check]:
    with People(folder / "trade-off", size.people, layout_of(size.rank), root) as people:
        _observe(people, coins, size, attack)
        attack.charged = people.devices[people.users[0]].ledger.account.participations()
        rho = max(map(people.charged, people.users)) / size.rounds
    attack.mu = math.sqrt(2 * rho)
    shown, other = attack.mean.mu(error), attack.difference.mu(error)
    counts = attack.mean
    detail = f"{counts.alarms} of {counts.outs} false alarms, {counts.misses} of {counts.ins} misses: "
    yield Check(
        "false alarms and misses",
        shown <= attack.mu,
        f"{detail}mu at least {shown:.2f}, the ledgers say {attack.mu:.2f}",
    )
    yield Check(
        "one round less the next",
        other <= attack.mu * math.sqrt(2),
        f"mu at least {other:.2f}, the ledgers say {attack.mu * math.sqrt(2):.2f} for both",
    )
    same = attack.given == attack.charged
    yield Check("every answer is charged", same, f"{attack.given} answers given, {attack.charged} in the ledger")


def _observe(people: People, coins: np.random.Generator, size: Size, attack: _Attack) -> None:
    """Run the rounds: scores of an attempt are projections in units of S; a round's are the mean over its attempts."""
    rows = directions(size.people, people.layout.dim)
    multiplier = Fraction(math.isqrt(size.attempts * 10**12), 10**6)  # z^2 = attempts, so that mu is 1 for a round
    before: tuple[Vector, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]] | None = None
    for number in range(size.rounds):
        inside, scores = coins.random(size.people) < 0.5, np.zeros(size.people)
        for attempt in range(size.attempts):
            query = people.query(number, attempt=attempt, noise_multiplier=multiplier)
            length = TOO_LONG * float(query.clip_norm)
            chosen = zip(people.users, rows, inside, strict=True)
            updates = {user: length * row for user, row, is_in in chosen if is_in}
            told = people.sum(query, updates, least_survivors(people.users, query))
            scores += rows @ told.total / (query.integer_clip * size.attempts)
            attack.given += 1
        alive = np.isin(people.users, told.survivors)
        attack.mean.add(scores[alive], inside[alive])
        if before is not None:
            compared = alive & ~inside
            attack.difference.add((before[0] - scores)[compared], before[1][compared])
        before = scores, inside


def power_of(size: Size, samples: int, error: float) -> str:
    """Return in words which fraction of the noise, if that were all, the expected counts would refute."""
    honest = 2 * size.people // 3 + 1 - size.people // 10
    noise = math.sqrt((2 * size.people // 3 + 1) / honest)
    for percent in range(99, 0, -1):
        wrong = round(samples * normal_tail(100 * THRESHOLD / (percent * noise)))
        if gaussian_mu(wrong, samples, wrong, samples, error) > 1:
            return f"finds a mechanism with {percent} % of its noise or less, at the expected counts"
    return "finds only a mechanism without noise" if all_right_mu(samples, samples, error) > 1 else "none"
