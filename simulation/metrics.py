"""From summed nats to arms, comparisons and intervals: all that the report says about utility.

    bits per token of an arm = sum_{people, documents} nats / (ln 2 * sum tokens)        (weighted by tokens)
    gain of arm a against b  = 1 - sum nats_a / sum nats_b     over what both scored     (positive: a is better)

Every comparison is paired: it uses the documents that both arms scored, and refuses two different token counts for one
document, since a gain from skipping hard tokens is no gain. People are the unit of chance: intervals resample people,
never documents. Pure functions of numpy arrays; randomness is a `numpy.random.Generator` that the caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privacy.errors import DataError
from simulation.report_schema import Arm, ArmGain, Comparison, Interval, PersonRow

RESAMPLES = 2000
CONFIDENCE = 0.95
DEFAULT_PAIRS = (
    ("persona", "global"),
    ("mixture", "global"),
    ("own", "global"),
    ("own", "wrong_person"),
    ("all", "global"),
    ("own_record_dp", "own"),
    ("global", "global_noiseless"),
)
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Score:
    """The code length of one person's targets in one document under one arm.

    `nats` is the sum of -ln p over `tokens` target tokens. `document` may be empty where a person is scored as a whole.
    """

    user: str
    document: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Two arms on the same documents, summed by person: `users` in order, float64 [n] each; `tokens` int64 [n]."""

    users: tuple[str, ...]
    nats: NDArray[np.float64]
    nats_against: NDArray[np.float64]
    tokens: NDArray[np.int64]


Arms: TypeAlias = Mapping[str, Sequence[Score]]


def pair(arm: Iterable[Score], against: Iterable[Score]) -> Paired:
    """Return both arms' sums by person over the documents that both scored, people in sorted order.

    People without a common document, or without a token there, are left out. Raises DataError where one arm scored a
    document twice, where the two count its tokens differently, or where a score is negative, infinite or NaN.
    """
    ours, theirs = _by_document(arm), _by_document(against)
    sums: dict[str, tuple[float, float, int]] = {}
    for key in sorted(ours.keys() & theirs.keys()):
        a, b = ours[key], theirs[key]
        if a.tokens != b.tokens:
            raise DataError(f"document {a.document!r}: scored on {a.tokens} tokens by one arm, {b.tokens} by another")
        x, y, count = sums.get(a.user, (0.0, 0.0, 0))
        sums[a.user] = (x + a.nats, y + b.nats, count + a.tokens)
    kept = {user: row for user, row in sums.items() if row[2] > 0}
    columns = np.array(list(kept.values()), dtype=np.float64).reshape(len(kept), 3)
    return Paired(tuple(kept), columns[:, 0], columns[:, 1], columns[:, 2].astype(np.int64))


def _by_document(scores: Iterable[Score]) -> dict[tuple[str, str], Score]:
    found: dict[tuple[str, str], Score] = {}
    for score in scores:
        if not math.isfinite(score.nats) or score.nats < 0 or score.tokens < 0:
            raise DataError(f"document {score.document!r}: {score.nats} nats over {score.tokens} tokens is no score")
        if found.setdefault((score.user, score.document), score) is not score:
            raise DataError(f"document {score.document!r} is scored twice in one arm")
    return found


def bits_per_token(scores: Iterable[Score]) -> float:
    """Return sum nats / (ln 2 * sum tokens); raises DataError where there is no token."""
    rows = list(_by_document(scores).values())
    tokens = sum(score.tokens for score in rows)
    if tokens == 0:
        raise DataError("an arm without a single scored token has no bits per token")
    return math.fsum(score.nats for score in rows) / math.log(2) / tokens


