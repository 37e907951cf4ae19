"""How often the audit of the mechanism is red on correct code: no more than it says, over many seeds.

A count that is out of the interval by chance has probability 1e-4 at most in each test.
"""

from __future__ import annotations

import pytest

from privacy.audit.bounds import binomial_tail
from simulation.mechanism import one_run, residuals, sensitivity, trade_off
from simulation.mechanism.audit import Power, audit_mechanism

RATE = 0.05
TINY = Power(
    residuals.Size(people=5, rank=18, rounds=3, mask_keys=2**12),
    sensitivity.Size(people=5, rank=8, inputs=2, rounds=2, text=False),
    one_run.Size(people=64),
    trade_off.Size(people=6, rank=8, rounds=24),
)

pytestmark = pytest.mark.statistical


def most(trials: int, rate: float) -> int:
    """Return the largest count that chance exceeds with probability 1e-4 at most."""
    return next(count for count in range(trials + 1) if binomial_tail(trials, rate, count + 1) <= 1e-4)


@pytest.mark.parametrize(
    ("layer", "seeds"), [("residuals", 200), ("sensitivity", 200), ("one run", 20), ("trade-off", 20)]
)
def test_correct_code_is_red_no_more_often_than_is_said(layer: str, seeds: int) -> None:
    red = [seed for seed in range(seeds) if not audit_mechanism(TINY, seed=seed, false_alarm=RATE, only=(layer,)).holds]
    assert len(red) <= most(seeds, RATE), red


def test_the_interval_is_one_that_bad_code_leaves() -> None:
    assert most(200, RATE) < 200 * 0.13
    assert most(20, RATE) < 20 * 0.4
    found = [audit_mechanism(TINY, seed=s, bug="half-noise", false_alarm=RATE, only=("residuals",)) for s in range(20)]
    assert not any(each.holds for each in found)
