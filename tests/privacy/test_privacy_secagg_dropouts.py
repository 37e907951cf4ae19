"""Whoever drops out whenever: the exact integer sum of the survivors or a clean abort, never a third thing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from privacy.errors import CohortTooSmall
from privacy.query import Cohort
from privacy.secagg.graph import links_of
from tests.privacy.secagg_cohort import Round, exact_sum, masked_query, name_of

STAGES = 5
NEVER = STAGES


def holds(n: int, leaves: Sequence[int], dim: int = 3) -> bool:
    """Run a sum in which device i is gone from stage leaves[i] on; return whether there was a sum.

    Checks the invariant, and that there is a sum exactly where PROTOCOL.md says: enough devices at every stage.
    """
    cohort = Round(n, dim, remember=True)
    drops = [[name_of(i) for i, at in enumerate(leaves) if at == stage] for stage in range(STAGES)]
    survivors = [name_of(i) for i, at in enumerate(leaves) if at > 2]
    least = Cohort(n).min_survivors
    threshold = links_of(Cohort(n)).threshold
    shares_given = sum(at > 4 for at in leaves)
    if links_of(Cohort(n)).complete:
        expected = sum(at > 3 for at in leaves) >= least and shares_given >= threshold
    else:
        expected = None
    try:
        total = cohort.run(drops)
    except CohortTooSmall:
        assert not expected and not cohort.server.finished and cohort.server.stage == "aborted"
        assert cohort.server.requests() == {}
        return False
    assert expected in (True, None)
    assert np.array_equal(total, exact_sum(cohort.vectors, survivors))
    assert cohort.server.survivors == tuple(survivors) and len(survivors) >= least
    assert set(cohort.server.heads) == set(survivors)
    assert cohort.refused == [] and cohort.server.liars == {}
    return True


def one_stage(n: int) -> Iterator[tuple[int, ...]]:
    """Yield every subset of n devices leaving at every single stage."""
    for stage in range(STAGES):
        yield from itertools.product((stage, NEVER), repeat=n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_every_subset_at_every_stage(n: int) -> None:
    outcomes = [holds(n, leaves) for leaves in one_stage(n)]
    enough = sum(sum(at == NEVER for at in leaves) >= Cohort(n).min_survivors for leaves in one_stage(n))
    assert sum(outcomes) == enough and len(outcomes) == STAGES * 2**n


@pytest.mark.parametrize("n", [2, 3])
def test_every_schedule_of_few(n: int) -> None:
    assert sum(holds(n, leaves) for leaves in itertools.product(range(NEVER + 1), repeat=n)) > 0


@pytest.mark.statistical
@pytest.mark.parametrize("n", [4, 5, 6])
def test_every_schedule_of_up_to_six(n: int) -> None:
    """All 6^n ways in which each device leaves at one of the five stages or stays: 54,432 sums."""
    outcomes = [holds(n, leaves, 1) for leaves in itertools.product(range(NEVER + 1), repeat=n)]
    assert len(outcomes) == 6**n and 0 < sum(outcomes) < len(outcomes)


def random_schedules(number: int, largest: int, seed: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (n, leaves): few large cohorts, many small ones, drop-out rates around those that are still allowed."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        few = rng.random()
        high = 16 if few < 0.9 else 60 if few < 0.995 else largest
        n = int(rng.integers(7 if high <= 16 else 17, high + 1))
        rate = rng.choice([0.02, 0.05, 0.08, 0.15])
        leaves = np.where(rng.random(n) < rate * STAGES, rng.integers(0, STAGES, n), NEVER)
        yield n, tuple(int(at) for at in leaves)


def test_random_schedules() -> None:
    outcomes = [holds(n, leaves) for n, leaves in random_schedules(200, 60, seed=1)]
    assert 20 < sum(outcomes) < 190, "both outcomes are met"


@pytest.mark.statistical
def test_ten_thousand_random_schedules_of_up_to_two_hundred() -> None:
    outcomes = [holds(n, leaves, 2) for n, leaves in random_schedules(10_000, 200, seed=2)]
    assert 1_000 < sum(outcomes) < 9_500


@pytest.mark.parametrize(("dim", "value"), [(1, 0), (1, 2**32 - 1), (5, 2**31), (17, 2**31 - 1), (4, 1)])
def test_edges_of_the_ring(dim: int, value: int) -> None:
    cohort = Round(4, dim)
    for name in cohort.vectors:
        cohort.vectors[name][:] = value
    total = cohort.run([[], [], [name_of(2)], [], []])
    assert np.array_equal(total, exact_sum(cohort.vectors, [name_of(i) for i in (0, 1, 3)]))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_give_the_same_sum(threads: int) -> None:
    cohort = Round(4, 3 * 2**16 + 5, threads=threads)
    total = cohort.run([[], [], [name_of(0)], [], []])
    expected = sum(cohort.vectors[name_of(i)].astype(np.int64) for i in (1, 2, 3)) % 2**32
    assert np.array_equal(total % 2**32, expected)


def test_a_ring_refuses_survivors_that_leave_a_run_empty_and_sums_the_same_number_spread_out() -> None:
    """Server and devices agree on the run rule; as many dropouts in another place do no harm."""
    n = 150
    links = links_of(Cohort(n))
    probe = Round(n, 1, remember=True)
    probe.run_stage()
    order = probe.server._roster.ring.order
    together = {probe.server._roster.names[rank] for rank in order[: links.reach - links.run_floor + 1]}
    probe.run_stage()
    with pytest.raises(CohortTooSmall, match="ring"):
        probe.run_stage(together)
    spread = Round(n, 1, remember=True)
    spread.run_stage()
    step = n // len(together)
    apart = {spread.server._roster.names[rank] for rank in spread.server._roster.ring.order[::step][: len(together)]}
    spread.run_stage()
    for _ in range(3):
        spread.run_stage(apart)
    assert spread.server.finished and len(spread.server.survivors) == n - len(together)


def test_the_floor_of_a_query_is_the_only_floor() -> None:
    for n in (2, 5, 30, 100, 128):
        links = links_of(Cohort(n))
        assert links.complete and links.threshold == Cohort(n).min_survivors == 2 * n // 3 + 1
    assert masked_query(5).cohort.min_survivors == 4
