"""The table of a scorecard: for every task and arm, one value a person, and what these values say together.

A person's value is the share of bits that an arm saves against the reference on the same tokens, the mean over seeds.
The reference of an arm is `global`; for `global` itself it is `base`. P-values of one arm over all tasks are adjusted
together (Holm). All of it is a pure function of the cards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from privacy.errors import DataError
from simulation.scorecard import statistics
from simulation.scorecard.arms import BY_NAME, KNOWN, NOBODY, WRONG
from simulation.scorecard.person import PersonCard
from simulation.scorecard.run import TaskCards

REFERENCE, BASE = "global", "base"


class Row(TypedDict):
    """One arm on one task against `against`: the mean of people's values, and how sure it is; see `statistics.Told`.

    `p_holm` is adjusted over the tasks; `said` is "shown", "shown to be worse" or "not shown". `bits_per_token`,
    `bits_per_byte` and `perplexity` (per token) are of the arm itself, people together. `seed_deviation` is the
    standard deviation of the mean over seeds, None for one seed. What it costs a device, in the mean over people:
    `read_tokens` of memories before a document, `cpu_s` to train what is the person's own. `values` is what every
    person got, by pseudonym.
    """

    task: str
    arm: str
    against: str
    people: int
    mean: float
    low: float | None
    high: float | None
    p: float
    p_holm: float
    said: str
    median: float
    worst_decile: float
    improved: float
    worse: float
    notably_worse: float
    bits_per_token: float
    bits_per_byte: float
    perplexity: float
    seeds: int
    seed_deviation: float | None
    read_tokens: float
    cpu_s: float
    values: dict[str, float]


class _Cost(TypedDict):
    read_tokens: float
    cpu_s: float


class Task(TypedDict):
    """One task: its data, people with and without a test document, own words of history, and what was chosen."""

    task: str
    data: str
    people: int
    inactive: int
    least_words: int
    median_words: int
    chosen: dict[str, int]


class ColdRow(TypedDict):
    """Retrieval with so many of a person's newest texts, against global: people, mean gain and its interval."""

    task: str
    items: int
    people: int
    mean: float
    low: float | None
    high: float | None


class Table(TypedDict):
    """The scorecard as JSON."""

    tasks: list[Task]
    rows: list[Row]
    cold: list[ColdRow]
    seeds: list[int]
    notes: list[str]


def person_values(cards: Sequence[Mapping[str, PersonCard]], arm: str, against: str) -> dict[str, list[float]]:
    """Return each person's value for every seed in which both arms were scored.

    Where a seed has no scores of the reference (it does not depend on seeds), those of the first seed stand for it.
    """
    found: dict[str, list[float]] = {}
    for by_user in cards:
        for user, card in by_user.items():
            theirs = card.rows.get(against) or cards[0][user].rows.get(against)
            ours = card.rows.get(arm)
            if ours and theirs:
                found.setdefault(user, []).append(_saved(ours, theirs))
    return found


def _saved(ours: Sequence[tuple[str, float, int]], theirs: Sequence[tuple[str, float, int]]) -> float:
    if [(d, n) for d, _, n in ours] != [(d, n) for d, _, n in theirs]:
        raise DataError("two arms were scored on different tokens of one person")
    total = math.fsum(nats for _, nats, _ in theirs)
    return 1.0 - math.fsum(nats for _, nats, _ in ours) / total if total > 0 else 0.0


def table_of(tasks: Sequence[TaskCards], seeds: Sequence[int], rng: np.random.Generator) -> Table:
    """Return the table of all tasks; p-values of an arm are adjusted over the tasks that have it."""
    rows = [row for task in tasks for row in _rows(task, rng)]
    adjust(rows)
    return {
        "tasks": [_task(task) for task in tasks],
        "rows": rows,
        "cold": [row for task in tasks for row in _cold(task, rng)],
        "seeds": list(seeds),
        "notes": [],
    }


def adjust(rows: Sequence[Row]) -> None:
    """Put the p-values of each arm adjusted over its tasks into the rows, and what may be said then."""
    for arm in {row["arm"] for row in rows}:
        same = [row for row in rows if row["arm"] == arm]
        for row, adjusted in zip(same, statistics.holm([row["p"] for row in same]), strict=True):
            row["p_holm"] = adjusted
            row["said"] = _said(row)


def _cold(task: TaskCards, rng: np.random.Generator) -> list[ColdRow]:
    cards = task.cards[0].values()
    rows: list[ColdRow] = []
    for number in sorted({n for card in cards for n in card.cold}):
        pairs = [(card.cold[number], card.rows.get(REFERENCE)) for card in cards if number in card.cold]
        values = [_saved(ours, theirs) for ours, theirs in pairs if theirs]
        if values:
            found = statistics.told(values, rng)
            gain = {"mean": found.mean, "low": found.low, "high": found.high}
            rows.append({"task": task.task, "items": number, "people": found.people, **gain})  # type: ignore[typeddict-item]
    return rows


