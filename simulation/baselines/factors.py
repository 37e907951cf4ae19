"""How published methods combine people's LoRA factors: pure functions of arrays.

A shared model is base + dense + B A; person i returns A_i, B_i, all weigh 1/n.

    fedit    A = mean A_i, B = mean B_i                       inexact: mean B mean A is not mean (B A)
    ffa      A stays as it was drawn, B = mean B_i            exact, half of the numbers
    flora    dense += mean (B_i A_i), fresh A, B = 0          exact, stacked: rank n r
    fedex    as fedit, dense += mean (B_i A_i) - B A          exact, dense residual
    fedsa    A = mean A_i; B_i stays with its person

fedit: Zhang et al. 2024, arXiv:2305.05644. ffa: Sun et al. 2024, arXiv:2403.12313. flora: Wang et al. 2024,
arXiv:2409.05976. fedex: Singhal et al. 2025, arXiv:2410.09432. fedsa: Guo et al. 2025, arXiv:2410.01463.
None but ffa is linear in what people send, so none but ffa would survive a masked sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError

Matrix = NDArray[np.float64]
Factors = dict[str, tuple[Matrix, Matrix]]  # module -> A [r, d_in], B [d_out, r]


@dataclass(frozen=True)
class Shared:
    """What all people start a round from: factors, and what is added to the base's weights, module -> [d_out, d_in]."""

    factors: Factors
    dense: dict[str, Matrix] = field(default_factory=dict)


def fresh(shapes: Mapping[str, tuple[int, int]], rank: int, rng: np.random.Generator) -> Factors:
    """Return LoRA factors that are the identity: A uniform as PEFT draws it, B zero; shapes are (d_out, d_in)."""
    found = {}
    for module, (d_out, d_in) in sorted(shapes.items()):
        bound = 1 / math.sqrt(d_in)
        found[module] = rng.uniform(-bound, bound, (rank, d_in)), np.zeros((d_out, rank))
    return found


def shapes_of(factors: Factors) -> dict[str, tuple[int, int]]:
    """Return (d_out, d_in) of every module."""
    return {module: (b.shape[0], a.shape[1]) for module, (a, b) in factors.items()}


def mean_product(people: Sequence[Factors], module: str) -> Matrix:
    """Return mean over people of B_i A_i: what an exact average is."""
    found: Matrix = np.mean([some[module][1] @ some[module][0] for some in people], axis=0)
    return found


def _mean(people: Sequence[Factors], module: str) -> tuple[Matrix, Matrix]:
    return np.mean([p[module][0] for p in people], axis=0), np.mean([p[module][1] for p in people], axis=0)


def fedit(start: Shared, people: Sequence[Factors], _rng: np.random.Generator) -> Shared:
    """Return the mean of A and the mean of B, each by itself."""
    return Shared({module: _mean(people, module) for module in start.factors}, start.dense)


def ffa(start: Shared, people: Sequence[Factors], _rng: np.random.Generator) -> Shared:
    """Return the mean of B over the frozen A."""
    return Shared({m: (a, _mean(people, m)[1]) for m, (a, _) in start.factors.items()}, start.dense)


def flora(start: Shared, people: Sequence[Factors], rng: np.random.Generator) -> Shared:
    """Return fresh factors over weights to which everybody's product was added."""
    dense = {m: _added(start, m, mean_product(people, m)) for m in start.factors}
    rank = next(iter(start.factors.values()))[0].shape[0]
    return Shared(fresh(shapes_of(start.factors), rank, rng), dense)


def fedex(start: Shared, people: Sequence[Factors], rng: np.random.Generator) -> Shared:
    """Return fedit's factors and in the weights what its mean of products lacks."""
    mean = fedit(start, people, rng).factors
    dense = {m: _added(start, m, mean_product(people, m) - b @ a) for m, (a, b) in mean.items()}
    return Shared(mean, dense)


def fedsa(start: Shared, people: Sequence[Factors], _rng: np.random.Generator) -> Shared:
    """Return the mean of A over a B that every person keeps to themselves; here the one that new people begin with."""
    return Shared({m: (_mean(people, m)[0], b) for m, (_, b) in start.factors.items()}, start.dense)


def _added(start: Shared, module: str, more: Matrix) -> Matrix:
    return start.dense[module] + more if module in start.dense else more


@dataclass(frozen=True)
class Method:
    """A baseline: how it combines, whether A is frozen, whether each person keeps their B."""

    name: str
    combine: Callable[[Shared, Sequence[Factors], np.random.Generator], Shared]
    freezes_a: bool = False
    keeps_b: bool = False


METHODS = {
    m.name: m
    for m in (
        Method("fedit", fedit),
        Method("ffa", ffa, freezes_a=True),
        Method("flora", flora),
        Method("fedex", fedex),
        Method("fedsa", fedsa, keeps_b=True),
    )
}
CENTRAL, FULL, LOCAL, OPPU, FEDDPA = "central", "full", "local_only", "oppu", "feddpa"
NAMES = (CENTRAL, *METHODS, LOCAL, FULL, OPPU, FEDDPA)


def named(names: Sequence[str]) -> tuple[str, ...]:
    """Return the baselines of these names; raises ConfigError for one that there is not."""
    if unknown := sorted(set(names) - set(NAMES)):
        raise ConfigError(f"unknown baseline {unknown[0]}; known: {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in names)
