"""Each bench runs both sides, small, and reports what its schema says."""

from __future__ import annotations

from pathlib import Path

from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import LanguageModel
from simulation.bench.secagg import Sizes, secagg_rows
from simulation.bench.train import Row, train_rows
from tests.privacy.secagg_cohort import masked_query


def test_both_sides_train_and_both_rows_are_ratios_of_what_was_measured(tiny_model_dir: Path) -> None:
    model = LanguageModel.load(tiny_model_dir, top_layers=2)
    texts = own_samples(model, 6, 24, seed=0)
    basis = whitened_basis(model, texts, BasisSettings(rank=2))
    rows = train_rows(tiny_model_dir, basis, texts[:4], texts[4:], layers=2, epochs=2)
    assert [row["work"] for row in rows] == ["train.step", "train.to_gain"]
    assert all(set(row) == set(Row.__annotations__) for row in rows)
    step, to_gain = rows
    assert step["ratio"] > 0 and abs(step["ratio"] - step["ours"] / step["peer"]) < 1e-6 * step["ratio"]
    assert to_gain["peer"] >= 0 and to_gain["ours"] >= 0


def test_rows_of_the_private_sum_are_ratios_of_what_was_measured() -> None:
    sizes = Sizes(invited=5, dropped=1, dim=1000, large_invited=7, large_dropped=2, large_dim=70_000, tries=1)
    rows = secagg_rows(masked_query(5), sizes)
    assert [row["work"] for row in rows] == ["secagg.mask", "secagg.unmask", "secagg.round1000"]
    for row in rows:
        assert set(row) == set(Row.__annotations__)
        assert row["ours"] > 0 and row["peer"] > 0 and row["limit"] is not None and row["limit"] > 0
        assert row["ratio"] == row["peer"] / row["ours"] and row["limit_ratio"] == row["ours"] / row["limit"]
    assert "control bytes" in rows[1]["same"]
