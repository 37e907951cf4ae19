"""Layer 3: one sum, many canary people, each in it or not by a coin; can it be told who was?

Steinke, Nasr, Jagielski 2023, with people for records as in Andrew et al. 2023 (arXiv:2302.03098): a canary person
answers along a direction of its own, or answers zero. Scores are projections of the released sum; the highest are
guessed in, the lowest out. How many guesses are right bounds epsilon from below, whatever the mechanism is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist

import numpy as np

from privacy.accounting import epsilon_gdp
from privacy.audit.bounds import all_right_epsilon, least_right, normal_tail, one_run_epsilon
from privacy.errors import ConfigError
from simulation.mechanism.layer import Check, Layer, guarded
from simulation.mechanism.people import People, Vector, layout_of

DELTA = 1e-5
TOO_LONG = 100.0  # canaries are as many clips long, so that a clip that lets more through shows


@dataclass(frozen=True)
class Size:
    """How many canary people, over four cores of `rank`; the noise is that of an epsilon near 1."""

    people: int = 256
    rank: int = 32
    noise_multiplier: Fraction = Fraction(4)


def directions(people: int, dim: int) -> Vector:
    """Return an orthonormal direction for each person, float64 [people, dim], spread over all numbers: signs of Walsh.

    Raises ConfigError unless `dim` is a power of two with room for all.
    """
    if dim & (dim - 1) or people >= dim:
        raise ConfigError("directions need a power of two of numbers, more than people")
    places, rows = np.arange(dim, dtype=np.uint64), np.arange(1, people + 1, dtype=np.uint64)
    parity = np.bitwise_count(rows[:, None] & places[None, :]) & 1
    signs: Vector = (1.0 - 2.0 * parity) / np.sqrt(dim)
    return signs


def one_run(folder: Path, root: bytes, coins: np.random.Generator, size: Size, false_alarm: float) -> Layer:
    """Return the layer; `coins` decides who is in."""
    started = time.monotonic()
    right, claimed = 0, 0.0
    guesses = size.people // 2

    def look() -> Iterator[Check]:
        nonlocal right, claimed
        with People(folder / "one-run", size.people, layout_of(size.rank), root) as people:
            rows, inside = directions(size.people, people.layout.dim), coins.random(size.people) < 0.5
            query = people.query(0, noise_multiplier=size.noise_multiplier)
            length = TOO_LONG * float(query.clip_norm)
            chosen = zip(people.users, rows, inside, strict=True)
            told = people.sum(query, {user: length * row for user, row, is_in in chosen if is_in})
            claimed = epsilon_gdp(max(map(people.charged, people.users)), DELTA)
        order = np.argsort(rows @ told.total)
        half = guesses // 2
        right = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())
        shown = one_run_epsilon(size.people, guesses, right, DELTA, false_alarm)
        detail = f"{right} of {guesses} guesses right: epsilon at least {shown:.2f}, the ledgers say {claimed:.2f}"
        yield Check("who was in the sum", shown <= claimed, detail)

    checks = guarded("who was in the sum", look)
    return Layer(
        name="one run",
        quantity=f"epsilon at delta {DELTA:g} of one sum",
        lower_bound=one_run_epsilon(size.people, guesses, right, DELTA, false_alarm),
        claimed=claimed,
        ceiling=all_right_epsilon(size.people, guesses, DELTA, false_alarm),
        power=power_of(size, guesses, claimed, false_alarm),
        false_alarm=false_alarm,
        checks=tuple(checks),
        seconds=time.monotonic() - started,
    )


def power_of(size: Size, guesses: int, claimed: float, false_alarm: float) -> str:
    """Return in words which fraction of the noise, if that were all, would be found with probability 0.8."""
    needed = least_right(size.people, guesses, claimed, DELTA, false_alarm)
    if needed > guesses:
        return f"none: {guesses} guesses, even all right, refute no epsilon of {claimed:.2f}"
    honest = 2 * size.people // 3 + 1 - size.people // 10
    noise = float(size.noise_multiplier) * (size.people / honest) ** 0.5
    for percent in range(99, 0, -1):
        hit = guess_rate(100 / (percent * noise), guesses / size.people)
        spread = (hit * (1 - hit) / guesses) ** 0.5
        if normal_tail((needed - 0.5 - guesses * hit) / max(guesses * spread, 1e-9)) >= 0.8:
            return f"finds a mechanism with {percent} % of its noise or less with probability 0.8"
    return "finds only a mechanism without noise"


def guess_rate(distance: float, share: float) -> float:
    """Return how often a guess is right when in and out lie `distance` deviations apart and `share` are guessed at."""
    normal = NormalDist()
    low, high = -10.0, 10.0 + distance
    for _ in range(60):
        middle = (low + high) / 2
        above = (1 - normal.cdf(middle) + 1 - normal.cdf(middle - distance)) / 2
        low, high = (middle, high) if above > share / 2 else (low, middle)
    inside = 1 - normal.cdf(low - distance)
    return inside / max(inside + 1 - normal.cdf(low), 1e-300)
