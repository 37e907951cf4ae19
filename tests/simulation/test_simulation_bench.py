"""Each bench runs both sides, small, and reports what its schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import LanguageModel
from simulation.bench.face import FaceRow, FaceSizes, model_rows, served_rows
from simulation.bench.row import Row
from simulation.bench.secagg import Sizes, secagg_rows
from simulation.bench.train import seconds_to, to_gain, train_rows
from tests.privacy.secagg_cohort import masked_query


def test_both_sides_train_and_both_rows_are_ratios_of_what_was_measured(tiny_model_dir: Path) -> None:
    model = LanguageModel.load(tiny_model_dir, top_layers=2)
    texts = own_samples(model, 6, 24, seed=0)
    basis = whitened_basis(model, texts, BasisSettings(rank=2))
    missing: list[str] = []
    rows = {row["work"]: row for row in train_rows(tiny_model_dir, basis, texts[:4], texts[4:], 2, 2, missing.append)}
    assert all(set(row) == set(Row.__annotations__) for row in rows.values())
    for kind in ("", ".bf16"):
        step = rows[f"train.step{kind}"]
        assert step["ratio"] > 0 and abs(step["ratio"] - step["ours"] / step["peer"]) < 1e-6 * step["ratio"]
        assert (f"train.to_gain{kind}" in rows) != any(f"train.to_gain{kind}: not run" in line for line in missing)


def test_the_gain_that_both_reach_is_the_one_that_counts() -> None:
    """The peer stops at 5 percent; ours was there in the middle between two looks."""
    ours, peer = [(0.0, 1.0), (2.0, 1.02), (4.0, 0.88)], [(0.0, 1.0), (10.0, 0.95), (20.0, 0.97)]
    row = to_gain("w", ours, "p", peer)
    assert row["unit"] == "CPU seconds to 5.0 % under base" and row["peer"] == 10.0
    assert abs(row["ours"] - 3.0) < 1e-9 and abs(row["ratio"] - 10 / 3) < 1e-9
    assert "8.0 %" in to_gain("w", ours, "p", [(0.0, 1.0), (10.0, 0.5)])["unit"], "no more than that is asked for"
    assert seconds_to(0.97, peer) == 6.0


def test_rows_of_the_private_sum_are_ratios_of_what_was_measured() -> None:
    sizes = Sizes(invited=5, dropped=1, dim=1000, large_invited=7, large_dropped=2, large_dim=70_000, tries=1)
    rows = secagg_rows(masked_query(5), sizes)
    assert [row["work"] for row in rows] == ["secagg.mask", "secagg.unmask", "secagg.round1000"]
    for row in rows:
        assert set(row) == set(Row.__annotations__)
        assert row["ours"] > 0 and row["peer"] > 0 and row["limit"] is not None and row["limit"] > 0
        assert row["ratio"] == row["peer"] / row["ours"] and row["limit_ratio"] == row["ours"] / row["limit"]
    assert "control bytes" in rows[1]["same"]


def test_rows_of_the_model_are_measured_against_their_aims(tiny_model_dir: Path) -> None:
    model = LanguageModel.load(tiny_model_dir, top_layers=2)
    rows = model_rows(model, FaceSizes(tries=2, tokens=4))
    assert [row["work"] for row in rows] == ["face.generation", "face.switch_person", "face.switch_release"]
    for row in rows:
        assert set(row) == set(FaceRow.__annotations__) and row["value"] > 0
        more = row["work"] == "face.generation"
        assert row["holds"] == (row["value"] >= row["aim"] if more else row["value"] <= row["aim"])
        assert row["worst"] <= row["value"] if more else row["worst"] >= row["value"]
    assert model.first > 0 and model.peft is None, "the model is left as it was"


@pytest.mark.e2e
def test_rows_of_the_program_come_from_the_real_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A minute of waiting: the program must end by itself and give its memory back."""
    rows = {r["work"]: r for r in served_rows(tmp_path, str(tiny_model_dir), FaceSizes(notes=12, tries=2, together=8))}
    assert {"face.first_word", "face.together", "face.idle"} <= set(rows)
    assert rows["face.together"]["holds"] and rows["face.idle"]["holds"] and rows["face.idle"]["worst"] > 10
    assert rows["face.first_word"]["value"] > 0
