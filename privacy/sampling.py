"""Devices that flip their own coins: who takes part in a round is decided on the device, not by the server.

An optional mode. Somebody who reads only what is released, and cannot see who took part, learns less than the charges
say: amplification by Poisson sampling. The server sees who shows up, and so does the network: against them nothing is
gained, so the figure that devices enforce, and that stands first in every report, stays the one without amplification.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from privacy.canonical import canonical_json, sha256_hex
from privacy.errors import ConfigError
from privacy.noise import KeyStream
from privacy.query import Query

ASSUMES: Final = (
    "a reader of the release who does not see who took part in any round; every device flipped its own secret coin,"
    " once a round; where more came than the cap, those dropped were drawn at random. Not against the server or the"
    " network: against them the figure without amplification stands"
)


def takes_part(noise_key: bytes, query: Query, device_id: str) -> bool:
    """Return what the device's coin says to `query`: yes with probability `query.sampling.rate`, without one always.

    One word w of the stream named H(canonical(["confide-coin/1", federation, campaign, round, purpose, device])) under
    the device's noise key, yes if w / 2^64 < rate (exact to 2^-64). The attempt is left out, and so is the mechanism:
    asked again, in whatever words, the device says the same, so that a server that dislikes an outcome cannot have the
    coin thrown again. Nobody without the key can predict it; whoever sees the device answer knows it.
    """
    if query.sampling is None:
        return True
    place = ["confide-coin/1", query.federation, query.campaign, query.round, query.purpose, device_id]
    name = bytes.fromhex(sha256_hex(canonical_json(place)))
    word = int(KeyStream(noise_key, name).candidates(0, 1)[0, 0])
    return word < query.sampling.rate * 2**64


def sampled_rounds(queries: Sequence[Query]) -> bool:
    """Return whether amplification may be stated for a release made of exactly these queries: sampled, one a round."""
    places = Counter((query.campaign, query.round, query.purpose) for query in queries)
    sampled = all(query.private and query.sampling is not None for query in queries)
    return bool(queries) and sampled and max(places.values()) == 1


def epsilon_sampled(queries: Sequence[Query], delta: float) -> float:
    """Return the epsilon at `delta` for a reader who does not see who took part in the rounds `queries`.

    Of all rounds whose sums were used, not only those in which somebody took part. By dp-accounting's privacy loss
    distributions of the truncated, Poisson-subsampled Gaussian (arXiv:2508.15089), people N, rate q, and as cap the
    invited; without a cap that can bind, of the Poisson-subsampled one. For the continuous Gaussian of the same noise
    multiplier, add-or-remove; a figure to report, it decides nothing. Raises ConfigError unless `sampled_rounds`.
    """
    return _epsilons(queries, [delta])[0]


def sampling_rows(queries: Sequence[Query], deltas: Sequence[float]) -> dict[str, object]:
    """Return what a statement says about sampling: the rates, epsilon by delta, and against whom alone it holds."""
    return {
        "rate": sorted({float(query.sampling.rate) for query in queries if query.sampling is not None}),
        "people": min(query.sampling.people for query in queries if query.sampling is not None),
        "rounds": len(queries),
        "epsilon": {repr(delta): value for delta, value in zip(deltas, _epsilons(queries, deltas), strict=True)},
        "holds_against": ASSUMES,
    }


def _epsilons(queries: Sequence[Query], deltas: Sequence[float]) -> list[float]:
    from dp_accounting import (  # here: it takes a second
        GaussianDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
        TruncatedSubsampledGaussianDpEvent,
    )
    from dp_accounting.pld import PLDAccountant

    if not sampled_rounds(queries):
        raise ConfigError("amplification needs rounds that are all sampled by the devices, private, and one sum each")
    counts: Counter[tuple[int, Fraction, int, Fraction]] = Counter()
    for query in queries:
        assert query.sampling is not None
        counts[(query.sampling.people, query.sampling.rate, query.cohort.invited, query.noise_multiplier)] += 1
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for (people, rate, cap, noise), count in counts.items():
        if cap >= people:
            accountant.compose(PoissonSampledDpEvent(float(rate), GaussianDpEvent(float(noise))), count)
        else:
            event = TruncatedSubsampledGaussianDpEvent(people, float(rate), cap, float(noise))
            accountant.compose(event, count)
    return [float(accountant.get_epsilon(delta)) for delta in deltas]
