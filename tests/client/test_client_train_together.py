"""Several people's steps in one pass through the model are the steps that each takes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.model import Cached, LanguageModel
from client.train import CoreTraining, core_update, core_updates
from privacy.errors import ModelError

CachedDialogues = Callable[..., list[Cached]]


def test_steps_taken_together_are_those_of_each_person_alone(cored: LanguageModel, cached: CachedDialogues) -> None:
    """Whoever else is in the pass moves last bits only; a person without own words stays where they were."""
    documents = cached(cored, 5)
    people = [documents[:2], [], documents[2:3], documents[3:]]
    rng = np.random.default_rng(1)
    assert cored.layout is not None
    start = cored.layout.unflatten(0.05 * rng.standard_normal(cored.layout.dim))
    settings = CoreTraining(steps=1, step=0.1)
    found = core_updates(cored, people, start, settings)
    for own, update in zip(people, found, strict=True):
        alone = core_update(cored, own, start, settings, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(update, alone, rtol=0, atol=2e-6)
    assert not found[1].any() and abs(float(np.linalg.norm(found[0])) - 0.1) < 1e-5
    assert np.abs(found[0] - found[2]).max() > 1e-4, "two people's steps are not one"


@pytest.mark.parametrize("change", [{"steps": 2}, {"sampling_rate": 0.5}, {"noise_multiplier": 1.0}])
def test_nothing_but_one_plain_step_is_taken_together(
    cored: LanguageModel, cached: CachedDialogues, change: dict[str, Any]
) -> None:
    assert cored.layout is not None
    zero = cored.layout.unflatten(np.zeros(cored.layout.dim))
    with pytest.raises(ModelError, match="together"):
        core_updates(cored, [cached(cored, 1)], zero, CoreTraining(**{"steps": 1, **change}))
