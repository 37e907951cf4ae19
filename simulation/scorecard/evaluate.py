"""`confide evaluate --out`: the scorecard of one or several tasks, each a release and people, into one folder."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from client.encoder import open_encoder
from privacy.canonical import Json
from privacy.errors import ConfigError, DataError
from privacy.release import STAMP
from simulation.baselines.run import Federation, score_baselines
from simulation.evaluate import Evaluation, score_personas
from simulation.evaluate_run import Subject, hosts_of, open_run
from simulation.extension import extension
from simulation.host import HostPool, Hosts, HostSettings
from simulation.population import load_people
from simulation.progress import Progress
from simulation.scorecard.arms import BASELINES, CHOSEN, PERSONA_CORE, PROBED, PROBED_PLANTED, WRITTEN, arms_named
from simulation.scorecard.bias import BIAS_ARMS, Bias, bias_of
from simulation.scorecard.choice import Choices, chance, choice_values, labels_of, micro_f1
from simulation.scorecard.criteria import Measure, adjusted, measure_rows, probe_values
from simulation.scorecard.criteria import notes as criteria_notes
from simulation.scorecard.groups import Gap, Group, group_rows
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.person import PersonCard
from simulation.scorecard.planted_people import planted_people
from simulation.scorecard.probes import neutral_documents, pair_documents
from simulation.scorecard.reader import Rows
from simulation.scorecard.run import Asked, TaskCards, run_cards
from simulation.scorecard.table import Table, table_of, told_notes
from simulation.scorecard.tasks import DEFAULT as DEFAULT_TASK
from simulation.scorecard.tasks import task_named
from simulation.scorecard.written import Values, responsiveness_of, written_values
from simulation.setting import drawn, split_people

Vector = NDArray[np.float64]
OWN_PEOPLE = "own"


class Release(TypedDict):
    """What a task's release claims, and why it may claim nothing.

    `adversaries` is epsilon at the run's delta against each, by the signed claim; `cost` what the run cost a device, as
    its report has it, empty where it has none.
    """

    task: str
    release: str
    not_private: list[str]
    privacy: dict[str, Json]
    model: str
    people_in_training: int
    delta: float
    adversaries: dict[str, float | None]
    cost: dict[str, float]


class CardReport(TypedDict):
    """What `confide evaluate --out` writes as `report.json`: the table, the releases' claims, the cost.

    `groups` and `gaps` say whom it serves. With criteria, `measures` of what has no judge, and by task and arm EGISES
    and PerSEval (`responsiveness`), and by invented attributes how neutral questions are answered (`bias`).
    """

    table: Table
    measures: list[Measure]
    groups: list[Group]
    gaps: list[Gap]
    responsiveness: dict[str, dict[str, dict[str, float]]]
    bias: Bias
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

    The source `own` stands for the run's own people. Raises ConfigError where their numbers do not go together.
    """
    if not runs:
        raise ConfigError("a scorecard of text needs the folder of a run")
    if not sources:
        return [Question(run, None) for run in runs]
    if len(runs) == 1:
        return [Question(runs[0], _source(source)) for source in sources]
    if len(runs) != len(sources):
        raise ConfigError(f"{len(runs)} runs and {len(sources)} sources of people: give one run, or as many as sources")
    return [Question(run, _source(source)) for run, source in zip(runs, sources, strict=True)]


def _source(name: str) -> str | None:
    return None if name == OWN_PEOPLE else name


