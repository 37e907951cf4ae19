"""What a simulation costs as it grows: `python -m simulation.scale measure MODEL OUT.jsonl | plot OUT.jsonl SVG`.

    one factor at a time around a middle: people, devices a round, shared numbers, personas

Each point is `confide simulate` of synthetic people in a process of its own, from start to audit; seconds and memory
are read from outside, for all of its processes together, with what they share counted once (`simulation.bench.process`;
Linux alone has that figure). A point that OUT.jsonl holds is not measured again.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privacy.errors import DataError
from simulation.bench import process

MIB = 2**20
LABELS = {
    "people": "people",
    "cohort": "devices a round",
    "numbers": "shared numbers",
    "personas": "personas",
    "peak_mib": "MiB at most, all processes",
    "processor_seconds": "processor seconds, all processes",
}


@dataclass(frozen=True)
class Point:
    """One run: what varies. `rank` gives 7 rank^2 numbers a layer; half of the rounds train `personas` if there are."""

    people: int = 10_000
    cohort: int = 100
    rank: int = 8
    personas: int = 0
    rounds: int = 2

    def settings(self, model: Path) -> list[str]:
        """Return the settings of the run, as on the command line."""
        return [
            f'people="synthetic:{self.people}"',
            f'model="{model}"',
            f"cohort={self.cohort}",
            f"adapter.rank={self.rank}",
            f"personas={self.personas}",
            f"rounds={self.rounds}",
            "engine=local",
            "workers=2",
            "cache_mb=16",
            "privacy.transport=ideal",
            "scrub=false",
            "compare_without_noise=false",
            "adapter.layers=2",
            "adapter.samples=8",
            "adapter.sample_tokens=24",
            "evaluation.held_out=32",
            "own.people=0",
        ]


CURVES: Mapping[str, Sequence[Point]] = {
    "people": [replace(Point(), people=n) for n in (1_000, 10_000, 100_000, 1_000_000)],
    "cohort": [replace(Point(), cohort=n) for n in (50, 100, 400)],
    "rank": [replace(Point(), rank=r) for r in (8, 16, 32)],
    "personas": [replace(Point(), personas=k) for k in (0, 2, 4)],
    "large": [Point(people=100_000, cohort=1_000, rounds=5)],
}


def measured(point: Point, model: Path) -> dict[str, Any]:
    """Return the figures of one run: seconds by round, processor seconds, MiB by look, bytes on the disk.

    Raises BenchFailed where the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="confide-scale-") as place:
        out = Path(place) / "run"
        words = [word for setting in point.settings(model) for word in ("--set", setting)]
        command = [sys.executable, "-P", "-m", "confide", "simulate", "--out", str(out), "--json", *words]
        cost = process.measured(command, {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)})
        report = json.loads(cost.output)
        return {
            **asdict(point),
            "numbers": report["what"]["shared_numbers"],
            "seconds": round(cost.seconds, 2),
            "round_seconds": [round(row["seconds"], 3) for row in report["rounds"]],
            "processor_seconds": round(cost.cpu_s, 2),
            "phases": {name: round(value, 2) for name, value in report["cost"]["phases"].items()},
            "memory_mib": [round(each, 1) for each in cost.memory_mb],
            "peak_mib": round(cost.peak_mb, 1),
            "devices": len(list((out / "ledger" / "devices").glob("*.jsonl"))),
            "disk_mib": round(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / MIB, 2),
        }


def known(path: Path) -> list[dict[str, Any]]:
    """Return the points that were measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(model: Path, out: Path, names: Sequence[str]) -> None:
    """Measure what is missing of the named curves (all without a name), a line to `out` each."""
    for name in names or CURVES:
        for point in CURVES[name]:
            if any(row.items() >= asdict(point).items() for row in known(out)):
                continue
            sys.stderr.write(f"{name}: {point}\n")
            row = measured(point, model)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw memory by second of the largest run, and curves of two points at least. Raises DataError for none."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "confide", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot as plt

    if not rows:
        raise DataError("nothing was measured")
    panels = [("people", "peak_mib"), ("people", "processor_seconds"), ("cohort", "processor_seconds")]
    panels += [("numbers", "processor_seconds"), ("personas", "processor_seconds")]
    panels = [panel for panel in panels if len(_along(rows, panel[0])) > 1]
    size = (3.6 + 2.0 * len(panels), 2.4)
    figure, grid = plt.subplots(1, 1 + len(panels), figsize=size, layout="constrained", squeeze=False)
    first, *axes = grid[0]
    largest = max(rows, key=lambda row: row["people"] * row["rounds"] * row["cohort"])
    looks = largest.get("memory_mib", [])
    first.plot([largest["seconds"] * (at + 1) / len(looks) for at in range(len(looks))], looks, color="#1b6ca8")
    first.set(xlabel=f"second of {largest['people']:,} people", ylabel=LABELS["peak_mib"], ylim=(0, None))
    for axis, (factor, what) in zip(axes, panels, strict=True):
        points = sorted((row[factor], row[what]) for row in _along(rows, factor))
        axis.plot(*zip(*points, strict=True), "o-", color="#1b6ca8", markersize=3)
        axis.set(xlabel=LABELS[factor], ylabel=LABELS[what], ylim=(0, None))
        if factor in ("people", "numbers"):
            axis.set_xscale("log")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _along(rows: Sequence[Mapping[str, Any]], factor: str) -> list[Mapping[str, Any]]:
    """Return the points that differ from the middle in one factor alone."""
    middle = asdict(Point())
    mine = "rank" if factor == "numbers" else factor
    return [row for row in rows if all(row[key] == value for key, value in middle.items() if key != mine)]


def main(arguments: Sequence[str]) -> None:
    """Measure or plot, see above."""
    match list(arguments):
        case ["measure", model, out, *names] if set(names) <= set(CURVES):
            measure(Path(model).resolve(), Path(out), names)
        case ["plot", out, svg]:
            plot(known(Path(out)), Path(svg))
        case _:
            sys.exit(f"measure MODEL OUT.jsonl [{' | '.join(CURVES)} ...], or plot OUT.jsonl SVG")


if __name__ == "__main__":
    main(sys.argv[1:])
