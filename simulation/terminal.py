"""The report at the terminal: three lines, the arms, the people. Fits 80 columns and needs no colour."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulation import wording
from simulation.report import byte_size, fixed, grouped, percent
from simulation.report_schema import Arm, Interval, PersonRow, Report, interval_of

PEOPLE_SHOWN = 16


def print_report(report: Report, console: Console, *, people: int = PEOPLE_SHOWN) -> None:
    """Write the short form of `report` to `console`; at most `people` persons, those with a personal arm first.

    Meaning never hangs on colour: the best arm of a person carries a `*`, a run without privacy says so in words.
    Names are printed as they are, not read as markup.
    """
    if report["not_private"]:
        console.print(Text("NOT PRIVATE: " + "; ".join(report["not_private"]), style="bold red"))
        console.print()
    for line in report["lines"]:
        console.print(Text(line, style="bold"))
    console.print()
    console.print(Text(_what(report)))
    console.print(arms_table(report["arms"], not_private=bool(report["not_private"])))
    rows = sorted(report["people"], key=lambda row: (-len(row["bits"]), row["user"]))[:people]
    if rows:
        console.print(people_table(rows))
    for sentence in _closing(report, shown=len(rows)):
        console.print(Text(sentence))


def _what(report: Report) -> str:
    what = report["what"]
    return (
        f"{grouped(what['people'])} people, {what['rounds']} rounds, {grouped(what['shared_numbers'])} shared numbers, "
        f"{what['model']}"
    )


def arms_table(arms: Mapping[str, Arm], *, not_private: bool = False) -> Table:
    """Return one row per arm: bits per token, base's on the same tokens, gain with interval, people better, people."""
    table = Table(
        box=box.SIMPLE, title="bits per token, and base on the same tokens", title_justify="left", pad_edge=False
    )
    table.add_column("arm", no_wrap=True)
    for heading in ("bits", "base", "gain", "95 %", "better", "people"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in wording.arms_in_order(arms):
        arm = arms[name]
        label = Text(wording.arm_label(name, not_private=not_private), style="bold" if name == "global" else "")
        table.add_row(label, *_arm_cells(name, arm))
    return table


def _arm_cells(name: str, arm: Arm) -> list[str]:
    bits, people = fixed(arm["bits_per_token"], 3), str(arm["users"])
    gain = interval_of(arm)
    if name == "base" or gain is None:
        return [bits, "-", "-", "-", "-", people]
    better = "-" if arm["users_improved"] is None else percent(arm["users_improved"], 0)
    base = "-" if arm["base_bits_per_token"] is None else fixed(arm["base_bits_per_token"], 3)
    return [bits, base, percent(gain["value"]), _range(gain), better, people]


def _range(gain: Interval) -> str:
    if gain["low"] is None or gain["high"] is None:
        return "-"
    return f"{fixed(100 * gain['low'], 1)} to {fixed(100 * gain['high'], 1)}"


def people_table(rows: list[PersonRow]) -> Table:
    """Return bits per token of each person in each arm, the best one marked with `*`."""
    columns = [name for name in wording.PERSON_ARMS if any(name in row["bits"] for row in rows)]
    table = Table(box=box.SIMPLE, title="person by person, * best", title_justify="left", pad_edge=False)
    table.add_column("person", no_wrap=True, max_width=12, overflow="ellipsis")
    table.add_column("tokens", justify="right")
    for name in columns:
        table.add_column(wording.ARM_SHORT.get(name, name), justify="right", no_wrap=True)
    for row in rows:
        best = wording.best_arm(row["bits"])
        cells = [_person_cell(row, name, best) for name in columns]
        table.add_row(Text(row["user"]), str(row["tokens"]), *cells)
    return table


def _person_cell(row: PersonRow, name: str, best: str | None) -> str:
    if name not in row["bits"]:
        return "-"
    return fixed(row["bits"][name], 2) + ("*" if name == best else " ")


def _closing(report: Report, shown: int) -> list[str]:
    sentences = []
    if len(report["people"]) > shown:
        sentences.append(f"{len(report['people']) - shown} more people in report.json.")
    worse = [f"{wording.ARM_SHORT.get(arm, arm)} {bad} of {n}" for arm, _, bad, n in wording.worse_lines(report)]
    if worse:
        sentences.append("Made worse (global against base, others against global): " + ", ".join(worse) + ".")
    record = report["privacy"].get("record")
    if record is not None and record.get("shared") and record["epsilon"] is not None:
        sentences.append(
            f"The guarantee is per {record['unit']}: epsilon {record['epsilon']:.2f} at delta {record['delta']:g}, "
            f"inside each of {record['people']} organisations."
        )
    cost = report["cost"]
    sentences.append(
        f"{cost['seconds']:.0f} s; {byte_size(cost['bytes_up_per_device'])} up and "
        f"{byte_size(cost['bytes_down_per_device'])} down per device."
    )
    return sentences
