"""What the server rebuilds from shares: secrets that match their commitments, or nothing; and who lied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Final

from privacy.errors import CohortTooSmall, SumInvalid
from privacy.secagg.shamir import joined_secret

MAX_TRIES: Final = 2000  # sets of shares that are tried for one secret before the sum is given up


@dataclass
class Recovery:
    """Rebuilds secrets of one sum; `liars` collects the places whose shares did not fit a secret that was proven.

    A share that does not fit was falsified by whoever gave it or by whoever dealt it: nobody else can tell which, so a
    dealer with false shares at several places and a place with false shares of several dealers are both visible here.
    """

    threshold: int
    liars: dict[int, set[int]] = field(default_factory=dict)

    def secret(self, dealer: int, shares: Mapping[int, bytes], proven: Callable[[bytes], bool]) -> bytes:
        """Return the secret that `dealer` shared, from shares by place, if one is `proven` by its commitment.

        Raises CohortTooSmall for fewer shares than the threshold, SumInvalid if no set of them gives the secret.
        """
        if len(shares) < self.threshold:
            raise CohortTooSmall(
                f"{len(shares)} shares of a device's secret, {self.threshold} are needed: no sum is released"
            )
        order = sorted(shares, key=lambda place: (len(self.liars.get(place, ())), place))
        for tries, places in enumerate(islice(_sets(order, self.threshold), MAX_TRIES)):
            secret = joined_secret(places, [shares[place] for place in places])
            if proven(secret):
                if tries or self.liars:  # without a failure there is no reason to look for its cause
                    self._note(dealer, places, shares)
                return secret
        raise SumInvalid("no set of shares gives a secret that its commitment proves: the sum stays masked")

    def _note(self, dealer: int, places: tuple[int, ...], shares: Mapping[int, bytes]) -> None:
        """Note every place whose share is not on the polynomial through the shares of a proven secret."""
        given = [shares[place] for place in places]
        for place in shares.keys() - set(places):
            if joined_secret(places, given, at=place) != shares[place]:
                self.liars.setdefault(place, set()).add(dealer)


def _sets(order: list[int], size: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of `size` places, first those without the places at the end of `order`, then with any few left out."""
    for left_out in range(len(order) - size + 1):
        for missing in combinations(order, left_out):
            kept = (place for place in order if place not in missing)
            yield tuple(sorted(islice(kept, size)))