def scorecard(
    asked: Sequence[Question],
    arms: Sequence[str],
    settings: CardSettings,
    progress: Progress,
    *,
    people: int | None = None,
    seeds: int = 1,
    criteria: bool = False,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts] = HostPool,
) -> CardReport:
    """Return the scorecard of all tasks; `people` bounds how many of each are scored, drawn by the run's seed.

    With `criteria` neutral questions are asked under the arms `PROBED`, texts written under `WRITTEN`, and invented
    people with known answers scored against the first release.
    Nothing is tuned on what is reported and nothing is kept. Raises what `evaluate_run` raises.
    """
    started, named = time.monotonic(), arms_named([*arms, *_extended(settings)])
    arms = [name for name in named if name not in BASELINES]
    others = tuple(name for name in named if name in BASELINES)
    work = _Work(arms, others, settings, people, range(seeds), criteria, progress, open_hosts)
    tasks: list[TaskCards] = []
    releases: list[Release] = []
    values: dict[str, Values] = {}
    responsiveness: dict[str, dict[str, dict[str, float]]] = {}
    guessed: list[str] = []
    for question in asked:
        subject = open_run(question.run)
        task, release, chosen = work.one(subject, question)
        tasks.append(task)
        releases.append(release)
        _distinct(tasks, releases)
        cards, chosen_by = task.cards[0], {user: card.choices for user, card in task.cards[0].items()}
        values[task.task] = choice_values(chosen_by, labelled=settings.task == "classification")
        guessed.extend(_guessed(task.task, chosen_by))
        if any(card.written for card in cards.values()):
            encoder = open_encoder(settings.encoder)
            code = task_named(settings.task).code
            values[task.task] |= written_values(cards, chosen, encoder, settings.metric, code=code)
            found = {arm: responsiveness_of(cards, arm, encoder) for arm in WRITTEN}
            responsiveness[task.task] = {arm: figures for arm, figures in found.items() if figures}
        values[task.task] |= probe_values(cards)
    if criteria:
        values["planted"] = probe_values(work.probe_people(open_run(asked[0].run)))
    rng = np.random.default_rng([0, 11])
    bias = bias_of(work.bias if criteria else {}, rng)
    measures = adjusted([row for task, some in values.items() for row in measure_rows(task, some, rng)])
    table = table_of(tasks, list(range(seeds)), rng)
    parts = [group_rows(task, table["rows"], rng) for task in tasks]
    table["notes"] = [*told_notes(table), *criteria_notes(measures), *guessed]
    return {
        "table": table,
        "measures": measures,
        "groups": [group for groups, _ in parts for group in groups],
        "gaps": [gap for _, gaps in parts for gap in gaps],
        "responsiveness": responsiveness,
        "bias": bias,
        "releases": releases,
        "seconds": time.monotonic() - started,
        "settings": dict(vars(settings)),
    }


def _guessed(task: str, chosen: Choices) -> list[str]:
    """Return in words what a guess would reach where the task is a choice, and the arms' F1 over all questions."""
    if (share := chance(chosen)) is None:
        return []
    arms = dict.fromkeys(arm for arms in chosen.values() for arm in arms)
    told = ", ".join(f"{arm} {micro_f1(chosen, arm):.1%}" for arm in arms if arm in PROBED)
    return [f"{task}: a guess is right in {share:.1%}; of everybody's questions together right (micro-F1): {told}."]


def _extended(settings: CardSettings) -> list[str]:
    """Return the arms of the classes that `settings` name, each held to its contract before anything is loaded."""
    points = {"retriever": settings.retriever, "prompt": settings.prompt, "adapter": settings.adapter}
    for point, reference in {**points, "metric": settings.metric}.items():
        if reference:
            extension(point, reference)
    return [f"extended_{point}" for point, reference in points.items() if reference]


