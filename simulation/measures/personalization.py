"""Is a system's answer to one document as different between people as people's own answers are? EGISES and PerSEval.

For one document d, people j with expected texts u_j and generated texts s_j, and a distance in [0, 1]:

    w(u_j|u_k) = dist(u_j, u_k) / dist(u_j, d), k != j  how far k's text is from j's, against the document
    X_jk = softmax_k(w(u_j|.))_k dist(u_j, u_k)         the same Y_jk from the generated texts
    DEGRESS_j = mean_{k != j} (min(X_jk, Y_jk) + e) / (max(X_jk, Y_jk) + e)
    EGISES = 1 - mean over documents and people of DEGRESS      0 = as responsive as people are, 1 = not at all

(Vansh, Rank, Dasgupta, Chakraborty 2023, "Accuracy is not enough: evaluating personalization in summarizers", Findings
of EMNLP.) PerSEval multiplies DEGRESS_j with a penalty for inaccuracy,

    best = min_j dist(s_j, u_j),   mean = mean_j dist(s_j, u_j)
    ADP   = 1 / (1 + 10^g exp(-10 best / (1 - best + e)))                    the best answer is far from its person's
    ACP_j = 1 / (1 + 10^g exp(-10 (dist(s_j, u_j) - best) / (mean - best + e)))       j is served worse than others
    EDP_j = 1 - 1 / (1 + 10^a exp(-10^b (ADP + ACP_j)))      a = 3, b = 1, g = 4

(Dasgupta, Chander, Borad, Motiyani, Chakraborty 2024, "PerSEval: assessing personalization in text summarizers", TMLR.)
Constants and pairs are those of the authors' published program, which was read, not run: a person's text beside itself
is no pair there, although the papers' sums run over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.errors import DataError

Vector = NDArray[np.float64]
SMALL, LEAST_PROPORTION = 1e-7, 1e-5
ALPHA, BETA, GAMMA = 3.0, 1.0, 4.0


def responsiveness(people: Vector, to_document: Vector) -> Vector:
    """Return X [n, n] of one document: distances between people's texts [n, n], and of each to the document [n].

    The diagonal is zero: nobody is compared with themself.
    """
    weights = people / np.maximum(to_document, SMALL)[:, None]
    shifted = np.exp(weights - weights.max(axis=1, keepdims=True))
    np.fill_diagonal(shifted, 0.0)
    shares: Vector = shifted / shifted.sum(axis=1, keepdims=True) * people
    return shares


def degress(expected: Vector, expected_to_document: Vector, generated: Vector, generated_to_document: Vector) -> Vector:
    """Return DEGRESS of every person for one document, float64 [n] in (0, 1]; 1 = as responsive as the people.

    Raises DataError for fewer than two people or shapes that do not go together.
    """
    n = len(expected)
    if n < 2 or expected.shape != (n, n) or generated.shape != (n, n):
        raise DataError("personalization between people needs two of them, and distances [n, n] of both kinds")
    x, y = responsiveness(expected, expected_to_document), responsiveness(generated, generated_to_document)
    alike = (np.minimum(x, y) + LEAST_PROPORTION) / (np.maximum(x, y) + LEAST_PROPORTION)
    found: Vector = (alike.sum(axis=1) - np.diag(alike)) / (n - 1)
    return found


def egises(documents: Sequence[Vector]) -> float:
    """Return EGISES from the DEGRESS of every document's people: 0 best, 1 worst. Raises DataError for none."""
    if not documents:
        raise DataError("EGISES needs a document")
    return 1.0 - float(np.mean([found.mean() for found in documents]))


def accuracy_penalty(own: Vector) -> Vector:
    """Return EDP [n] of one document's people from the distances dist(s_j, u_j) [n]; near 1 = hardly a penalty."""
    best, mean = float(own.min()), float(own.mean())
    drop = 1 / (1 + 10**GAMMA * math.exp(-10 * best / (1 - best + SMALL)))
    exponents = np.clip(-10 * (own - best) / (mean - best + SMALL), -700, 0)
    worse = 1 / (1 + 10**GAMMA * np.exp(exponents))
    penalty: Vector = 1 - 1 / (1 + 10**ALPHA * np.exp(-(10**BETA) * (drop + worse)))
    return penalty


def perseval(documents: Sequence[tuple[Vector, Vector]]) -> float:
    """Return PerSEval from (DEGRESS, dist(s_j, u_j)) of every document: in [0, 1], higher is better."""
    if not documents:
        raise DataError("PerSEval needs a document")
    return float(np.mean([(found * accuracy_penalty(own)).mean() for found, own in documents]))


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the share of pairs in which `ours` is higher; a tie is half a win. Raises DataError for no pair."""
    if not ours or len(ours) != len(theirs):
        raise DataError("a win rate needs pairs")
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]))
