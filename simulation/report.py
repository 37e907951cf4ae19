"""`report.json` and `report.html`: what a federation was worth, what it cost, and what it kept private.

The page is one file: no script, no font, no picture from elsewhere, and a content policy that forbids them. Every
figure on it is a `<data value="...">` whose value is a leaf of `report.json`; nothing is computed for the page alone
but the order of rows, words and drawings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from privacy.errors import DataError
from privacy.files import write_atomic
from simulation import figures, wording
from simulation.report_schema import Interval, PersonRow, Report, interval_of

PERSON_ROWS_SHOWN = 300
_MISSING = Markup('<span class="none">–</span>')
_PREFIXES = ("B", "kB", "MB", "GB", "TB")


def report_json(report: Mapping[str, Any] | Report) -> bytes:
    """Return `report` as UTF-8 JSON, keys sorted, indented by one, newline at the end: equal reports, equal bytes.

    Raises DataError for NaN and infinity, which JSON cannot say, and for what is no JSON at all.
    """
    try:
        text = json.dumps(report, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"the report does not fit into JSON: {error}") from error
    return text.encode() + b"\n"


def write_report(run_folder: Path, report: Report) -> None:
    """Put `report.json` and `report.html` into `run_folder`, each whole or not at all, the page last.

    Both are made before either is written, so a report that cannot be drawn leaves the old files alone.
    """
    data, page = report_json(report), render_html(report).encode()
    write_atomic(run_folder / "report.json", data)
    write_atomic(run_folder / "report.html", page)


def render_html(report: Report) -> str:
    """Return the page for `report`; whatever a name in it contains is shown as text, never as markup."""
    environment = page_environment()
    words = {
        "ADVERSARIES": wording.adversaries(report["privacy"]["transport"]),
        "ARM_MEANINGS": wording.ARM_MEANINGS,
        "epsilon_meaning": wording.epsilon_meaning,
    }
    return environment.get_template("report.html.j2").render(report=report, **words, **_view(report))


def page_environment() -> Environment:
    """Return the templates of the pages with the filters that show a figure beside its exact value."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS, interval_of=interval_of)
    return environment


def drawing(svg: str) -> Markup:
    """Return a picture of `simulation.figures` as markup."""
    return Markup(svg)  # noqa: S704 - safe: `figures` and matplotlib escape every label (a test plants markup in one)


def _view(report: Report) -> dict[str, Any]:
    """What the template needs and the report does not say: orders, labels, drawings."""
    not_private = bool(report["not_private"])
    arms = wording.arms_in_order(report["arms"])
    labels = {name: wording.arm_label(name, not_private=not_private) for name in _arm_names(report)}
    in_table, others = _split_people(report["people"])
    columns = [name for name in wording.PERSON_ARMS if any(name in row["bits"] for row in in_table)]
    return {
        "arms": arms,
        "labels": labels,
        "deltas": sorted(report["privacy"]["epsilon"], key=float, reverse=True),
        "columns": columns,
        "in_table": [(row, wording.best_arm(row["bits"])) for row in in_table[:PERSON_ROWS_SHOWN]],
        "others": others[:PERSON_ROWS_SHOWN],
        "cut": max(len(in_table), len(others)) > PERSON_ROWS_SHOWN,
        "noise_meaning": wording.noise_meaning(report["rounds"]),
        "round_bits": any("bits_per_token" in row for row in report["rounds"]),
        "gain_svg": drawing(figures.gain_plot(_gain_rows(report, arms, labels))),
        "spread_svg": drawing(figures.spread_plot(_spread(report["people"]))),
        "rounds_svg": drawing(_rounds_svg(report)),
    }


def _arm_names(report: Report) -> set[str]:
    names = set(report["arms"]).union(*(row["bits"] for row in report["people"]))
    return names.union(*((row["arm"], row["against"]) for row in report["comparisons"]))