@dataclass(frozen=True)
class _Work:
    """What is the same for all tasks of a scorecard."""

    arms: Sequence[str]
    baselines: Sequence[str]
    settings: CardSettings
    most: int | None
    seeds: Sequence[int]
    criteria: bool
    progress: Progress
    open_hosts: Callable[[Sequence[HostSettings]], Hosts]
    bias: dict[str, dict[str, Rows]] = field(default_factory=dict)

    def one(self, subject: Subject, question: Question) -> tuple[TaskCards, Release, list[Person]]:
        """Return a task's cards, what its release claims, and who was scored."""
        chosen, inactive, source = card_people(subject, question.people, self.most)
        layout = subject.release.basis.layout
        flat = {name: layout.flatten(cores) for name, cores in subject.release.adapters.items()}
        task = TaskCards(source, source, inactive)
        wanted = {PERSONA_CORE, "all", "all_trusted", CHOSEN} & set(self.arms)
        others = self._trainers(subject, chosen) if self.baselines else []
        with self._hosts(subject, [*chosen, *others]) as hosts:
            personas = _personas(hosts, [p.user for p in chosen], flat) if wanted else {}
            asked = Asked(chosen, flat["global"], personas, self.arms, self.settings)
            kind = task_named(self.settings.task)
            if kind.name == "classification":
                asked = replace(asked, labels=labels_of(chosen))
            if kind.writes or self.criteria:
                asked = replace(asked, write_with=WRITTEN)
            if self.criteria:
                asked = replace(asked, probes={"": neutral_documents()})
            run_cards(hosts, asked, self.seeds, task, self.progress)
            if self.baselines:
                federation = Federation(others, subject.config.own.rank, self.settings.baseline_rounds)
                found = score_baselines(
                    hosts, chosen, self.baselines, federation, self.settings, self.progress, flat["global"]
                )
                for user, rows in found.items():
                    task.cards[0][user].rows |= rows
        release: Release = {
            "task": source,
            "release": subject.release.sha256,
            "not_private": [] if subject.release.facts.private else [f"the release is stamped {STAMP}"],
            "privacy": dict(subject.release.facts.privacy),
            "model": subject.config.model,
            "people_in_training": len(subject.devices & {p.user for p in chosen}),
            "delta": float(subject.config.privacy.delta),
            "adversaries": adversaries_of(subject.release.facts.privacy, float(subject.config.privacy.delta)),
            "cost": _cost_of(question.run),
        }
        return task, release, chosen

    def _trainers(self, subject: Subject, scored: Sequence[Person]) -> list[Person]:
        """Return those of the run's people who train baselines: none of those scored."""
        config, seen = subject.config, {person.user for person in scored}
        trained, _ = split_people(load_people(config.people, config.max_people), config)
        return [p for p in trained if p.user not in seen and p.history][: self.settings.baseline_people]

    def probe_people(self, subject: Subject) -> dict[str, PersonCard]:
        """Return the cards of invented people with known answers."""
        planted = planted_people(self.settings.planted_people, subject.config.seed)
        people = [each.person for each in planted]
        probes = {each.person.user: pair_documents(each.pairs) for each in planted}
        core = subject.release.basis.layout.flatten(subject.release.adapters["global"])
        arms = [name for name in PROBED_PLANTED if name in self.arms]
        settings = replace(self.settings, tuning_documents=0, task=DEFAULT_TASK, test_documents=1)
        asked = Asked(people, core, {}, arms, settings, probes, dated=True, probed=PROBED_PLANTED)
        with self._hosts(subject, people) as hosts:
            if self.settings.bias_questions:
                self._ask_bias(hosts, people[0].user, core)
            return run_cards(hosts, asked, [0], TaskCards("planted", "planted"), self.progress).cards[0]

    def _ask_bias(self, hosts: Hosts, user: str, core: Vector) -> None:
        """Put what neutral questions are answered with under every invented attribute into `bias`, one arm a call."""
        with self.progress.task("neutral questions by attribute", len(BIAS_ARMS)) as step:

            def done(_: str, found: dict[str, dict[str, Rows]]) -> None:
                self.bias.update(found)
                step()

            asked = self.settings.bias_questions
            hosts.run([(user, ("part", ("bias", core, (arm,), asked, self.settings))) for arm in BIAS_ARMS], done)

    @contextmanager
    def _hosts(self, subject: Subject, people: Sequence[Person]) -> Iterator[Hosts]:
        with (
            tempfile.TemporaryDirectory(prefix="confide-") as place,
            self.open_hosts(hosts_of(subject, people, Path(place))) as hosts,
        ):
            yield hosts


CLAIMS = {"released": "epsilon", "server": "epsilon_server", "sybils": "sybil_floor_epsilon"}


def adversaries_of(claim: Mapping[str, Any], delta: float) -> dict[str, float | None]:
    """Return epsilon at `delta` against each adversary by a release's signed claim, None where it claims none."""
    told = {who: claim.get(name) or {} for who, name in CLAIMS.items()}
    return {who: float(found[repr(delta)]) if repr(delta) in found else None for who, found in told.items()}


def _cost_of(run: Path) -> dict[str, float]:
    """Return what the run's own report says of its cost; nothing where it has none."""
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        return {name: value for name, value in report["cost"].items() if isinstance(value, (int, float))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


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
    """Give the last task another name where one before it has the same source."""
    same = sum(task.data == tasks[-1].data for task in tasks)
    if same > 1:
        tasks[-1].task = releases[-1]["task"] = f"{tasks[-1].data} ({same})"
