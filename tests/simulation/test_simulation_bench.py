"""The bench runs both sides on the tiny model and reports what its schema says."""

from __future__ import annotations

from pathlib import Path

from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import LanguageModel
from simulation.bench.train import Row, train_rows


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
