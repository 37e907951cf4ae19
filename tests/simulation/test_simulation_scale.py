"""The measurement of what grows with what: a run from start to audit, and the drawing of what was found."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import DataError
from simulation.bench.process import BenchFailed
from simulation.config import load_config
from simulation.scale import CURVES, Point, main, measured, plot


def row(point: Point) -> dict[str, Any]:
    return {
        **asdict(point),
        "numbers": 14 * point.rank**2,
        "processor_seconds": point.cohort / 50,
        "peak_mib": 900.0,
        "seconds": 9.0,
    }


def test_every_point_is_a_configuration_and_differs_from_the_middle_in_one_thing(tmp_path: Path) -> None:
    for name, points in CURVES.items():
        for point in points:
            config = load_config(None, point.settings(tmp_path))
            assert config.people == f"synthetic:{point.people}" and config.cohort == point.cohort
            assert name == "large" or replace(point, **{name: getattr(Point(), name)}) == Point()


def test_equal_figures_are_an_equal_drawing(tmp_path: Path) -> None:
    rows = [row(point) for name, points in CURVES.items() if name != "large" for point in points]
    for name in ("one.svg", "two.svg"):
        plot(rows, tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text() and "devices a round" in drawn
    with pytest.raises(DataError, match="nothing was measured"):
        plot([], tmp_path / "none.svg")
    with pytest.raises(SystemExit, match="measure MODEL"):
        main(["measure", "model", "out", "weather"])


@pytest.mark.slow
def test_a_point_is_measured_from_start_to_audit(tiny_model_dir: Path) -> None:
    found = measured(Point(people=300, cohort=16, rounds=1), tiny_model_dir)
    assert found["devices"] == 16 and len(found["round_seconds"]) == 1 and found["peak_mib"] > 300
    assert 0 < found["round_seconds"][0] < found["seconds"] and found["processor_seconds"] > 8, "of the workers too"
    with pytest.raises(BenchFailed, match="confide simulate"):
        measured(Point(people=10, cohort=16), tiny_model_dir)
