"""Two replies to one question, nobody says whose: the base model's and the personal one's, in an order that is drawn.

The person says which is better, then learns whose it was. What is counted is kept in the vault; the texts are not.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import comb

from client.speaker import BASE, PERSONAL
from client.vault import Vault
from privacy.errors import ConfigError

SETTING = "blind"
OPEN_PAIRS = 16
NEITHER = "neither"


@dataclass(frozen=True)
class Pair:
    """A question with its two replies in the order in which they are shown, and whose each is."""

    question: str
    replies: tuple[str, str]
    voices: tuple[str, str]
    documents: tuple[int, ...]


class Blind:
    """The pairs that wait for a verdict, in memory alone, and the count of verdicts, in the vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault, self._lock = vault, threading.Lock()
        self._pairs: dict[str, Pair] = {}

    def put(self, question: str, replies: Mapping[str, str], documents: tuple[int, ...]) -> tuple[str, Pair]:
        """Return a name for a pair of replies by voice, and the pair in an order that the system draws."""
        voices = (PERSONAL, BASE) if secrets.randbits(1) else (BASE, PERSONAL)
        pair = Pair(question, (replies[voices[0]], replies[voices[1]]), voices, documents)
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._pairs[name] = pair
            for old in list(self._pairs)[:-OPEN_PAIRS]:
                del self._pairs[old]
        return name, pair

    def verdict(self, name: str, better: int | None) -> Pair:
        """Count a verdict (place 0 or 1, None for neither) and return the pair; once for each. Raises ConfigError."""
        if better not in (0, 1, None):
            raise ConfigError("better is 0, 1 or nothing")
        with self._lock:
            pair = self._pairs.pop(name, None)
        if pair is None:
            raise ConfigError("this pair has its verdict, or is no more")
        counts = tally(self._vault)
        counts[NEITHER if better is None else pair.voices[better]] += 1
        self._vault.set_setting(SETTING, json.dumps(counts))
        return pair

    def forget(self) -> None:
        """Drop every pair that waits."""
        with self._lock:
            self._pairs.clear()


def tally(vault: Vault) -> dict[str, int]:
    """Return how often each voice was better, and how often neither."""
    kept = json.loads(vault.setting(SETTING, "{}"))
    return {name: int(kept.get(name, 0)) for name in (PERSONAL, BASE, NEITHER)}


def by_chance(wins: int, losses: int) -> float:
    """Return the chance of so uneven a count, either way, if neither were better: the two-sided sign test."""
    count = wins + losses
    if count == 0:
        return 1.0
    tail = sum(comb(count, k) for k in range(max(wins, losses), count + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**count)))
