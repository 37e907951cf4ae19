"""What a simulation costs as it grows: `python -m simulation.scale measure MODEL OUT.jsonl | plot OUT.jsonl SVG`.

    one factor at a time around a middle: people, devices a round, shared numbers, personas

Each point is `confide simulate` of synthetic people in a process of its own, from start to audit; memory is read from
outside, for all of its processes together, with what they share counted once (Linux alone has that figure). A point
that OUT.jsonl holds is not measured again.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from privacy.errors import ConfigError, DataError

EVERY_S = 1.0
MIB = 2**20


@dataclass(frozen=True)
class Point:
    """One run: what varies. `rank` gives 7 rank^2 numbers a layer; half of the rounds train `personas` if there are."""

    people: int = 10_000
    cohort: int = 200
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
    "people": [replace(Point(), people=n) for n in (1_000, 10_000, 100_000)],
    "cohort": [replace(Point(), cohort=n) for n in (50, 200, 800)],
    "rank": [replace(Point(), rank=r) for r in (4, 8, 16, 32)],
    "personas": [replace(Point(), personas=k) for k in (0, 2, 4, 8)],
    "large": [Point(people=100_000, cohort=1_000, rounds=5)],
}


def measured(point: Point, model: Path) -> dict[str, Any]:
    """Return the figures of one run: seconds by round, processor seconds, MiB by second, bytes on the disk."""
    with tempfile.TemporaryDirectory(prefix="confide-scale-") as place:
        out = Path(place) / "run"
        words = [word for setting in point.settings(model) for word in ("--set", setting)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        command = [sys.executable, "-P", "-m", "confide", "simulate", "--out", str(out), "--json", *words]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        process = subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        memory: list[float] = []
        while True:
            try:
                text, said = process.communicate(timeout=EVERY_S)
                break
            except subprocess.TimeoutExpired:
                memory.append(round(sum(map(memory_of, family(process.pid))) / MIB, 1))
        if process.returncode:
            raise ConfigError(f"the run of {point} failed: {said.strip().splitlines()[-1] if said.strip() else '?'}")
        after, report = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(text)
        return {
            **asdict(point),
            "numbers": report["what"]["shared_numbers"],
            "seconds": round(time.monotonic() - started, 2),
            "round_seconds": [round(row["seconds"], 3) for row in report["rounds"]],
            "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
            "phases": {name: round(value, 2) for name, value in report["cost"]["phases"].items()},
            "memory_mib": memory,
            "peak_mib": max(memory, default=0.0),
            "devices": len(list((out / "ledger" / "devices").glob("*.jsonl"))),
            "disk_mib": round(sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) / MIB, 2),
        }


def family(pid: int) -> list[int]:
    """Return a process and all that it started, as far as they are still there."""
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found.extend(map(int, tasks.read_text().split()))
            except OSError:
                continue
    return found


def memory_of(pid: int) -> int:
    """Return the bytes of a process, pages that n processes share counted as an n-th; 0 for one that has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


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
    """Draw seconds of a round and memory over people, and seconds over the other factors. Raises DataError for none."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "confide", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot as plt

    if not rows:
        raise DataError("nothing was measured")
    panels = [("people", "peak_mib", "MiB, all processes, at most"), ("people", "round", "seconds a round")]
    panels += [("cohort", "round", "seconds a round"), ("numbers", "round", "seconds a round")]
    panels += [("personas", "round", "seconds of a persona round")]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 2.4), layout="constrained")
    for axis, (factor, what, label) in zip(axes, panels, strict=True):
        points = sorted((row[factor], _figure(row, what)) for row in _along(rows, factor))
        axis.plot(*zip(*points, strict=True), "o-", color="#1b6ca8", markersize=3)
        axis.set(xlabel=factor if factor != "numbers" else "shared numbers", ylabel=label, ylim=(0, None))
        if factor in ("people", "numbers"):
            axis.set_xscale("log")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _along(rows: Sequence[Mapping[str, Any]], factor: str) -> list[Mapping[str, Any]]:
    """Return the points that differ from the middle in one factor alone."""
    middle = asdict(Point())
    mine = "rank" if factor == "numbers" else factor
    return [row for row in rows if all(row[key] == value for key, value in middle.items() if key != mine)]


def _figure(row: Mapping[str, Any], what: str) -> float:
    """Return a figure of a point; a round's seconds are the last round's: the first also loads and prepares."""
    return float(row["round_seconds"][-1] if what == "round" else row[what])


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
