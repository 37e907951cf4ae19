"""How much zCDP was spent within the last 365 days, when the clock is not to be trusted.

A year is any 365 days of 86,400 seconds, rolling: no time zone, no leap day, and no first of January on either side of
which a whole allowance could be spent. A charge falls out of the year 365 days after its date.

Two rules for the date, see `Meter.witnessed`:

* by the owner's clock: the time of its entry, which never runs backwards in a ledger. A clock set back wins nothing. A
  clock set forward by k years wins k allowances, never more than the lifetime cap, and cannot be taken back.
* by signed time: a charge is dated at the first signed time after it, and the present is the last signed time. The own
  clock decides nothing; a charge counts for longer than a year, by as much as signed times are apart.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Final

YEAR_MS: Final = 365 * 86_400_000


class Meter:
    """The dated charges of one ledger, in its order. Times are milliseconds since 1970 and never decrease."""

    def __init__(self) -> None:
        self.witnessed = False
        self.signed_ms = 0
        self._dated: deque[tuple[int, str, Fraction]] = deque()
        self._undated: list[tuple[str, Fraction]] = []
        self._void: set[str] = set()
        self._sum = Fraction(0)

    def charge(self, event: str, rho: Fraction, ts_ms: int) -> None:
        """Take a charge in; `event` is its name for `void`."""
        self._forget(ts_ms)
        self._sum += rho
        if self.witnessed:
            self._undated.append((event, rho))
        else:
            self._dated.append((ts_ms, event, rho))

    def void(self, event: str) -> None:
        """Take a charge back; once, and only one that was taken in."""
        left = [rho for _, name, rho in self._dated if name == event] + [
            r for name, r in self._undated if name == event
        ]
        if left:  # else it has fallen out of the year already
            self._void.add(event)
            self._sum -= left[0]

    def sign(self, signed_ms: int) -> None:
        """Take a signed time in; one that is not later than those before changes nothing."""
        if signed_ms > self.signed_ms:
            self.signed_ms = signed_ms
            self._date(signed_ms)

    def follow(self, *, witnessed: bool, ts_ms: int) -> None:
        """Change the rule: to signed time, and all charges wait for one to be dated; or to the clock, from `ts_ms`."""
        if witnessed and not self.witnessed:
            self._undated = [(event, rho) for _, event, rho in self._dated]
            self._dated.clear()
        elif self.witnessed and not witnessed:
            self._date(ts_ms)
        self.witnessed = witnessed

    def year_rho(self, now_ms: int) -> Fraction:
        """Return what was charged within the 365 days before the present, that of this meter's rule."""
        expired = Fraction(0)
        for date, event, rho in self._dated:
            if date > self._horizon(now_ms):
                break
            expired += rho if event not in self._void else 0
        return self._sum - expired

    def _horizon(self, now_ms: int) -> int:
        return (self.signed_ms if self.witnessed else now_ms) - YEAR_MS

    def _forget(self, now_ms: int) -> None:
        """Drop what fell out for good; only for a time that stands in the ledger, so that it cannot be taken back."""
        while self._dated and self._dated[0][0] <= self._horizon(now_ms):
            _, event, rho = self._dated.popleft()
            if event in self._void:
                self._void.discard(event)
            else:
                self._sum -= rho

    def _date(self, ts_ms: int) -> None:
        self._dated.extend((ts_ms, event, rho) for event, rho in self._undated)
        self._undated.clear()