def _said(row: Row) -> str:
    found = statistics.Told(
        **{name: row[name] for name in statistics.Told.__dataclass_fields__}  # type: ignore[literal-required]
    )
    return statistics.verdict(found, row["p_holm"])


def _rows(task: TaskCards, rng: np.random.Generator) -> list[Row]:
    present = {name for card in task.cards[0].values() for name in card.rows}
    result = []
    for arm in (name for name in KNOWN if name in present):
        against = BASE if arm in (REFERENCE, BASE) or REFERENCE not in present else REFERENCE
        values = person_values(task.cards, arm, against)
        if values:
            result.append(_row(task, arm, against, values, rng))
    return result


def _row(task: TaskCards, arm: str, against: str, values: Mapping[str, list[float]], rng: np.random.Generator) -> Row:
    means = {user: float(np.mean(several)) for user, several in sorted(values.items())}
    found = statistics.told(list(means.values()), rng)
    seeds = min(len(several) for several in values.values())
    by_seed = [float(np.mean([several[s] for several in values.values()])) for s in range(seeds)]
    nats, tokens, text_bytes = _totals(task.cards, arm)
    return {
        "task": task.task,
        "arm": arm,
        "against": against,
        "people": found.people,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_holm": found.p,
        "said": statistics.NOT_SHOWN,
        "median": found.median,
        "worst_decile": found.worst_decile,
        "improved": found.improved,
        "worse": found.worse,
        "notably_worse": found.notably_worse,
        "bits_per_token": nats / math.log(2) / tokens,
        "bits_per_byte": nats / math.log(2) / max(1, text_bytes),
        "perplexity": math.exp(nats / tokens),
        "seeds": seeds,
        "seed_deviation": float(np.std(by_seed, ddof=1)) if seeds > 1 else None,
        **_cost(task.cards[0], arm),
        "values": means,
    }


def _cost(cards: Mapping[str, PersonCard], arm: str) -> _Cost:
    some = [card for card in cards.values() if arm in card.rows]
    trains = arm in BY_NAME and BY_NAME[arm].own not in (NOBODY, WRONG)
    read = [card.read_tokens.get(arm, 0.0) for card in some]
    return {
        "read_tokens": float(np.mean(read)) if read else 0.0,
        "cpu_s": float(np.mean([card.cpu_s for card in some])) if some and trains else 0.0,
    }


def _totals(cards: Sequence[Mapping[str, PersonCard]], arm: str) -> tuple[float, int, int]:
    rows = [(card, row) for by_user in cards for card in by_user.values() for row in card.rows.get(arm, [])]
    return (
        math.fsum(nats for _, (_, nats, _) in rows),
        sum(tokens for _, (_, _, tokens) in rows),
        sum(card.text_bytes.get(document, 0) for card, (document, _, _) in rows),
    )


def _task(task: TaskCards) -> Task:
    words = sorted(task.words.values())
    chosen: dict[str, int] = {}
    for card in task.cards[0].values():
        if "chosen" in card.rows:
            chosen[card.chosen] = chosen.get(card.chosen, 0) + 1
    return {
        "task": task.task,
        "data": task.data,
        "people": len(task.cards[0]),
        "inactive": task.inactive,
        "least_words": words[0] if words else 0,
        "median_words": words[len(words) // 2] if words else 0,
        "chosen": dict(sorted(chosen.items(), key=lambda pair: (-pair[1], pair[0]))),
    }


CONTROLS = ("wrong_person", "wrong_memories")
OF_NOTE = ("own", "all", "chosen", "hybrid@4")


def told_notes(table: Table) -> list[str]:
    """Return in words what is shown and what is not: the arms of note, and whether a control helps anybody."""
    said = []
    for row in table["rows"]:
        if row["arm"] in OF_NOTE:
            said.append(
                f"{row['task']}, {row['arm']} over {row['against']}: {row['mean']:+.1%}, {row['said']}; "
                f"better for {row['improved']:.0%}, worse by more than 2 % for {row['notably_worse']:.0%}, "
                f"worst tenth {row['worst_decile']:+.1%}."
            )
        if row["arm"] in CONTROLS and row["said"] == statistics.SHOWN:
            said.append(
                f"{row['task']}: the control {row['arm']} helps too ({row['mean']:+.1%}): "
                "so much of the gain is not the person's own."
            )
    return said
