"""The measurement of what grows with what: it reads the memory of all processes of a run and draws what it found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import ConfigError, DataError
from simulation.config import load_config
from simulation.scale import CURVES, MIB, Point, family, main, measured, memory_of, plot


def row(point: Point) -> dict[str, Any]:
    return {**asdict(point), "numbers": 14 * point.rank**2, "processor_seconds": point.cohort / 50, "peak_mib": 900.0}


def test_the_memory_of_a_run_is_that_of_all_its_processes() -> None:
    held = f"import time; kept = bytearray({64 * MIB}); print('there', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        both, alone = family(os.getpid()), family(child.pid)
        assert child.pid in both and alone == [child.pid]
        assert 64 * MIB < memory_of(child.pid) < 128 * MIB
        child.kill()
    assert memory_of(child.pid) == 0, "one that has gone holds nothing"


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
    assert 0 < found["round_seconds"][0] < found["seconds"] and found["processor_seconds"] > 1
    with pytest.raises(ConfigError, match=r"the run of .* failed"):
        measured(Point(people=10, cohort=16), tiny_model_dir)
