"""`python -m simulation.search.payers WORK DATA RUN …`: who gains how much, by amount of text and by kind of people.

    gain of a group = 1 - sum of nats after / sum of nats before,      95 % interval over its people

Groups are thirds of the reported people: by the words that they have written in all, by how far their text lies from
what the base model expects (nats a word of the scored text), by the length of their sentences. Nobody's name is
printed. Runs that differ in epsilon alone, side by side, say who pays for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from privacy.errors import DataError
from simulation.datasets.jsonl import load
from simulation.search.__main__ import REPORTED
from simulation.search.scored import bootstrap, relative_gain
from simulation.search.slices import slices_of

Vector = NDArray[np.float64]
THIRDS = ("lowest third", "middle third", "highest third")


def features(people: Sequence[Person]) -> dict[str, Vector]:
    """Return by name one number a person: words in all, and words between two ends of a sentence."""
    texts = [" ".join(document.text for document in person.history) for person in people]
    words = np.array([len(text.split()) for text in texts], dtype=np.float64)
    ends = np.array([sum(text.count(mark) for mark in ".!?") for text in texts], dtype=np.float64)
    return {"words written": words, "words a sentence": words / np.maximum(ends, 1)}


def by_thirds(feature: Vector, base: Vector, after: Vector) -> list[tuple[float, float, float]]:
    """Return gain and interval of each third by `feature`, ties by order."""
    order = np.argsort(feature, kind="stable")
    rows = []
    for third in np.array_split(order, 3):
        rows.append((relative_gain(base[third], after[third]), *bootstrap(base[third], after[third])))
    return rows


def table(runs: Mapping[str, Mapping[str, list[float]]], people: Sequence[Person]) -> str:
    """Return a Markdown table: groups down, runs across; DataError where a run lacks what it takes."""
    lines = ["| people | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    known = features(people)
    read = {name: _nats(name, run, len(people)) for name, run in runs.items()}
    for name in ("words written", "words a sentence", "nats a word under base"):
        cells = []
        for base, after in read.values():
            feature = known.get(name, base / np.array([max(1, len(p.test[0].text.split())) for p in people]))
            cells.append(
                [
                    f"{100 * g:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
                    for g, low, high in by_thirds(feature, base, after)
                ]
            )
        lines += [f"| {name}, {third} | " + " | ".join(c[i] for c in cells) + " |" for i, third in enumerate(THIRDS)]
    return "\n".join(lines)


def _nats(name: str, run: Mapping[str, list[float]], people: int) -> tuple[Vector, Vector]:
    if len(run.get("base_nats", ())) != people or len(run.get("by_person", ())) != people:
        raise DataError(f"{name}: its report does not hold these {people} people")
    base = np.array(run["base_nats"])
    return base, base * (1 - np.array(run["by_person"]))


def main(arguments: Sequence[str]) -> None:
    """Print the table of the runs named on the command line."""
    work, data, names = Path(arguments[0]), Path(arguments[1]), arguments[2:]
    pool = load(data / os.environ.get("SEARCH_POOL", "pool.jsonl"), 1).people
    others = load(data / os.environ.get("SEARCH_OTHERS", "others.jsonl"), 1).people
    runs = {name: json.loads((work / name / "report.json").read_text()) for name in names}
    sys.stdout.write(table(runs, slices_of(pool, others, REPORTED).report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
