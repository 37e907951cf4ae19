"""The clip finds the quantile from below and from above, under the noise that its bit really gets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from privacy.errors import ConfigError
from server.adaptive_clip import BIT_SHARE, UPDATE_SHARE, AdaptiveClip

NORMS = np.random.default_rng(0).lognormal(0.0, 0.5, 1000)


def followed(rule: AdaptiveClip, start: float, rounds: int, deviation: float) -> list[float]:
    rng, clips = np.random.default_rng(1), [start]
    for _ in range(rounds):
        asked = rng.choice(NORMS, 100, replace=False)
        below = float((asked <= clips[-1]).mean()) + deviation * rng.standard_normal() / BIT_SHARE
        clips.append(rule.next(clips[-1], below))
    return clips


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_true_quantile_is_reached_from_both_sides(quantile: float, start: float) -> None:
    clips = followed(AdaptiveClip(quantile), start, 200, 0.0)
    truth = float(np.quantile(NORMS, quantile))
    assert float(np.median(clips[-60:])) == pytest.approx(truth, rel=0.1)
    assert abs(math.log(start / truth)) > 2, "the start must be far off, or nothing was found"


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_it_is_reached_under_noise(start: float) -> None:
    # 100 people at epsilon 8 over ten rounds: z = 2.2, so the bit's mean has 2.2 / sqrt(100 57) = 0.03 in units of the
    # clip, four times that as a share
    clips = followed(AdaptiveClip(0.5), start, 300, 0.03)
    assert float(np.median(clips[-100:])) == pytest.approx(float(np.median(NORMS)), rel=0.15)


def test_one_round_moves_no_further_than_its_rate_whatever_the_noise() -> None:
    rule = AdaptiveClip(0.5, 0.2)
    assert rule.next(1.0, 40.0) == pytest.approx(math.exp(-0.1))
    assert rule.next(1.0, -40.0) == pytest.approx(math.exp(0.1))
    assert AdaptiveClip(0.5, 0.2, most=1.0).next(1.0, 0.0) == 1.0


def test_bit_and_update_fill_the_clip_and_no_more() -> None:
    assert math.hypot(BIT_SHARE, UPDATE_SHARE) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [{"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}, {"most": 0.0}])
def test_values_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        AdaptiveClip(**wrong)
