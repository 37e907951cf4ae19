"""A whole simulation beside Flower's (Ray) and pfl-research's: same small model, people, tokens and precision.

Ours is `confide simulate`, transport `ideal`: keys, ledgers, clip, integer noise, the frozen basis, held-out people
scored, release signed, report and audit. The peers average plainly and do none of that. Each side is one command,
measured from outside, from its first instruction to its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.errors import ConfideError
from simulation.bench.environments import OURS, ROOT, Peer, PeerMissing, peer_environment
from simulation.bench.invented import (
    DOCUMENT_TOKENS,
    DOCUMENTS,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    write_people,
    write_small_model,
)
from simulation.bench.limits import Limits
from simulation.bench.process import BenchFailed, Cost, measured
from simulation.bench.row import Row, less_is_better

HELD_OUT = 16
PEER_RANK = 2  # LoRA of rank 2 on q and v has as many numbers as our cores of rank 8 on all seven modules: 1,792
OUR_RANK = 8
TOGETHER = 64  # people whose step is one pass through the model
LEARNING_RATE = 1.0
FLOWER = ("Flower 1.41 simulation (Ray), FedAvg", Peer("flower_fedavg.py", OURS))
PFL = ("pfl-research 0.6 (torch), FedAvg", Peer("pfl_fedavg.py", "pfl"))
PEERS = (FLOWER, PFL)


@dataclass(frozen=True)
class SimulationSizes:
    """How many people take part in each of how many rounds; `workers` processes train at once."""

    people: int = 1000
    rounds: int = 5
    workers: int = 2


def simulation_rows(
    folder: Path,
    sizes: SimulationSizes,
    limits: Limits,
    missing: Callable[[str], None],
    peers: Sequence[tuple[str, Peer]] = PEERS,
) -> list[Row]:
    """Return for each peer the rows of seconds, CPU seconds and memory; `missing(line)` where one cannot be run.

    `folder` takes the people, the model and our run. Raises ConfideError where our own side fails.
    """
    model = write_small_model(folder / "model")
    people = write_people(folder / "people.jsonl", sizes.people + HELD_OUT)
    ours, report = our_run(folder, model, people, sizes)
    job = {
        "model": str(model), "people": str(people), "count": sizes.people, "rounds": sizes.rounds, "rank": PEER_RANK,
        "learning_rate": LEARNING_RATE, "workers": sizes.workers,
    }  # fmt: skip
    rows = []
    for name, peer in peers:
        try:
            cost, found = peer.run(job, folder)
        except (BenchFailed, PeerMissing) as error:
            missing(f"{name}: not run: {error}")
            continue
        if not found["losses"][-1] < found["losses"][0]:
            raise ConfideError(f"{name} learned nothing: its figures stand for no training")
        rows += _rows(name, sizes, ours, cost, _same(sizes, report, found), _least_work(sizes) / limits.gemm_float32)
    return rows


def our_run(folder: Path, model: Path, people: Path, sizes: SimulationSizes) -> tuple[Cost, dict[str, Any]]:
    """Run `confide simulate` over `people` into `folder`/run and return what it took, and its report."""
    settings = [
        f'people="{people}"', f'model="{model}"', f"max_people={sizes.people + HELD_OUT}", f"rounds={sizes.rounds}",
        f"evaluation.held_out={HELD_OUT}", f"evaluation.test_tokens={DOCUMENT_TOKENS}", "engine=local",
        f"workers={sizes.workers}", "privacy.transport=ideal", "scrub=false", "compare_without_noise=false",
        f"adapter.rank={OUR_RANK}", f"local.own_tokens={DOCUMENTS * DOCUMENT_TOKENS}", "own.people=0",
        f"local.together={TOGETHER}",
    ]  # fmt: skip
    arguments = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "confide", "simulate", "--out", str(folder / "run"), "--json", *arguments]
    environment = peer_environment() | {
        "CONFIDE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    cost = measured(command, environment)
    report: dict[str, Any] = json.loads(cost.output)
    return cost, report


def _rows(name: str, sizes: SimulationSizes, ours: Cost, cost: Cost, same: str, least_s: float) -> list[Row]:
    work = f"simulate.{sizes.people}"
    both = f"{same}; limit: the model's products alone, forward and backward, at the rate of large ones"
    return [
        less_is_better(
            work, "seconds, whole process", ours.seconds, (name, cost.seconds), both, least_s / sizes.workers
        ),
        less_is_better(f"{work}.cpu", "CPU seconds, whole process", ours.cpu_s, (name, cost.cpu_s), both, least_s),
        less_is_better(f"{work}.memory", "MB at most, all processes", ours.peak_mb, (name, cost.peak_mb), same),
    ]


def _least_work(sizes: SimulationSizes) -> float:
    """Return the multiplications of all steps: each layer forward and backward, weights aside (they are frozen)."""
    wide, narrow = HIDDEN * HIDDEN, HIDDEN * HIDDEN * KV_HEADS // HEADS
    layer = 2 * wide + 2 * narrow + 3 * HIDDEN * INTERMEDIATE
    tokens = sizes.people * sizes.rounds * DOCUMENTS * DOCUMENT_TOKENS
    return 2.0 * tokens * (LAYERS * layer + HIDDEN * VOCABULARY)


def _same(sizes: SimulationSizes, report: dict[str, Any], found: dict[str, Any]) -> str:
    training = report["cost"]["phases"]["training"]
    return (
        f"{sizes.people} people, {sizes.rounds} rounds, one step each on {DOCUMENTS} documents of {DOCUMENT_TOKENS} "
        f"tokens, float32, {found['numbers']} numbers trained, {sizes.workers} workers; not the same: where the "
        f"numbers sit; ours takes {TOGETHER} people's steps in one pass, and it alone clips each document and person, "
        "adds integer noise, keeps a signed ledger a person, "
        f"makes a basis, scores {HELD_OUT} more people, audits and reports; of it the rounds took ours "
        f"{training:.1f} s, the peer {found['rounds_s']:.1f} s"
    )
