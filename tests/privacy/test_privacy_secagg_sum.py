"""The private sum, end to end: the exact integer sum of the survivors or a clean abort, never a third thing."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from privacy.errors import CohortTooSmall
from tests.privacy.secagg_cohort import STAGES, Round, exact_sum, name_of


def test_five_devices_without_dropouts() -> None:
    cohort = Round(5)
    total = cohort.run()
    assert total.dtype == np.int64
    assert np.array_equal(total, exact_sum(cohort.vectors, cohort.vectors))
    assert cohort.server.survivors == tuple(sorted(cohort.vectors))
    assert set(cohort.server.heads) == set(cohort.vectors) and cohort.refused == [] and cohort.server.liars == {}


@pytest.mark.parametrize("stage", range(5))
def test_one_of_five_drops_out_at_each_stage(stage: int) -> None:
    cohort = Round(5)
    drops: list[list[str]] = [[], [], [], [], []]
    drops[stage] = [name_of(1)]
    total = cohort.run(drops)
    survivors = [name for name in cohort.vectors if stage > 2 or name != name_of(1)]
    assert np.array_equal(total, exact_sum(cohort.vectors, survivors))
    assert cohort.server.survivors == tuple(survivors)


@pytest.mark.parametrize("stage", range(5))
def test_two_of_five_are_too_many_and_nothing_is_summed(stage: int) -> None:
    cohort = Round(5)
    drops: list[list[str]] = [[], [], [], [], []]
    drops[stage] = [name_of(1), name_of(4)]
    with pytest.raises(CohortTooSmall):
        cohort.run(drops)
    assert cohort.server.stage == "aborted" and not cohort.server.finished


def test_stages_have_names() -> None:
    cohort = Round(3)
    for stage in STAGES:
        assert cohort.server.stage == stage
        cohort.run_stage()
    assert cohort.server.stage == "finished"


def test_a_ring_of_150_with_dropouts_at_each_stage() -> None:
    cohort = Round(150, remember=True)
    names = sorted(cohort.vectors)
    drops = [names[3:9], names[20:24], names[40:46], names[70:75], names[90:96]]
    total = cohort.run(drops)
    gone = {name for leaving in drops[:3] for name in leaving}
    assert np.array_equal(total, exact_sum(cohort.vectors, set(names) - gone))


def test_the_server_holds_no_more_than_three_vectors() -> None:
    """Running sum and lifted sum are one and two vectors of four bytes; a frame that comes in is read where it lies."""
    dim, n = 2**20, 4
    cohort = Round(n, dim)
    for _ in range(2):
        cohort.run_stage()
    answers = {name: cohort.devices[name].reply(frame) for name, frame in cohort.server.requests().items()}
    tracemalloc.start()
    for name, answer in answers.items():
        assert cohort.server.receive(name, answer)
    cohort.server.advance()
    for _ in range(2):
        cohort.run_stage()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cohort.server.finished and peak <= 3 * 4 * dim + 2**20


def test_control_bytes_at_a_hundred_devices() -> None:
    """13.2 kB up and 30.8 kB down besides the vector, whatever its length; the names are of eleven letters."""
    cohort = Round(100, 1, remember=True)
    cohort.run()
    for way, most in (("up", 13_300), ("down", 31_000)):
        sizes = dict.fromkeys(cohort.vectors, 0)
        for _, name, direction, frame in cohort.seen:
            sizes[name] += len(frame) if direction == way else 0
        assert 0.9 * most < max(sizes.values()) <= most
