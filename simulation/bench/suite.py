"""`confide bench all`: every row beside a peer, in one run, with the limits of this machine measured in it.

A part whose peer cannot be had (no network) or which fails is left out with a line that says so; the others go on.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from privacy.errors import ConfideError
from simulation.bench.row import Row

if TYPE_CHECKING:
    from simulation.bench.limits import Limits
    from simulation.progress import Progress

Missing = Callable[[str], None]


class Bench(TypedDict):
    """What `bench --json` writes: rows, the machine's rates, what it is in words, and what was not run."""

    rows: list[Row]
    limits: dict[str, float]
    machine: str
    not_run: list[str]


@dataclass(frozen=True)
class BenchSizes:
    """How large each part is; the defaults are what docs/performance.md shows."""

    devices: int = 1000
    people: int = 1000
    rounds: int = 5
    documents: int = 10_000
    train_documents: int = 64
    test_documents: int = 16
    epochs: int = 3
    dp_documents: int = 8
    rank: int = 16
    model: str = "smollm2-135m"
    train_people: str = "chitchat"


Done = Callable[[Bench], None]
Parts = dict[str, Callable[[BenchSizes, "Limits", Missing], list[Row]]]


def run_parts(
    names: list[str], sizes: BenchSizes, progress: Progress, parts: Parts | None = None, done: Done = lambda _: None
) -> Bench:
    """Return the rows of the named parts, in order; `parts` None for `PARTS`. `done` gets all so far after each."""
    from simulation.bench.limits import machine_limits

    progress.note("the machine's limits")
    limits, rows, not_run = machine_limits(), list[Row](), list[str]()
    for name in names:
        progress.note(f"{name} …")
        try:
            rows += (parts or PARTS)[name](sizes, limits, not_run.append)
        except (ConfideError, MemoryError) as error:
            not_run.append(f"{name}: {error}")
        done(found := Bench(rows=rows, limits=limits.as_json(), machine=machine(), not_run=not_run))
    return found


def machine() -> str:
    """Return this machine in words: cores that may be used, architecture, system."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def start(_sizes: BenchSizes, _limits: Limits, _missing: Missing) -> list[Row]:
    """Return `start.help`."""
    from simulation.bench.start import start_row

    return [start_row()]


def message(sizes: BenchSizes, _limits: Limits, _missing: Missing) -> list[Row]:
    """Return `relay.message`."""
    from client.base_model import base_model_path
    from simulation.bench.message import message_row

    return [message_row(base_model_path(sizes.model))]


def generate(sizes: BenchSizes, limits: Limits, _missing: Missing) -> list[Row]:
    """Return `generate.adapters`."""
    from client.base_model import base_model_path
    from simulation.bench.generation import adapters_row

    return [adapters_row(base_model_path(sizes.model), limits, sizes.rank)]


def retrieve(sizes: BenchSizes, limits: Limits, missing: Missing) -> list[Row]:
    """Return `retrieve.sparse`, `retrieve.dense`, `retrieve.hybrid`, `retrieve.encode`."""
    from simulation.bench.retrieval import RetrievalSizes, retrieval_rows

    with tempfile.TemporaryDirectory() as folder:
        return retrieval_rows(Path(folder), limits, missing, RetrievalSizes(documents=sizes.documents))


def simulate(sizes: BenchSizes, limits: Limits, missing: Missing) -> list[Row]:
    """Return `simulate.N`, its CPU seconds and its memory, for each peer."""
    from simulation.bench.simulate import SimulationSizes, simulation_rows

    with tempfile.TemporaryDirectory() as folder:
        return simulation_rows(Path(folder), SimulationSizes(sizes.people, sizes.rounds), limits, missing)


def secagg(sizes: BenchSizes, _limits: Limits, _missing: Missing) -> list[Row]:
    """Return `secagg.mask`, `secagg.unmask`, `secagg.round1000`."""
    from privacy.query import Cohort, Limits, Query
    from simulation.bench.secagg import Sizes, secagg_rows

    digest = "0" * 64
    template = Query(
        federation="bench",
        campaign="secagg",
        round=0,
        attempt=0,
        purpose="train.global",
        slots=1,
        slot_dim=1,
        clip_norm=Fraction(1),
        noise_multiplier=Fraction(1),
        cohort=Cohort(sizes.devices),
        transport="ideal",
        release_sha256=digest,
        basis_sha256=digest,
        policy_sha256=digest,
        ledger_head=digest,
        objective="next-token",
        limits=Limits(own_tokens=1, local_steps=1),
    )
    return secagg_rows(template, Sizes(large_invited=sizes.devices, large_dropped=sizes.devices // 5))


def train(sizes: BenchSizes, _limits: Limits, missing: Missing) -> list[Row]:
    """Return `train.step` and `train.to_gain`, against float32 and bfloat16."""
    from simulation.bench.train import train_rows

    path, basis, layers, history, test = _training(sizes)
    return train_rows(path, basis, history, test, layers, sizes.epochs, missing)


def record_dp(sizes: BenchSizes, _limits: Limits, _missing: Missing) -> list[Row]:
    """Return `train.dp`."""
    from simulation.bench.record_dp import dp_row

    path, basis, layers, history, _ = _training(sizes)
    return [dp_row(path, basis, history[: sizes.dp_documents], layers)]


def _training(sizes: BenchSizes) -> tuple[Path, Any, int, Any, Any]:
    """Return model, basis, adapted layers, documents to train on and to score, each of the latter of other people."""
    from client.base_model import base_model_path
    from client.model import LanguageModel
    from simulation.basis_cache import cached_basis
    from simulation.config import AdapterConfig
    from simulation.population import load_people
    from simulation.progress import Progress

    adapter, path = AdapterConfig(rank=sizes.rank), base_model_path(sizes.model)
    basis = cached_basis(path, adapter, 0, Progress(quiet=True))
    model = LanguageModel.load(path, top_layers=adapter.layers)
    everyone = load_people(sizes.train_people, 200).people
    history = [d for i in range(4) for p in everyone[16:] for d in p.history[i : i + 1]][: sizes.train_documents]
    test = [p.test[0] for p in everyone[:16] if p.test][: sizes.test_documents]
    encoded = [[e for e in (model.encode(d, 256) for d in part) if e.own_tokens] for part in (history, test)]
    return path, basis, adapter.layers, encoded[0], encoded[1]


PARTS: Parts = {
    "start": start,
    "message": message,
    "generate": generate,
    "retrieve": retrieve,
    "secagg": secagg,
    "train": train,
    "dp": record_dp,
    "simulate": simulate,
}
