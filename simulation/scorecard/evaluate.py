"""`confide evaluate --out`: the scorecard of one or several tasks, each a release and people, into one folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from privacy.canonical import Json
from privacy.errors import ConfigError, DataError
from privacy.release import STAMP
from simulation.evaluate import Evaluation, score_personas
from simulation.evaluate_run import Subject, hosts_of, open_run
from simulation.host import HostPool, Hosts, HostSettings
from simulation.population import load_people
from simulation.progress import Progress
from simulation.scorecard.arms import PERSONA_CORE, arms_named
from simulation.scorecard.person import CardSettings
from simulation.scorecard.run import Asked, TaskCards, run_cards
from simulation.scorecard.table import Table, table_of
from simulation.setting import drawn, split_people

Vector = NDArray[np.float64]


class Release(TypedDict):
    """What a task's release claims, and why it may claim nothing."""

    task: str
    release: str
    not_private: list[str]
    privacy: dict[str, Json]
    model: str
    people_in_training: int


class CardReport(TypedDict):
    """What `confide evaluate --out` writes as `report.json`: the table, the releases' claims, the cost."""

    table: Table
    releases: list[Release]
    seconds: float
    settings: dict[str, Json]


@dataclass(frozen=True)
class Question:
    """One task of a scorecard: the folder of a run, and a source of people, None for the run's own."""

    run: Path
    people: str | None


def questions(runs: Sequence[Path], sources: Sequence[str]) -> list[Question]:
    """Return the tasks: every run on its own people, one run on each source, or run and source in pairs.

    Raises ConfigError where the numbers of runs and sources do not go together.
    """
    if not sources:
        return [Question(run, None) for run in runs]
    if len(runs) == 1:
        return [Question(runs[0], source) for source in sources]
    if len(runs) != len(sources):
        raise ConfigError(f"{len(runs)} runs and {len(sources)} sources of people: give one run, or as many as sources")
    return [Question(run, source) for run, source in zip(runs, sources, strict=True)]


def scorecard(
    asked: Sequence[Question],
    arms: Sequence[str],
    settings: CardSettings,
    progress: Progress,
    *,
    people: int | None = None,
    seeds: int = 1,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts] = HostPool,
) -> CardReport:
    """Return the scorecard of all tasks; `people` bounds how many of each are scored, drawn by the run's seed.

    Nothing is tuned on what is reported and nothing is kept. Raises what `evaluate_run` raises.
    """
    started, named = time.monotonic(), arms_named(arms)
    tasks: list[TaskCards] = []
    releases: list[Release] = []
    for question in asked:
        subject = open_run(question.run)
        task, release = _one(subject, question, named, settings, people, range(seeds), progress, open_hosts)
        tasks.append(task)
        releases.append(release)
    _distinct(tasks, releases)
    rng = np.random.default_rng([0, 11])
    return {
        "table": table_of(tasks, list(range(seeds)), rng),
        "releases": releases,
        "seconds": time.monotonic() - started,
        "settings": dict(vars(settings)),
    }


def _one(
    subject: Subject,
    question: Question,
    arms: Sequence[str],
    settings: CardSettings,
    most: int | None,
    seeds: Sequence[int],
    progress: Progress,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts],
) -> tuple[TaskCards, Release]:
    chosen, inactive, source = card_people(subject, question.people, most)
    layout = subject.release.basis.layout
    flat = {name: layout.flatten(cores) for name, cores in subject.release.adapters.items()}
    task = TaskCards(source, source, inactive)
    with (
        tempfile.TemporaryDirectory(prefix="confide-") as place,
        open_hosts(hosts_of(subject, chosen, Path(place))) as hosts,
    ):
        personas = _personas(hosts, [p.user for p in chosen], flat) if PERSONA_CORE in arms or "all" in arms else {}
        run_cards(hosts, Asked(chosen, flat["global"], personas, arms, settings), seeds, task, progress)
    release: Release = {
        "task": source,
        "release": subject.release.sha256,
        "not_private": [] if subject.release.facts.private else [f"the release is stamped {STAMP}"],
        "privacy": dict(subject.release.facts.privacy),
        "model": subject.config.model,
        "people_in_training": len(subject.devices & {p.user for p in chosen}),
    }
    return task, release


def card_people(subject: Subject, source: str | None, most: int | None) -> tuple[list[Person], int, str]:
    """Return who is scored, how many have nothing to score or to learn from, and the name of the source.

    Of the run's own people those held out, where some are. Raises DataError where nobody can be scored.
    """
    config = subject.config
    population = load_people(source or config.people, None if source else config.max_people)
    people = population.people
    if source is None:
        trained, held_out = split_people(population, config)
        people = held_out or trained
    active = [person for person in people if person.test and person.history]
    name = Path(population.source).stem
    if not active:
        raise DataError(f"{name}: nobody has both history and a test document")
    kept = set(drawn([p.user for p in active], most or len(active), [config.seed, 5]))
    return [p for p in active if p.user in kept], len(people) - len(active), name


def _personas(hosts: Hosts, users: Sequence[str], flat: Mapping[str, Vector]) -> dict[str, Vector]:
    """Return the flat core of the persona that fits each person's history, global included."""
    names = sorted(name for name in flat if name.startswith("persona-"))
    if not names:
        return {}
    numbers = score_personas(hosts, users, flat["global"], [flat[name] for name in names], Evaluation())
    return {user: flat["global"] + flat[names[number]] for user, number in numbers.items()}


def _distinct(tasks: Sequence[TaskCards], releases: Sequence[Release]) -> None:
    """Give tasks of one source different names."""
    seen: dict[str, int] = {}
    for task, release in zip(tasks, releases, strict=True):
        seen[task.task] = seen.get(task.task, 0) + 1
        if seen[task.task] > 1:
            task.task = release["task"] = f"{task.task} ({seen[task.task]})"
