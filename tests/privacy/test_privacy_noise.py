"""The noise has the right distribution and no near-wrong one, and is never the same for two streams."""

from __future__ import annotations

import ast
import inspect
import math
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import privacy
from privacy import noise
from privacy.errors import ConfigError
from privacy.noise import KeyStream, device_noise_key, discrete_gaussian, exact_candidate

SIGMAS = (0.5, 0.7, 1.0, 3.0, 12.5, 1e3, 4e4, 2e6)
FALSE_ALARM = 1e-6  # of each test; the keys are fixed, so a test that passes passes again
Integers = NDArray[np.int64]


def stream(number: int) -> KeyStream:
    return KeyStream(number.to_bytes(32, "big"), bytes(32))


def expected_bins(sigma: float, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bin edges at half integers and the expected counts of N_Z(0, sigma^2) between them, each at least 10."""
    reach = math.ceil(12 * sigma) + 2
    if sigma < 200:
        support = np.arange(-reach, reach + 1)
        mass = np.exp(-(support**2) / (2 * sigma**2))
        cumulative = np.cumsum(mass / mass.sum())
        edges = support + 0.5
    else:  # the sum over a bin is the integral to a relative error of exp(-2 pi^2 sigma^2) beyond half a step
        edges = np.rint(np.linspace(-6, 6, 400) * sigma) + 0.5
        cumulative = stats.norm.cdf(edges / sigma)
    chosen, counts, before = [], [], 0.0
    for edge, below in zip(edges, cumulative, strict=True):
        if (below - before) * size >= 10 and (1 - below) * size >= 10:
            chosen.append(edge)
            counts.append((below - before) * size)
            before = below
    return np.array(chosen), np.array([*counts, (1 - before) * size])


def chi_square_p(draws: Integers, sigma: float) -> float:
    edges, expected = expected_bins(sigma, draws.size)
    observed = np.bincount(np.searchsorted(edges, draws), minlength=expected.size)
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), expected.size - 1))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_distribution_accepts_sigma_and_rejects_its_neighbours(sigma: float) -> None:
    draws = discrete_gaussian(sigma, 200_000, stream(1))
    assert chi_square_p(draws, sigma) > FALSE_ALARM
    assert chi_square_p(draws, 0.9 * sigma) < FALSE_ALARM
    assert chi_square_p(draws, 1.1 * sigma) < FALSE_ALARM


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", SIGMAS)
def test_two_million_draws_see_one_percent(sigma: float) -> None:
    draws = discrete_gaussian(sigma, 2_000_000, stream(2))
    assert chi_square_p(draws, sigma) > FALSE_ALARM
    assert chi_square_p(draws, 0.99 * sigma) < FALSE_ALARM
    assert chi_square_p(draws, 1.01 * sigma) < FALSE_ALARM


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [3.0, 4e4])
def test_moments_of_two_million_draws(sigma: float) -> None:
    size = 2_000_000
    z = discrete_gaussian(sigma, size, stream(3)) / sigma
    assert abs(z.mean()) < 5 / math.sqrt(size)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / size)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / size)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / size)


@pytest.mark.statistical
def test_draws_do_not_depend_on_each_other() -> None:
    size = 1_000_000
    z = discrete_gaussian(100.0, size, stream(4)) / 100
    other = discrete_gaussian(100.0, size, stream(5)) / 100
    lags = [float(z[lag:] @ z[:-lag]) / math.sqrt(size) for lag in range(1, 65)]
    lags += [float(z[lag:] @ other[: size - lag]) / math.sqrt(size) for lag in range(64)]
    assert max(map(abs, lags)) < 6  # 128 standard normals: false alarm 3e-7


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [3.0, 700.0])
def test_a_sum_of_devices_is_one_discrete_gaussian(sigma: float) -> None:
    devices, size = 16, 200_000
    total = sum(discrete_gaussian(sigma, size, stream(100 + number)) for number in range(devices))
    assert isinstance(total, np.ndarray)
    assert chi_square_p(total, sigma * math.sqrt(devices)) > FALSE_ALARM
    assert chi_square_p(total, 0.97 * sigma * math.sqrt(devices)) < FALSE_ALARM


@pytest.mark.parametrize("sigma", [0.5, 1.0, 12.5, 2222197.0, 2.0**40])
def test_floats_agree_with_fractions_candidate_by_candidate(sigma: float) -> None:
    exact = [exact_candidate(Fraction(sigma), stream(6), index) for index in range(600)]
    kept = [value for value in exact if value is not None]
    assert discrete_gaussian(sigma, len(kept), stream(6)).tolist() == kept


def test_where_floats_are_unsure_fractions_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = discrete_gaussian(12.5, 300, stream(7))
    monkeypatch.setattr(noise, "FLOAT_MARGIN", 2.0)  # now no float comparison counts
    assert discrete_gaussian(12.5, 300, stream(7)).tolist() == usual.tolist()


def test_the_result_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = discrete_gaussian(1e3, 5000, stream(8))
    monkeypatch.setattr(noise, "BLOCK", 37)
    assert discrete_gaussian(1e3, 5000, stream(8)).tolist() == usual.tolist()
    assert discrete_gaussian(1e3, 50, stream(8)).tolist() == usual[:50].tolist()


class Scripted(KeyStream):
    """A stream whose first candidate is given and whose tails are all `more`: for ties that chance never shows."""

    def __init__(self, words: tuple[int, int, int, int], more: int) -> None:
        super().__init__(bytes(32), bytes(32))
        self._first, self._more = words, more

    def candidates(self, first: int, number: int) -> NDArray[np.uint64]:
        words = super().candidates(first, number)
        if first == 0:
            words = words.copy()
            words[0] = self._first
        return words

    def more_words(self, candidate: int, word: int) -> Iterator[int]:
        return repeat(self._more)


INVERSE_E = int((Fraction(2**64) / Fraction(math.e)).limit_denominator(1))  # good to 2^11; the exact floor is below
FLOOR = noise._exp_bounds(Fraction(1), 64)[0]


@pytest.mark.parametrize(("more", "quotient"), [(0, 1), (2**64 - 1, 0)])
def test_a_tie_reads_more_words(more: int, quotient: int) -> None:
    assert abs(FLOOR - INVERSE_E) < 2**12
    script = Scripted((0, FLOOR, 0, 0), more)  # quotient word exactly at floor(2^64 / e)
    assert exact_candidate(Fraction(3), script, 0) == 4 * quotient
    assert discrete_gaussian(3.0, 1, script)[0] == 4 * quotient


def test_a_word_of_zero_reads_on_and_ends() -> None:
    script = Scripted((0, 0, 2**63, 0), 2**63)
    assert exact_candidate(Fraction(3), script, 0) is None  # a quotient of 45 is far too large to be kept
    dropped = Scripted((0, 2**64 - 1, 2**64 - 1, 0), 0)  # X = 0 with the least likely acceptance word
    assert discrete_gaussian(3.0, 1, script)[0] == discrete_gaussian(3.0, 1, dropped)[0]


def test_a_negative_zero_is_dropped() -> None:
    assert exact_candidate(Fraction(3), Scripted((0, 2**64 - 1, 0, 0), 0), 0) == 0
    assert exact_candidate(Fraction(3), Scripted((0, 2**64 - 1, 0, 1), 0), 0) is None


def test_thresholds_are_floors_of_exp() -> None:
    table = noise._exp_thresholds()
    assert table[0] == 0 and np.all(np.diff(table.astype(object)) >= 0)
    for v, floor in zip(range(45, 0, -1), table.tolist(), strict=True):
        low, high = noise._exp_bounds(Fraction(v), 400)
        assert low >> 336 == high >> 336 == floor


@settings(max_examples=50)
@given(st.fractions(0, 400, max_denominator=10**12), st.sampled_from([64, 128, 192]))
def test_exp_bounds_hold_exp(gamma: Fraction, bits: int) -> None:
    low, high = noise._exp_bounds(gamma, bits)
    finer_low, finer_high = noise._exp_bounds(gamma, bits + 64)
    assert low <= high <= low + 1
    assert low <= finer_low >> 64 <= finer_high >> 64 <= high


def test_every_key_name_and_device_has_its_own_stream() -> None:
    keys = [bytes(32), bytes(31) + b"\x01", b"\x80" + bytes(31)]
    streams = [KeyStream(key, name) for key in keys for name in keys]
    streams += [KeyStream(device_noise_key(key, device), keys[0]) for key in keys for device in ("d1", "d2", "d11")]
    draws = {discrete_gaussian(1e6, 8, one).tobytes() for one in streams}
    assert len(draws) == len(streams)


def test_a_tail_never_meets_the_main_words() -> None:
    one = stream(9)
    main = one.candidates(0, 500).tobytes()
    tails = [next(one.more_words(index, word)).to_bytes(8, "little") for index in range(200) for word in (1, 2)]
    assert len(set(tails)) == len(tails)
    assert not any(tail in main for tail in tails)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 2.0**41])
def test_refused_sigma(sigma: float) -> None:
    with pytest.raises(ConfigError):
        discrete_gaussian(sigma, 1, stream(0))


def test_refused_keys() -> None:
    for make in (
        lambda: KeyStream(bytes(31), bytes(32)),
        lambda: KeyStream(bytes(32), bytes(31)),
        lambda: device_noise_key(b"short", "d"),
        lambda: device_noise_key(bytes(32), "../d"),
    ):
        with pytest.raises(ConfigError):
            make()


def test_a_key_does_not_show() -> None:
    key = bytes(range(32))
    assert key.hex() not in repr(KeyStream(key, bytes(32))) and repr(key) not in repr(KeyStream(key, bytes(32)))


def test_no_seed_and_no_other_generator_can_reach_the_noise() -> None:
    """The mechanism has no parameter for a seed, imports no generator, and numpy's global one changes nothing."""
    first = discrete_gaussian(1e3, 100, stream(10))
    np.random.seed(1)  # noqa: NPY002 (that is the point)
    assert discrete_gaussian(1e3, 100, stream(10)).tolist() == first.tolist()
    folder = Path(inspect.getfile(privacy)).parent
    for name in ("noise", "answer", "fixedpoint", "query", "policy", "wire", "accounting"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            words = [getattr(node, part, None) for part in ("id", "attr", "arg", "module")]
            assert not {"random", "seed", "default_rng", "secrets"} & {str(word) for word in words}, name


def test_a_million_draws_take_less_than_a_third_of_a_second() -> None:
    best = math.inf
    for attempt in range(3):
        start = time.thread_time()
        discrete_gaussian(2222197.0, 1_000_000, stream(attempt))
        best = min(best, time.thread_time() - start)
    assert best < 0.3
