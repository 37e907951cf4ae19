"""Memories are trusted as far as they foretell: the bound, the weight by hand, a real model, drawing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.decode import Steering, drawn
from client.model import LanguageModel
from client.trust import SHARE, START, mixed_nats, trusted, trusted_nats


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LanguageModel:
    return LanguageModel.load(tiny_model_dir, top_layers=2, dtype=torch.float32)


def test_the_weight_by_hand() -> None:
    """p = 0.5, 0.25 with memories and 0.1, 0.1 without: mixture 0.3, weight 0.9 * 0.5 / 0.6 + 0.05 = 0.8, then 0.22."""
    nats, weight = mixed_nats(-np.log([0.5, 0.25]), -np.log([0.1, 0.1]))
    assert np.exp(-nats) == pytest.approx([0.3, 0.8 * 0.25 + 0.2 * 0.1])
    assert weight == pytest.approx(0.9 * 0.8 * 0.25 / 0.22 + 0.05)
    assert mixed_nats(np.empty(0), np.empty(0))[1] == START


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 40)), min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_it_never_loses_more_than_the_bound_against_the_better_of_the_two(words: list[tuple[float, float]]) -> None:
    first, second = np.array(words).T
    found, weight = mixed_nats(first, second)
    bound = np.log(2) + (len(words) - 1) * -np.log1p(-SHARE / 2)
    assert found.sum() <= min(first.sum(), second.sum()) + bound + 1e-9
    assert 0 < weight < 1


def test_it_goes_with_whichever_foretells_better_after_a_change() -> None:
    first, second = np.r_[np.full(30, 1.0), np.full(30, 5.0)], np.r_[np.full(30, 5.0), np.full(30, 1.0)]
    found, _ = mixed_nats(first, second)
    assert found.mean() < 1.3 and min(first.mean(), second.mean()) == 3.0


def test_a_document_behind_nothing_and_behind_memories(model: LanguageModel) -> None:
    text = "the boat goes over the grey lake to the old mill"
    plain = model.encode_text(text, [(9, len(text))], "d", 64)
    alone = float(model.document_nats([model.prefix(plain)])[0].double().sum())
    assert trusted_nats(model, plain, plain) == pytest.approx(alone, rel=1e-5)
    placed = model.with_context(plain, model.context_ids("the old mill on the grey lake", 32))
    behind = float(model.document_nats([model.prefix(placed)])[0].double().sum())
    assert min(alone, behind) - 3 < trusted_nats(model, placed, plain) < max(alone, behind)


def test_what_is_drawn_is_the_mixture_at_the_weight_that_the_opening_gives(model: LanguageModel) -> None:
    opening = model.encode_text("the boat goes over the grey", [], "d", 64).ids
    before = model.context_ids("the old mill on the grey lake", 32)
    ids = torch.cat([before, opening])
    chosen, said = next(drawn(model, ids, 1, steering=Steering(opening, trusted=True)))
    with torch.no_grad():
        rows = [model.net(input_ids=each[None]).logits[0].float().log_softmax(-1) for each in (ids, opening)]
    n = len(opening) - 1
    nats = [-row[-n - 1 : -1].gather(1, opening[-n:, None])[:, 0].double().numpy() for row in rows]
    _, weight = mixed_nats(*nats)
    mixture = trusted(rows[0][-1], rows[1][-1], weight)
    assert float(said[0]) == pytest.approx(float(mixture[int(chosen[0])]), abs=1e-4)
    assert float(mixture.exp().sum()) == pytest.approx(1.0, abs=1e-5)