def _split_people(people: list[PersonRow]) -> tuple[list[PersonRow], list[PersonRow]]:
    """People with a personal arm, for the table, and those scored with shared arms only."""
    shared = {"base", "global", "global_noiseless", "persona", "mixture"}
    personal = [row for row in people if row["bits"].keys() - shared]
    return personal, [row for row in people if not row["bits"].keys() - shared]


def _gain_rows(report: Report, arms: list[str], labels: Mapping[str, str]) -> list[figures.GainRow]:
    gains: list[tuple[str, Interval | None]] = [(name, interval_of(report["arms"][name])) for name in arms]
    return [
        figures.GainRow(labels[name], gain, emphasis=name == "global")
        for name, gain in gains
        if gain is not None and name != "base"
    ]


def _spread(people: list[PersonRow]) -> list[float]:
    both = [row["bits"] for row in people if row["bits"].get("base") and "global" in row["bits"]]
    return [1.0 - bits["global"] / bits["base"] for bits in both]


def _rounds_svg(report: Report) -> str:
    found = [(row["round"], row["bits_per_token"]) for row in report["rounds"] if "bits_per_token" in row]
    return figures.rounds_plot(
        [number for number, _ in found],
        [bits["released"] for _, bits in found],
        [bits["noiseless"] for _, bits in found],
    )


def _data(value: float, text: str) -> Markup:
    shown = Markup(text)  # noqa: S704 - safe: `text` is made from a number by the functions below, never from input
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def _shown(form: Callable[[float], str]) -> Callable[[float | None], Markup]:
    """A template filter: the figure in the form a reader wants, the exact value beside it, a dash for None."""
    return lambda value: _MISSING if value is None else _data(value, form(value))


def fixed(value: float, digits: int) -> str:
    """Return `value` with a real minus sign, and no minus on what rounds to zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def significant(value: float) -> str:
    """Return about three digits: enough for an epsilon, a ratio or seconds, never 0.00 for what is not zero."""
    if value == 0 or 0.01 <= abs(value) < 1000:
        return fixed(value, 2 if abs(value) < 10 else 1)
    return grouped(round(value)) if abs(value) >= 1000 else f"{value:.1e}".replace("-", "\N{MINUS SIGN}")


def rounded_up(value: float) -> str:
    """Return `value` like `significant`, but never below it: a loss of privacy is not rounded away."""
    if not 0.01 <= value < 1000:
        return significant(value)
    digits = 2 if value < 10 else 1
    return fixed(math.ceil(value * 10**digits - 1e-9) / 10**digits, digits)


def grouped(value: float) -> str:
    """Return a whole number with a narrow space between thousands."""
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return fixed(100 * value, digits) + "\N{NARROW NO-BREAK SPACE}%"


def byte_size(value: float) -> str:
    """Return bytes in the largest decimal unit that leaves at least 1."""
    size, unit = float(value), 0
    while abs(size) >= 1000 and unit < len(_PREFIXES) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}\N{NARROW NO-BREAK SPACE}{_PREFIXES[unit]}"


def power_of_ten(value: float) -> str:
    """Return a delta as HTML, 1e-06 as ten to the minus six."""
    mantissa, exponent = f"{value:.1e}".split("e")
    ten = f"10<sup>{fixed(int(exponent), 0)}</sup>"
    return ten if float(mantissa) == 1 else f"{float(mantissa):g}·{ten}"


_FILTERS: dict[str, Callable[[float | None], Markup]] = {
    "bits": _shown(lambda value: fixed(value, 3)),
    "percent": _shown(percent),
    "share": _shown(lambda value: percent(value, 0)),
    "number": _shown(significant),
    "epsilon": _shown(rounded_up),
    "whole": _shown(grouped),
    "plain": _shown(str),
    "one_digit": _shown(lambda value: fixed(value, 1)),
    "byte_size": _shown(byte_size),
    "delta": lambda value: _MISSING if value is None else _data(float(value), power_of_ten(float(value))),
}
