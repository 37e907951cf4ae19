"""Recall and NDCG are what they are called, and questions come from test text alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.retrieval_score import Ranked, ndcg, recall, summary

GAINS = np.array([3.0, -1.0, 2.0, 0.5])


def test_known_figures() -> None:
    assert ndcg(GAINS, GAINS) == pytest.approx(1)
    scores = np.array([0.0, 3.0, 2.0, 1.0])  # the document that hurts first, the best last
    ideal = 3 + 2 / np.log2(3) + 0.5 / 2
    assert ndcg(GAINS, scores) == pytest.approx((2 / np.log2(3) + 0.5 / 2) / ideal)
    assert recall(GAINS, scores) == 0 and recall(GAINS, scores, 4) == 1 and recall(GAINS, GAINS, 1) == 1
    assert ndcg(-np.ones(4), scores) == 0, "where nothing helps there is nothing to find"
    assert ndcg(GAINS[:2], scores[:2], 5) == pytest.approx(1 / np.log2(3))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.integers(1, 9))
def test_figures_are_shares(gains: list[float], k: int) -> None:
    worth = np.array(gains)
    scores = np.random.default_rng(len(gains)).standard_normal(len(gains))
    assert 0 <= ndcg(worth, scores, k) <= 1 + 1e-9 and recall(worth, scores, k) in (0, 1)
    assert ndcg(worth, worth, k) <= 1 + 1e-9


def test_a_better_order_scores_better() -> None:
    told = summary([Ranked(GAINS, -GAINS, GAINS)] * 3)
    assert told["ndcg_frozen"] < told["ndcg_taught"] == pytest.approx(1)
    assert told["gain_frozen"] == -1 and told["gain_taught"] == 3 and told["recall_taught"] == 1
    assert set(summary([]).values()) == {0.0}
