"""The integer norm is bounded for every input that is not refused; nothing else may pass."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from privacy import fixedpoint
from privacy.errors import EncodingError
from privacy.fixedpoint import clipped, decode_mean, encode, from_ring, preshrunk_clip, to_ring

Vector = NDArray[np.float64]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=1, max_side=40)
CLIPS = st.fractions(Fraction(1, 10**6), 10**6, max_denominator=10**6)
RINGS = st.integers(5, 30).map(lambda power: 2**power)


def squared(integers: NDArray[np.int64]) -> int:
    return sum(int(value) ** 2 for value in integers)


@given(hnp.arrays(np.float64, SHAPES, elements=FINITE), CLIPS, RINGS)
@example(np.array([1e308] * 40), Fraction(1), 2**30)
@example(np.array([5e-324] * 40), Fraction(1, 10**6), 2**30)
@example(np.array([12.0]), Fraction(1, 10), 2**24)
def test_integer_norm_is_within_the_clip_exactly(update: Vector, clip: Fraction, ring: int) -> None:
    integers = encode(update, clip, ring)
    assert integers.dtype == np.int64 and integers.shape == update.shape
    assert squared(integers) <= ring**2


@given(hnp.arrays(np.float64, SHAPES, elements=st.floats(-1, 1)), RINGS)
def test_inside_the_clip_an_update_is_only_rounded(update: Vector, ring: int) -> None:
    clip = Fraction(math.ceil(np.linalg.norm(update)) + 1) * (1 + Fraction(40, ring))
    decoded = decode_mean(encode(update, clip, ring), clip, ring, 1)
    assert np.abs(decoded - update).max() <= float(clip / ring) * 0.5000001 + 1e-15


@given(hnp.arrays(np.float64, SHAPES, elements=st.floats(-1e150, 1e150)), RINGS)
def test_beyond_the_clip_the_direction_stays_and_most_of_the_norm(update: Vector, ring: int) -> None:
    length = float(np.linalg.norm(update))
    if length < 1 or ring < 2**12:
        return
    decoded = decode_mean(encode(update, Fraction(1, 2), ring), Fraction(1, 2), ring, 1)
    assert np.linalg.norm(decoded - update / length / 2) <= 1.01 * math.sqrt(update.size) / ring


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(7),
        np.array([-0.0, 0.0]),
        np.array([5e-324, -5e-324]),
        np.array([2.0**-1030]),
        np.zeros(3, dtype=np.float32),
    ],
)
def test_nothing_stays_nothing(update: Vector) -> None:
    assert encode(update, Fraction(1, 10), 2**24).tolist() == [0] * update.size


def test_the_largest_floats_do_not_overflow() -> None:
    for size in (1e30, 1.7e308):
        integers = encode(np.array([size, -size, 0.0]), Fraction(1, 10), 2**24)
        assert integers[0] == -integers[1] == pytest.approx(2**24 / math.sqrt(2), rel=1e-6)
        assert integers[2] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), np.float64(np.nan) * -1])
def test_not_a_number_is_refused_and_never_clipped(bad: float) -> None:
    updates: list[Any] = [np.array([bad]), np.array([0.0, bad, 1.0]), np.array([bad], dtype=np.float32)]
    for update in updates:
        with pytest.raises(EncodingError):
            encode(update, Fraction(1), 2**20)
        with pytest.raises(EncodingError):
            clipped(update, 1.0)


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(0),
        np.zeros((2, 2)),
        np.zeros(()),
        np.zeros(3, dtype=np.int64),
        np.zeros(3, dtype=complex),
        np.array(["1"]),
    ],
)
def test_other_shapes_and_types_are_refused(update: Vector) -> None:
    with pytest.raises(EncodingError):
        encode(update, Fraction(1), 2**20)


def test_bounds_of_the_ring_are_refused() -> None:
    for ring in (0, -1, 2**30 + 1):
        with pytest.raises(EncodingError):
            encode(np.ones(3), Fraction(1), ring)
    with pytest.raises(EncodingError):
        preshrunk_clip(Fraction(1), 2, 16)
    with pytest.raises(EncodingError):
        decode_mean(np.zeros(3, dtype=np.int64), Fraction(1), 2**20, 0)


def test_the_shrinking_loop_ends_within_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pre-shrink all coordinates round up, 0.75 -> 1, and 16 > 9: 1 - 2^-20 is taken off until it fits."""
    monkeypatch.setattr(fixedpoint, "preshrunk_clip", lambda clip_norm, integer_clip, dim: float(clip_norm))
    integers = encode(np.full(16, 0.25), Fraction(1), 3)
    assert squared(integers) <= 9 and not integers.any()


@given(hnp.arrays(np.int64, SHAPES, elements=st.integers(-(2**31), 2**31 - 1)))
def test_ring_round_trip(integers: NDArray[np.int64]) -> None:
    residues = to_ring(integers)
    assert residues.dtype == np.uint32
    assert from_ring(residues).tolist() == integers.tolist()


@given(st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), min_size=1, max_size=6))
def test_sums_in_the_ring_are_sums_of_integers(rows: list[list[int]]) -> None:
    total = np.zeros(3, dtype=np.uint32)
    for row in rows:
        total += to_ring(np.array(row, dtype=np.int64))
    expected = [(sum(column) + 2**31) % 2**32 - 2**31 for column in zip(*rows, strict=True)]
    assert from_ring(total).tolist() == expected


def test_encoding_does_not_touch_its_input() -> None:
    update = np.array([3.0, 4.0])
    encode(update, Fraction(1, 10), 2**20)
    assert update.tolist() == [3.0, 4.0]
