"""Who shares secrets with whom: everybody up to 128 devices, above that the nearest on a ring in unforeseeable order.

Above 128 the devices of a roster stand on a ring, and each one's neighbours are the `reach` places before and after it
(a Harary graph, Bell et al. 2020, section 3.4). Let a *run* be `reach` consecutive places. One event carries the
privacy of the ring: **no run holds `run_floor` colluding devices**. It holds with probability 1 - 2^-40 over the order
of the ring. Every device then checks what a server could choose, namely who survives: each run must hold at least
`run_floor` survivors, so one honest survivor, so that the honest survivors stay connected and no part of them can be
cut out and summed apart. The order must be one that nobody chose; see `ring` for how far that holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb
from typing import Final

from privacy.errors import ConfigError
from privacy.query import Cohort

COMPLETE_UP_TO: Final = 128
PRIVACY_BITS: Final = 40
LIVENESS_BITS: Final = 20
DROPOUT: Final = (1, 5)  # a fifth of the invited may drop out at random without the run rule stopping the sum


@dataclass(frozen=True)
class Links:
    """The graph of one cohort: `reach` places on each side (0: everybody), the run rule, the threshold of shares."""

    reach: int
    run_floor: int
    threshold: int

    @property
    def complete(self) -> bool:
        """Return whether everybody is everybody's neighbour."""
        return self.reach == 0


@lru_cache(maxsize=256)
def links_of(cohort: Cohort) -> Links:
    """Return the graph that a cohort uses, a function of the number of invited alone.

    Up to 128: complete, threshold floor(2n/3) + 1. Above, with c colluding among as few as `min_survivors` of a roster
    (the worst place for privacy), the least `reach` h for which a `run_floor` f exists with

        n Pr[a run of h holds >= f colluding] <= 2^-40   and   n Pr[a run of h holds < f survivors] <= 2^-20,

    both hypergeometric, the second with a fifth of the invited dropped at random. `threshold` is the least t with
    n Pr[2 h neighbours hold >= t colluding] <= 2^-40; it is at most 2 f - 1, and the run rule leaves 2 f survivors
    around every place. Raises ConfigError if no such graph exists.
    """
    n, colluding, least = cohort.invited, cohort.max_colluding, cohort.min_survivors
    if n <= COMPLETE_UP_TO:
        return Links(0, 0, least)
    alive = n - n * DROPOUT[0] // DROPOUT[1]
    for reach in range(1, (least - 1) // 2):
        floor = least_unlikely(least, colluding, reach, n, PRIVACY_BITS)
        if floor <= reach and n * ways_below(n, alive, reach, floor) << LIVENESS_BITS <= comb(n, reach):
            threshold = least_unlikely(least - 1, colluding, 2 * reach, n, PRIVACY_BITS)
            return Links(reach, floor, min(threshold, 2 * floor - 1))
    raise ConfigError(f"no graph is safe for a cohort of {n}")


def least_unlikely(population: int, marked: int, drawn: int, tries: int, bits: int) -> int:
    """Return the least f with tries Pr[at least f marked among those drawn] <= 2^-bits, exactly (hypergeometric)."""
    allowed = comb(population, drawn)
    ways, floor = 0, min(drawn, marked) + 1
    while floor > 0:
        ways += comb(marked, floor - 1) * comb(population - marked, drawn - floor + 1)
        if tries * ways << bits > allowed:
            return floor
        floor -= 1
    return 0


def ways_below(population: int, marked: int, drawn: int, floor: int) -> int:
    """Return in how many ways fewer than `floor` marked are among those drawn."""
    return sum(comb(marked, i) * comb(population - marked, drawn - i) for i in range(floor))


@dataclass(frozen=True)
class Ring:
    """The neighbours of every rank of a roster of `size` devices; `order` holds the rank at each place of the ring."""

    size: int
    links: Links
    order: tuple[int, ...]

    @cached_property
    def _known(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def _place(self) -> tuple[int, ...]:
        place = [0] * self.size
        for at, rank in enumerate(self.order):
            place[rank] = at
        return tuple(place)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that `rank` shares secrets and masks with, ascending, without itself."""
        if rank not in self._known:  # a server asks for every pair
            near: Iterable[int] = range(self.size)
            if not self.links.complete:
                at, reach = self._place[rank], self.links.reach
                near = {self.order[(at + step) % self.size] for step in range(-reach, reach + 1)}
            self._known[rank] = tuple(sorted({*near} - {rank}))
        return self._known[rank]

    def every_run_holds(self, present: Sequence[bool]) -> bool:
        """Return whether each run of `reach` places has `run_floor` of the ranks `present`; no rule if complete."""
        if self.links.complete:
            return True
        around = [present[rank] for rank in self.order]
        held = sum(around[: self.links.reach])
        for at in range(self.size):
            if held < self.links.run_floor:
                return False
            held += around[(at + self.links.reach) % self.size] - around[at]
        return True


def ring(size: int, links: Links, roster_sha256: bytes) -> Ring:
    """Return the ring of a roster: its ranks sorted by H("confide/secagg/ring/1" | 0x00 | roster hash | rank u32).

    The roster hash covers every device's fresh keys and commitment, so no one device and no server fixes it alone. Not
    covered: a server that tries many choices of whom to leave out, or lets its own devices try many keys. Each try is
    another draw, so g bits of trying take g bits off `PRIVACY_BITS`.
    """
    if links.complete:
        return Ring(size, links, ())

    def drawn(rank: int) -> bytes:
        return hashlib.sha256(b"confide/secagg/ring/1\x00" + roster_sha256 + rank.to_bytes(4, "little")).digest()

    return Ring(size, links, tuple(sorted(range(size), key=drawn)))
