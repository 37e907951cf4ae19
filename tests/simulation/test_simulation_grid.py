"""A grid of runs: its points and folders, its refusals before any run, one table, and going on after a cut."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from privacy.errors import ConfigError
from simulation.grid import TABLE, Point, points, run_grid
from simulation.progress import Progress
from simulation.run import simulate


def test_points_are_every_combination_and_seed() -> None:
    found = points(["rounds=1,2", "personas=0, 2"], 2, first_seed=5)
    assert [(p.settings, p.seed) for p in found[:3]] == [
        (("rounds=1", "personas=0"), 5),
        (("rounds=1", "personas=0"), 6),
        (("rounds=1", "personas=2"), 5),
    ]
    assert len({p.folder for p in found}) == len(found) == 8
    assert points([], 3) == [Point((), seed) for seed in range(3)]


def test_two_points_never_share_a_folder() -> None:
    odd = [Point((f"people=a{mark}b",), 0).folder for mark in ("/", "\\", ":", " ", "_")]
    assert len(set(odd)) == 5 and all(len(folder.parts) == 2 and ".." not in folder.parts for folder in odd)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["rounds"], "--grid takes key=a,b, not 'rounds'"),
        (["rounds=,"], "--grid takes key=a,b"),
        (["rounds=1", "rounds=2"], "--grid names rounds twice"),
        (["seed=1,2"], "say --seeds N"),
        ([f"rounds={','.join(map(str, range(1, 600)))}", "personas=0,2"], "more than 1000"),
        (["nonsense=1,2"], "unknown key nonsense"),
        (["rounds=1,zero"], "rounds must be int"),
    ],
)
def test_a_wrong_grid_is_refused_before_the_first_run(grid: list[str], said: str, tmp_path: Path) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a run was begun")

    with pytest.raises(ConfigError, match=said):
        run_grid(None, [], grid, 1, tmp_path, never)


def test_a_grid_writes_one_table_and_goes_on(run: Any, hosts_here: Any, tmp_path: Path) -> None:
    made = []

    def one(config: Any, folder: Path) -> Any:
        made.append(folder.relative_to(tmp_path).as_posix())
        return simulate(config, folder, Progress(quiet=True), open_hosts=hosts_here)

    settings = run.settings("workers=1", "compare_without_noise=false", "rounds=1")
    run_grid(None, settings, ["local.step=0.1"], 1, tmp_path, one)
    run_grid(None, settings, ["local.step=0.1,0.2"], 1, tmp_path, one)
    assert made == ["local.step=0.1/seed-0", "local.step=0.2/seed-0"], "a finished run is not made again"
    with (tmp_path / TABLE).open() as file:
        lines = list(csv.DictReader(file))
    assert [line["local.step"] for line in lines] == ["0.1", "0.2"]
    assert float(lines[0]["global.gain"]) != float(lines[1]["global.gain"])
    assert float(lines[0]["epsilon@1e-06"]) > 0 and lines[0]["private"] == "True"