def relative_gain(paired: Paired, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Interval:
    """Return 1 - sum nats / sum nats_against with the 95 % interval of a paired bootstrap over people.

    Each of `resamples` draws takes n people with replacement, with both of their sums, and computes the ratio of the
    totals again. Low and high are *expanded* percentiles: the tail is Phi(-sqrt(n/(n-1)) * t_{0.975, n-1}) in place of
    2.5 %, which corrects the plain percentile interval's shortness for few people (1.4 % in place of 2.5 % at n = 16;
    Hesterberg 2015, arXiv:1411.5279). It holds asymptotically: for 16 people about 93 % of the intervals hold the truth
    (measured), fewer for a handful of people or where a few have most of the tokens. For one person both are None.
    Raises DataError where nobody was scored by both arms.
    """
    n = len(paired.users)
    total_against = float(paired.nats_against.sum())
    if n == 0 or total_against <= 0:
        raise DataError("nobody was scored by both arms: no gain to speak of")
    value = 1.0 - float(paired.nats.sum()) / total_against
    if n == 1:
        return {"value": value, "low": None, "high": None}
    gains = _resampled_gains(paired, rng, resamples)
    tail = expanded_tail(n)
    low, high = np.quantile(gains, [tail, 1.0 - tail])
    return {"value": value, "low": float(low), "high": float(high)}


def _resampled_gains(paired: Paired, rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """float64 [resamples]: how often each person is drawn is multinomial, so a draw is one row times two columns."""
    n = len(paired.users)
    both = np.column_stack([paired.nats, paired.nats_against])
    at_once = max(1, _DRAWS_AT_ONCE // n)
    parts = [
        rng.multinomial(n, np.full(n, 1.0 / n), size=min(at_once, resamples - start)) @ both
        for start in range(0, resamples, at_once)
    ]
    totals = np.concatenate(parts)
    ratios: NDArray[np.float64] = 1.0 - totals[:, 0] / np.maximum(totals[:, 1], np.finfo(np.float64).tiny)
    return ratios


def expanded_tail(people: int) -> float:
    """Return the percentile that makes a bootstrap interval over `people` >= 2 as wide as a t interval's.

    Phi(-sqrt(n/(n-1)) * t_{0.975, n-1}); tends to 0.025 for many people.
    """
    t = float(special.stdtrit(people - 1, 0.5 + CONFIDENCE / 2))
    return float(special.ndtr(-math.sqrt(people / (people - 1)) * t))


def compare(arms: Arms, arm: str, against: str, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Comparison:
    """Return how much better `arm` is than `against` on what both scored; raises DataError where that is nothing."""
    paired = pair(arms[arm], arms[against])
    return {
        "arm": arm,
        "against": against,
        "users": len(paired.users),
        "users_improved": float(np.mean(paired.nats < paired.nats_against)) if paired.users else 0.0,
        "users_worse": int(np.sum(paired.nats > paired.nats_against)),
        "tokens": int(paired.tokens.sum()),
        "relative_gain": relative_gain(paired, rng, resamples=resamples),
    }


def comparisons(
    arms: Arms,
    rng: np.random.Generator,
    *,
    pairs: Iterable[tuple[str, str]] = DEFAULT_PAIRS,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Return `compare` for each of `pairs` of which both arms are there and share a scored person."""
    return [
        compare(arms, arm, against, rng, resamples=resamples)
        for arm, against in pairs
        if arm in arms and against in arms and pair(arms[arm], arms[against]).users
    ]


def summarise(arms: Arms, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> dict[str, Arm]:
    """Return `report["arms"]`: one entry per arm that scored a token, gains against "base" on the same tokens.

    People are counted as improved or worse against "global"; global itself, and every arm of a run without one, against
    "base". Draws from `rng` in the sorted order of the names, so that equal seeds give equal reports.
    """
    return {
        name: _summary(arms, name, rng, resamples)
        for name in sorted(arms)
        if any(score.tokens > 0 for score in arms[name])
    }


def _summary(arms: Arms, name: str, rng: np.random.Generator, resamples: int) -> Arm:
    scores = arms[name]
    against_base = pair(scores, arms.get("base", ()))
    reference = next((other for other in ("global", "base") if other in arms and other != name), None)
    against = pair(scores, arms[reference]) if reference else pair((), ())
    compared = len(against.users)
    shared_tokens = int(against_base.tokens.sum())
    return {
        "bits_per_token": bits_per_token(scores),
        "base_bits_per_token": _bits(against_base.nats_against.sum(), shared_tokens) if shared_tokens else None,
        "tokens": sum(score.tokens for score in scores),
        "users": len({score.user for score in scores if score.tokens > 0}),
        "compared_with": reference,
        "users_compared": compared,
        "users_improved": float(np.mean(against.nats < against.nats_against)) if compared else None,
        "users_worse": int(np.sum(against.nats > against.nats_against)),
        **_gain(relative_gain(against_base, rng, resamples=resamples) if shared_tokens else None),
    }


def _gain(interval: Interval | None) -> ArmGain:
    if interval is None:
        return {"relative_gain": None, "low": None, "high": None}
    return {"relative_gain": interval["value"], "low": interval["low"], "high": interval["high"]}


def _bits(nats: float, tokens: int) -> float:
    return float(nats) / math.log(2) / tokens


def person_rows(arms: Arms, history_tokens: Mapping[str, int]) -> list[PersonRow]:
    """Return `report["people"]`: each person's bits per token in every arm that scored them, on the same documents.

    A person's figures use the documents common to all arms that scored that person, so that a row can be read across.
    Sorted by name. `history_tokens` gives the own tokens to learn from; who is not in it has none. Raises as `pair`.
    """
    by_arm = {name: _by_document(scores) for name, scores in arms.items()}
    documents: dict[str, dict[str, set[str]]] = {}
    for name, found in by_arm.items():
        for user, document in found:
            documents.setdefault(user, {}).setdefault(name, set()).add(document)
    rows = (_person_row(user, names, by_arm, history_tokens.get(user, 0)) for user, names in sorted(documents.items()))
    return [row for row in rows if row["test_tokens"] > 0]


def _person_row(
    user: str, documents: Mapping[str, set[str]], by_arm: Mapping[str, Mapping[tuple[str, str], Score]], tokens: int
) -> PersonRow:
    common = sorted(set.intersection(*documents.values()))
    found = {name: [by_arm[name][user, document] for document in common] for name in documents}
    counts = {sum(score.tokens for score in scores) for scores in found.values()}
    if len(counts) > 1:
        raise DataError(f"the arms scored different numbers of tokens of one person: {sorted(counts)}")
    test_tokens = counts.pop()
    bits = {name: _bits(math.fsum(s.nats for s in rows), test_tokens) for name, rows in found.items() if test_tokens}
    return {"user": user, "tokens": tokens, "test_tokens": test_tokens, "bits": bits}
