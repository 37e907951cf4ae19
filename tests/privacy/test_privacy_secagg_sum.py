"""The private sum, end to end: the exact integer sum of the survivors or a clean abort, never a third thing."""

from __future__ import annotations

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
