"""The scorecard as a page, as JSON and as Markdown for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privacy.files import write_atomic
from simulation import figures
from simulation.report import drawing, fixed, page_environment, percent, report_json
from simulation.report_schema import Interval
from simulation.scorecard.arms import BASELINES, BY_NAME, CHOSEN, meaning
from simulation.scorecard.criteria import LOWER, Measure
from simulation.scorecard.evaluate import CardReport, Release
from simulation.scorecard.table import Row, Task

STEPS = ("base", "global", "persona", "hybrid@4", "own", "all", "all_trusted", CHOSEN)
SPREAD_OF = (CHOSEN,)
PEOPLE_OF = (
    "global",
    "persona",
    "hybrid@4",
    "own",
    "preference",
    "all",
    "all_trusted",
    CHOSEN,
    "wrong_person",
    "wrong_memories",
)


def write_card(folder: Path, card: CardReport) -> None:
    """Put the page, JSON and Markdown, `report.*`, into `folder`; all are made before any is written."""
    data, text, page = report_json(dict(card)), card_markdown(card).encode(), card_html(card).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "report.json", data)
    write_atomic((folder / "report").with_suffix(".md"), text)
    write_atomic(folder / "report.html", page)


def card_html(card: CardReport) -> str:
    """Return the page: one file, no script, nothing from elsewhere."""
    parts = [_part(card, task) for task in card["table"]["tasks"]]
    said = {note for part in parts for note in part["notes"]}
    rest = [note for note in card["table"]["notes"] if note not in said]
    return (
        page_environment()
        .get_template("scorecard.html.j2")
        .render(
            card=card, parts=parts, notes=rest, meaning=meaning, measures=_by_measure(card["measures"]), lower=LOWER
        )
    )


def _by_measure(measures: Sequence[Measure]) -> dict[tuple[str, str], list[Measure]]:
    found: dict[tuple[str, str], list[Measure]] = {}
    for row in measures:
        found.setdefault((row["task"], row["measure"]), []).append(row)
    return found


def _part(card: CardReport, task: Task) -> dict[str, Any]:
    rows = [row for row in card["table"]["rows"] if row["task"] == task["task"] and row["arm"] != "base"]
    plot = [figures.GainRow(row["arm"], _interval(row), emphasis=row["arm"] in ("all", CHOSEN)) for row in rows]
    reference = rows[1]["against"] if len(rows) > 1 else "base"
    everybody = [(row["arm"], list(row["values"].values())) for row in rows if row["arm"] in PEOPLE_OF]
    release = next((r for r in card["releases"] if r["task"] == task["task"]), None)
    spreads = [(row["arm"], figures.spread_plot(list(row["values"].values()), row["against"])) for row in rows]
    return {
        "task": task,
        "rows": rows,
        "notes": [note for note in card["table"]["notes"] if note.startswith((f"{task['task']},", f"{task['task']}:"))],
        "gain": drawing(figures.gain_plot(plot, f"fewer bits than {reference} (global: than base), %")),
        "waterfall": drawing(figures.waterfall_plot(_steps(card, task))),
        "cold": drawing(_cold(card, task)),
        "everybody": drawing(figures.people_plot(everybody, f"fewer bits than {reference} (global: than base), %")),
        "glance": _glance(rows, release),
        "prices": [(row, _price(row["arm"], release)) for row in rows],
        "spreads": [(arm, drawing(svg)) for arm, svg in spreads if arm in SPREAD_OF and svg],
        "control": {row["arm"] for row in rows if row["arm"] in BY_NAME and BY_NAME[row["arm"]].control},
    }


def _glance(rows: Sequence[Row], release: Release | None) -> list[tuple[str, str]]:
    """Return (figure, what it is) of what a reader asks first: what it is worth, to whom, at what price."""
    by_arm = {row["arm"]: row for row in rows}
    told = []
    for arm, words in (
        ("global", "fewer bits with the shared adapter"),
        ("all", "fewer bits with all together, over it"),
    ):
        if row := by_arm.get(arm):
            told.append((f"{percent(row['mean'])}", f"{words}; {row['said']}"))
    best = by_arm.get(CHOSEN) or by_arm.get("all") or by_arm.get("global")
    if best:
        told.append((percent(best["improved"], 0), f"of {best['people']} people better with {best['arm']}"))
        told.append((percent(best["notably_worse"], 0), "worse by more than 2 %"))
    if release is not None:
        epsilon = release["adversaries"].get("released")
        private = not release["not_private"] and epsilon is not None
        told.append((fixed(epsilon or 0, 1) if private else "none", "epsilon, for those who took part in the training"))
    if (own := by_arm.get("own")) is not None:
        told.append((f"{fixed(own['cpu_s'], 1)} s", "of one core to train a person’s own adapter"))
    return told


def _price(arm: str, release: Release | None) -> str:
    """Return in words what of whom leaves a device for an arm."""
    if arm in ("base", "local_only"):
        return "nothing"
    if arm == "central":
        return "everybody’s text, in the clear"
    if arm in BASELINES and arm != "full":
        return "adapters of those who train, in the clear"
    if release is None or release["not_private"]:
        return "noisy sums of those who trained; NOT PRIVATE"
    return "noisy sums of those who trained, within epsilon"


def _steps(card: CardReport, task: Task) -> list[tuple[str, float]]:
    """Return bits per token of the techniques in the order in which they come, of those that score the same people."""
    found = {row["arm"]: row for row in card["table"]["rows"] if row["task"] == task["task"]}
    most = max((row["people"] for row in found.values()), default=0)
    return [(a, found[a]["bits_per_token"]) for a in STEPS if a in found and found[a]["people"] == most]


def _cold(card: CardReport, task: Task) -> str:
    rows = [row for row in card["table"]["cold"] if row["task"] == task["task"]]
    gains: list[Interval] = [{"value": row["mean"], "low": row["low"], "high": row["high"]} for row in rows]
    return figures.curve_plot([row["items"] for row in rows], gains, "fewer bits than global, %")


def _interval(row: Row) -> Interval:
    return {"value": row["mean"], "low": row["low"], "high": row["high"]}


def card_markdown(card: CardReport) -> str:
    """Return the tables in Markdown, figures in percent with their intervals."""
    lines = ["# Scorecard", ""]
    for task in card["table"]["tasks"]:
        lines += [f"## {task['task']}", "", _about(task), ""]
        lines.append(
            "| arm | against | gain % | 95 % | p (Holm) | said | worst tenth % | better | worse | >2 % worse |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|---|")
        lines += [_line(r) for r in card["table"]["rows"] if r["task"] == task["task"] and r["arm"] != "base"]
        lines.append("")
    lines += _group_lines(card)
    lines += _measure_lines(card["measures"])
    lines += _bias_lines(card)
    lines += [f"* {note}" for note in card["table"]["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def _about(task: Task) -> str:
    chosen = ", ".join(f"{arm} {count}" for arm, count in task["chosen"].items())
    return (
        f"{task['people']} people scored, {task['inactive']} inactive (no history or no test document); "
        f"{task['median_words']} own words of history in the median." + (f" Chosen: {chosen}." if chosen else "")
    )


def _line(row: Row) -> str:
    low, high = row["low"], row["high"]
    between = f"{_p(low)} to {_p(high)}" if low is not None and high is not None else "–"
    cells = [
        row["arm"],
        row["against"],
        _p(row["mean"]),
        between,
        f"{row['p_holm']:.4f}",
        row["said"],
        _p(row["worst_decile"]),
        percent(row["improved"], 0),
        percent(row["worse"], 0),
        percent(row["notably_worse"], 0),
    ]
    return f"| {' | '.join(cells)} |"


def _p(value: float) -> str:
    return fixed(100 * value, 2)


def _group_lines(card: CardReport) -> list[str]:
    lines = [
        "## Whom it serves",
        "",
        "| task | by | group | arm | people | gain % | worse |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in card["groups"]:
        cells = [row["task"], row["by"], row["group"], row["arm"], str(row["people"]), _p(row["mean"])]
        lines.append(f"| {' | '.join([*cells, percent(row['worse'], 0)])} |")
    for task in card["table"]["tasks"]:
        cells = [task["task"], "activity", "inactive", "–", str(task["inactive"]), "not scored", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    said = [f"* {g['task']}, {g['arm']}, gap by {g['by']}: {_p(g['gap'])} %, {g['said']}." for g in card["gaps"]]
    return [*lines, "", *said, ""]


def _measure_lines(measures: Sequence[Measure]) -> list[str]:
    if not measures:
        return []
    lines = ["## Criteria without a judge", ""]
    lines.append("| task | measure | arm | people | level | over global | 95 % | p (Holm) | said |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in measures:
        low, high = row["low"], row["high"]
        between = f"{fixed(low, 3)} to {fixed(high, 3)}" if low is not None and high is not None else "–"
        over = "–" if row["difference"] is None else fixed(row["difference"], 3)
        p = f"{row['p_holm']:.4f}" if row["said"] else "–"
        cells = [row["task"], row["measure"], row["arm"], str(row["people"]), fixed(row["level"], 3), over, between, p]
        lines.append(f"| {' | '.join([*cells, row['said'] or '–'])} |")
    return [*lines, ""]


def _bias_lines(card: CardReport) -> list[str]:
    if not card["bias"]["rows"]:
        return []
    lines = ["## Personalization bias", "", f"{card['bias']['questions']} neutral questions; nobody was asked.", ""]
    lines += ["| arm | told | accuracy | refusal | margin, nats |", "|---|---|---|---|---|"]
    for row in card["bias"]["rows"]:
        told = f"{row['attribute']}: {row['value']}" if row["value"] else row["attribute"]
        shares = [percent(row["accuracy"], 0), percent(row["refusal"], 0), fixed(row["margin"], 3)]
        lines.append(f"| {' | '.join([row['arm'], told, *shares])} |")
    lines += ["", "| arm | attribute | gap in | gap | p (Holm) | said |", "|---|---|---|---|---|---|"]
    for gap in card["bias"]["gaps"]:
        cells = [gap["arm"], gap["attribute"], gap["figure"], fixed(gap["gap"], 3), f"{gap['p_holm']:.4f}", gap["said"]]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
