"""Between an update in float64 and integers of the 32-bit ring, with the L2 bound checked in integers.

The sensitivity that privacy rests on is the integer norm checked here, not the float norm: floats only choose the
vector. Needs neither rotation nor random rounding, which Kairouz, Liu, Steinke 2021 have because their ring has 12 to
18 bits: here rounding moves a vector by at most sqrt(dim) / (2 S) of the clip.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.errors import EncodingError

SHRINK: Final = 1 - 2.0**-20
MAX_INTEGER_CLIP: Final = 2**30  # sums of squares stay below 2^63


def encode(update: NDArray[np.float64], clip_norm: Fraction, integer_clip: int) -> NDArray[np.int64]:
    """Return `update` clipped to `clip_norm` in units of clip_norm / S, as int64 [dim].

        u <- u min(1, c' / |u|),   c' = c - sqrt(dim) / (2 s),   s = S / c,   x = rint(s u)
        while sum x^2 > S^2:  u <- (1 - 2^-20) u

    Guarantees sum x^2 <= S^2 exactly, S = `integer_clip`, for every input that is not refused. An update whose norm is
    at most c' is only rounded: an error of at most 1 / (2 s) a coordinate.
    Raises EncodingError for NaN, infinity, another shape or type, and a dim that leaves no room below S.
    """
    if not 1 <= integer_clip <= MAX_INTEGER_CLIP:
        raise EncodingError(f"integer clip {integer_clip} is outside 1..2^30")
    shrunk_clip = preshrunk_clip(clip_norm, integer_clip, np.size(update))
    scale = float(integer_clip / clip_norm)
    scaled = clipped(update, shrunk_clip) * scale
    limit = integer_clip * integer_clip
    while True:
        integers = np.rint(scaled).astype(np.int64)
        if int(integers @ integers) <= limit:
            return integers
        scaled *= SHRINK


def clipped(update: NDArray[np.float64], clip: float) -> NDArray[np.float64]:
    """Return u min(1, clip / |u|), float64 [dim]. Raises EncodingError as `encode` does.

    Goes through the largest entry, so that no square over- or underflows.
    """
    values = _finite(update)
    largest = float(np.abs(values).max())
    if largest == 0.0:
        return values
    direction: NDArray[np.float64] = values / largest
    length = math.sqrt(math.fsum((direction * direction).tolist()))  # correctly rounded: the same on every machine
    return values if largest <= clip / length else direction * (clip / length)


def preshrunk_clip(clip_norm: Fraction, integer_clip: int, dim: int) -> float:
    """Return c' = c - sqrt(dim) / (2 s): rounding moves a vector by at most sqrt(dim) / 2 units, so it stays in S."""
    left = 1 - math.sqrt(dim) / (2 * integer_clip)
    if left <= 0:
        raise EncodingError(f"{dim} numbers do not fit an integer clip of {integer_clip}")
    return float(clip_norm) * left


def to_ring(integers: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return `integers` modulo 2^32 as uint32 [dim]."""
    return (integers & 0xFFFFFFFF).astype(np.uint32)


def from_ring(residues: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the representatives in [-2^31, 2^31) of residues modulo 2^32, as int64 [dim]."""
    return residues.astype(np.uint32, copy=False).view(np.int32).astype(np.int64)


def decode_mean(
    total: NDArray[np.int64], clip_norm: Fraction, integer_clip: int, survivors: int
) -> NDArray[np.float64]:
    """Return the mean update float64 [dim] behind the integer sum `total` of `survivors` answers."""
    if survivors < 1:
        raise EncodingError("a mean needs at least one survivor")
    mean: NDArray[np.float64] = total.astype(np.float64) * float(clip_norm / (integer_clip * survivors))
    return mean


def _finite(update: NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(update)
    if array.ndim != 1 or array.size == 0 or array.dtype not in (np.float64, np.float32):
        raise EncodingError(f"an update is a vector of floats, got {array.dtype} {array.shape}")
    values: NDArray[np.float64] = array.astype(np.float64)
    if not np.isfinite(values).all():
        raise EncodingError("an update holds NaN or infinity")
    return values
