"""`confide simulate --grid key=a,b --seeds 3`: one run for every point and seed, and one table of all of them.

    OUT/rounds=2,personas=0/seed-0/     a RUN
    OUT/grid.csv                        one line a run: the point, the seed, what each arm is worth, epsilon, seconds

Finished runs are read, not made again: a grid that was cut off goes on.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.canonical import sha256_hex
from privacy.errors import ConfigError
from privacy.files import write_atomic
from simulation.config import RunConfig, load_config
from simulation.report_schema import Report

TABLE = "grid.csv"
MOST_RUNS, LONGEST = 1000, 120
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=,+-]+")
Run = Callable[[RunConfig, Path], Report]


@dataclass(frozen=True)
class Point:
    """One point of a grid: its settings as `key=value`, the seed, and the name of its folder."""

    settings: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """Return where the point's run lies below the grid's folder; two points never share one."""
        name = ",".join(self.settings) or "default"
        safe = _UNSAFE.sub("_", name)
        plain = safe == name and len(safe) < LONGEST
        return Path(safe if plain else f"{safe[:80]}-{sha256_hex(name.encode())[:8]}") / f"seed-{self.seed}"


def axes(grid: Sequence[str]) -> dict[str, list[str]]:
    """Return key -> values of `key=a,b` texts. Raises ConfigError for another form, a key twice, no value."""
    found: dict[str, list[str]] = {}
    for text in grid:
        key, equals, values = text.partition("=")
        several = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not key.strip() or not several:
            raise ConfigError(f"--grid takes key=a,b, not {text!r}")
        if key.strip() in found:
            raise ConfigError(f"--grid names {key.strip()} twice")
        if key.strip() == "seed":
            raise ConfigError("--grid seed=…: say --seeds N")
        found[key.strip()] = list(dict.fromkeys(several))
    return found


def points(grid: Sequence[str], seeds: int, first_seed: int = 0) -> list[Point]:
    """Return every point of the grid with every seed, in the order of the text. Raises ConfigError as `axes`."""
    found = axes(grid)
    every = [
        Point(tuple(f"{key}={value}" for key, value in zip(found, values, strict=True)), first_seed + seed)
        for values in itertools.product(*found.values())
        for seed in range(seeds)
    ]
    if len(every) > MOST_RUNS:
        raise ConfigError(f"the grid has {len(every)} runs, more than {MOST_RUNS}: fewer values, or fewer seeds")
    return every


def run_grid(
    config: Path | None, settings: Sequence[str], grid: Sequence[str], seeds: int, out: Path, run: Run
) -> list[dict[str, Any]]:
    """Run every point into a folder below `out`, write the table after each, and return its lines.

    All configurations are checked before the first run, so that a typing error costs no hours.
    """
    first_seed = load_config(config, settings).seed
    every = points(grid, seeds, first_seed)
    configs = [load_config(config, [*settings, *p.settings, f"seed={p.seed}"]) for p in every]
    lines: list[dict[str, Any]] = []
    for point, one in zip(every, configs, strict=True):
        folder = out / point.folder
        lines.append(line_of(point, _finished(folder, one) or run(one, folder)))
        write_atomic(out / TABLE, _table(lines))
    return lines


def _finished(folder: Path, config: RunConfig) -> Report | None:
    """Return the report of a finished run of this very configuration in `folder`, if it is one."""
    try:
        report: Report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kept = {k: v for k, v in manifest.get("config", {}).items() if v is not None}
    same = kept == {k: v for k, v in config.flat().items() if v is not None}
    return report if same and manifest.get("state") == "finished" else None


def line_of(point: Point, report: Report) -> dict[str, Any]:
    """Return one line of the table: the point, seed, and of every arm bits, gain, interval and people better."""
    line: dict[str, Any] = dict(text.split("=", 1) for text in point.settings)
    line |= {"seed": point.seed, "private": not report["not_private"], **_privacy(report)}
    line |= {"seconds": report["cost"]["seconds"], "bytes_up": report["cost"]["bytes_up_per_device"]}
    for name, arm in sorted(report["arms"].items()):
        line |= {f"{name}.bits_per_token": arm["bits_per_token"], f"{name}.gain": arm["relative_gain"]}
        line |= {f"{name}.low": arm["low"], f"{name}.high": arm["high"], f"{name}.better": arm["users_improved"]}
    return line


def _privacy(report: Report) -> Mapping[str, Any]:
    claimed = None if report["not_private"] else report["privacy"]
    epsilons = claimed["epsilon"] if claimed else {}
    return {"rho": claimed["rho"] if claimed else None, **{f"epsilon@{delta}": e for delta, e in epsilons.items()}}


def _table(lines: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(itertools.chain.from_iterable(_ordered(lines))))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue().encode()


def _ordered(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for line in lines:
        yield list(line)
