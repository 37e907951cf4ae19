"""From updates to the noisy mean: the variance is the predicted one, and noise is never used twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.answer import answer_stream, make_answer, noise_of_mean, noisy_mean, slotted_update, sum_answers
from privacy.errors import CohortTooSmall, ConfigError, EncodingError
from privacy.fixedpoint import encode, from_ring, to_ring
from privacy.noise import device_noise_key
from privacy.query import Cohort, Query
from privacy.wire import Answer

Ask = Callable[..., Query]
Vector = NDArray[np.float64]
ROOT = bytes(range(32))


def answers(query: Query, updates: list[Vector], root: bytes = ROOT) -> list[Answer]:
    names = [f"d{number}" for number in range(len(updates))]
    return [
        make_answer(update, query, name, device_noise_key(root, name))
        for name, update in zip(names, updates, strict=True)
    ]


def updates(query: Query, number: int, size: float = 1.0) -> list[Vector]:
    rng = np.random.default_rng(number)
    return [rng.normal(size=query.dim) * size for _ in range(number)]


@pytest.mark.parametrize(("invited", "survivors", "z"), [(10, 7, "8"), (16, 16, "1"), (60, 41, "1/2")])
def test_the_sum_holds_the_inputs_and_noise_of_the_predicted_variance(
    asked: Ask, invited: int, survivors: int, z: str
) -> None:
    """False alarm 6e-7 each; noise that is 5 % too small or too large is seen."""
    query = asked(slot_dim=20_000, cohort=Cohort(invited), noise_multiplier=Fraction(z))
    given_updates = updates(query, survivors)
    total, number = sum_answers(query, answers(query, given_updates))
    truth = sum(encode(update, query.clip_norm, query.integer_clip) for update in given_updates)
    residual = (total - truth) / (query.sigma * math.sqrt(survivors))
    assert number == survivors
    interval = 5 * math.sqrt(2 / query.dim)
    assert abs(residual.var() - 1) < interval
    assert abs(residual.mean()) < 5 / math.sqrt(query.dim)
    for wrong in (0.95, 1.05, 1 / math.sqrt(2)):
        assert abs(residual.var() * wrong**2 - 1) > interval
    claimed = float(query.noise_multiplier) * query.integer_clip
    assert query.sigma * math.sqrt(query.cohort.honest) >= claimed  # even if the colluding survivors add none


@pytest.mark.statistical
def test_a_million_coordinates_see_half_a_percent(asked: Ask) -> None:
    query = asked(slot_dim=1_000_000, cohort=Cohort(10))
    zero = [np.zeros(query.dim)] * 7
    total, _ = sum_answers(query, answers(query, zero))
    variance = (total / (query.sigma * math.sqrt(7))).var()
    interval = 5 * math.sqrt(2 / query.dim)
    assert abs(variance - 1) < interval < abs(variance * 0.995**2 - 1)


def test_the_mean_is_near_and_its_noise_is_the_announced_one(asked: Ask) -> None:
    query = asked(slot_dim=20_000, cohort=Cohort(50))
    given_updates = updates(query, 40, size=1e-5)  # well inside the clip
    error = noisy_mean(query, answers(query, given_updates)) - np.mean(given_updates, axis=0)
    assert error.std() == pytest.approx(noise_of_mean(query, 40), rel=5 / math.sqrt(2 * query.dim))
    formula = float(query.noise_multiplier * query.clip_norm) / math.sqrt(query.cohort.honest * 40)
    assert noise_of_mean(query, 40) == pytest.approx(formula, rel=1e-4)


@given(st.floats(1e-3, 1e200), st.integers(0, 100))
def test_one_device_moves_the_sum_by_at_most_the_integer_clip(asked: Ask, size: float, seed: int) -> None:
    """The sensitivity, seen from outside: put zeros in one device's place, before anybody's noise."""
    query = asked(slot_dim=30, cohort=Cohort(5), transport="off")
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=30) * size for _ in range(5)]
    everyone, _ = sum_answers(query, answers(query, rows))
    zeroed, _ = sum_answers(query, answers(query, [*rows[:4], np.zeros(30)]))
    difference = from_ring((everyone - zeroed).astype(np.uint32))
    assert sum(int(value) ** 2 for value in difference) <= query.integer_clip**2


def noise_alone(query: Query, device: str, root: bytes = ROOT) -> list[int]:
    answer = make_answer(np.zeros(query.dim), query, device, device_noise_key(root, device))
    return [int(value) for value in from_ring(answer.vector)]


def test_every_event_has_noise_of_its_own(asked: Ask) -> None:
    """Another attempt, round, campaign, federation, question, device or key: another stream at the same sigma."""
    changes: list[dict[str, Any]] = [{}, {"attempt": 1}, {"round": 2}, {"campaign": "second"}, {"federation": "other"}]
    changes += [{"release_sha256": "9" * 64}, {"basis_sha256": "9" * 64}]
    queries = [asked(**change) for change in changes]
    streams = [noise_alone(query, device) for query in queries for device in ("d1", "d2")]
    streams.append(noise_alone(asked(), "d1", bytes(32)))
    assert {query.sigma for query in queries} == {asked().sigma}
    assert len({tuple(stream) for stream in streams}) == len(streams)
    sigma = asked().sigma
    matrix = np.array(streams) / sigma
    products = matrix @ matrix.T / math.sqrt(matrix.shape[1])
    assert np.abs(products - np.diag(np.diag(products))).max() < 6


def test_the_same_event_gives_the_same_bytes(asked: Ask) -> None:
    query, key = asked(), device_noise_key(ROOT, "d1")
    update = np.linspace(-1, 1, query.dim)
    first = make_answer(update, query, "d1", key).encode()
    np.random.seed(3)  # noqa: NPY002 (a seed must not matter)
    assert make_answer(update, query, "d1", key).encode() == first


def test_what_rounds_to_the_same_integers_gives_the_same_bytes(asked: Ask) -> None:
    query, key = asked(), device_noise_key(ROOT, "d1")
    update = np.linspace(-0.01, 0.01, query.dim)
    near = update * (1 + 2**-50)
    assert not np.array_equal(near, update)
    assert make_answer(near, query, "d1", key).encode() == make_answer(update, query, "d1", key).encode()


def noise_under(query: Query, update: Vector) -> NDArray[np.int64]:
    """Return the noise that an answer of one device to one event carries, int64 [dim]."""
    answer = make_answer(update, query, "d1", device_noise_key(ROOT, "d1"))
    noise = answer.vector - to_ring(encode(update, query.clip_norm, query.integer_clip))
    return from_ring(noise)


@pytest.mark.parametrize("step", [1.0, 0.01, 1e-6], ids=["another", "near", "nearly the same"])
def test_two_updates_under_one_event_have_noises_of_their_own(asked: Ask, step: float) -> None:
    """A rolled-back ledger answers an event twice: the difference must carry the noise of two answers, not of none.

    False alarm 6e-7 a line. Were the noise a function of the event alone, the difference would have variance 0.
    """
    query = asked(slot_dim=20_000)
    first, other = updates(query, 2, size=1e-5)
    one, two = noise_under(query, first) / query.sigma, noise_under(query, first + step * other) / query.sigma
    for noise in (one, two):
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / query.dim)
        assert abs(noise.mean()) < 5 / math.sqrt(query.dim)
    assert abs((two - one).var() - 2) < 5 * 2 * math.sqrt(2 / query.dim)
    assert abs((one * two).mean()) < 5 / math.sqrt(query.dim)


@given(st.integers(0, 49), st.sampled_from([-1, 1]), st.binary(min_size=32, max_size=32))
def test_one_unit_in_one_number_is_another_noise(asked: Ask, place: int, unit: int, event: bytes) -> None:
    integers = np.arange(50, dtype=np.int64) - 25
    moved = integers.copy()
    moved[place] += unit
    streams = [answer_stream(bytes(32), event, x) for x in (integers, moved, integers[::-1])]
    words = [stream.candidates(0, 4).tobytes() for stream in streams]
    assert len(set(words)) == 3
    assert answer_stream(bytes(32), event, integers.astype(">i8")).candidates(0, 4).tobytes() == words[0]


def test_off_adds_no_noise(asked: Ask) -> None:
    query = asked(transport="off")
    update = np.linspace(-1, 1, query.dim)
    answer = make_answer(update, query, "d1", bytes(32))
    assert from_ring(answer.vector).tolist() == encode(update, query.clip_norm, query.integer_clip).tolist()
    assert noise_of_mean(query, 5) == 0
    assert not np.array_equal(answer.vector, make_answer(update, asked(), "d1", bytes(32)).vector)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-2, 1.0, 1e200])
@pytest.mark.parametrize("slot", [0, 2])
def test_slots_and_weights_share_one_clip_and_count_devices(asked: Ask, slot: int, size: float) -> None:
    query = asked(slots=3, slot_dim=40, transport="off", purpose="train.persona")
    vector = slotted_update(np.full(40, size), query, slot)
    assert np.linalg.norm(vector) <= float(query.clip_norm)
    total = from_ring(make_answer(vector, query, "d1", bytes(32)).vector)
    slots, weights = query.split(total * float(query.clip_norm) / query.integer_clip)
    assert weights is not None
    assert np.flatnonzero(np.abs(slots).sum(1)).tolist() in ([], [slot])
    assert weights[slot] == pytest.approx(float(query.weight), rel=1e-6)
    assert np.delete(weights, slot).tolist() == [0, 0]
    assert np.linalg.norm(slots[slot]) == pytest.approx(
        min(size * math.sqrt(40), 0.1 * math.sqrt(15) / 4), rel=1e-4, abs=1e-8
    )


def test_counts_of_slots_carry_the_announced_noise(asked: Ask) -> None:
    query = asked(slots=2, slot_dim=5, cohort=Cohort(100), purpose="train.persona")
    rows = [slotted_update(np.zeros(5), query, number % 3 == 0) for number in range(90)]
    _, weights = query.split(noisy_mean(query, answers(query, rows)) * 90)
    assert weights is not None
    deviation = noise_of_mean(query, 90) * 90
    assert np.abs(weights - np.array([60, 30]) * float(query.weight)).max() < 5 * deviation


@pytest.mark.parametrize("bad", [np.zeros(49), np.zeros((50, 1)), np.full(50, np.nan), np.full(50, np.inf)])
def test_what_cannot_be_encoded_is_not_answered(asked: Ask, bad: Vector) -> None:
    with pytest.raises(EncodingError):
        make_answer(bad, asked(), "d1", bytes(32))
    with pytest.raises(EncodingError):
        slotted_update(bad, asked(slots=2), 0)
    for slot in (-1, 2):
        with pytest.raises(EncodingError):
            slotted_update(np.zeros(50), asked(slots=2), slot)


def test_too_few_answers_are_not_summed(asked: Ask) -> None:
    query = asked(cohort=Cohort(6))
    made = answers(query, updates(query, 6))
    assert sum_answers(query, made[:5])[1] == 5
    with pytest.raises(CohortTooSmall, match="4 answers, the query needs 5"):
        sum_answers(query, made[:4])


def test_foreign_repeated_and_uninvited_answers_are_refused(asked: Ask) -> None:
    query = asked(cohort=Cohort(6))
    made = answers(query, updates(query, 7))
    other = make_answer(np.zeros(query.dim), asked(cohort=Cohort(6), round=2), "d9", bytes(32))
    short = Answer(query.sha256, "d9", np.zeros(3, dtype=np.uint32))
    for wrong in ([*made[:5], other], [*made[:5], short], [*made[:5], made[0]], made):
        with pytest.raises(ConfigError):
            sum_answers(query, wrong)


def test_the_order_of_answers_does_not_matter(asked: Ask) -> None:
    query = asked(cohort=Cohort(8))
    made = answers(query, updates(query, 8))
    assert sum_answers(query, made)[0].tolist() == sum_answers(query, made[::-1])[0].tolist()
