"""The officer's page: a verdict and its figures as one self-contained HTML file, no script, no outside asset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from privacy.audit.verdict import Verdict
from privacy.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
HEADLINE_DELTA = "1e-06"

# Who, and what they see: the three figures that stand first on the page; of the server, with masks and without.
SERVER_MASKED = (
    "sees only sums, as long as the honest floor of each cohort is honest and so is the directory of keys;"
    " and always who took part"
)
SERVER_CLEAR = (
    "sees each device’s own answer with that device’s share of the noise only: answers were added in the clear"
)


def adversaries(facts: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Return the name of a figure of the statement, whom it is against, and what that one sees."""
    statement = facts.get("statement") if facts else None
    masked = isinstance(statement, Mapping) and list(statement.get("transport", [])) == ["masked"]
    return (
        ("epsilon", "whoever holds the released adapters", "sees sums over a whole round, with everybody’s noise"),
        ("epsilon_server", "the server itself", SERVER_MASKED if masked else SERVER_CLEAR),
        (
            "sybil_floor_epsilon",
            "a server that runs every other device (Sybil floor)",
            "knows all noise but one device’s; no protocol between devices can better this",
        ),
    )


LIMITS = (
    "That a device took part, when, and from which address. The server and the network see it.",
    "One device’s answer from the server itself, beyond the figure given for the server above.",
    "What many people share. The unit is one person; what a group writes is learnt, as it is meant to be.",
    "That the devices ran the code that was audited. Ledgers show what was charged and signed, not what was executed.",
    "A ledger that was rewritten as a whole by the holder of its key, unless somebody kept a checkpoint of it.",
    "Whose the keys are. Without a key from elsewhere (--key), the audit shows that the files agree with each other.",
    "That the published figures are useful or right: a device may send any vector, a server may publish anything.",
    "Names and numbers that the scrubber missed. Scrubbing is data minimisation and is never counted in epsilon.",
    "Text on the devices: own adapters, retrieval indexes and documents never enter these ledgers.",
    "Figures in a simulation’s report that are computed in the clear. Epsilon covers the released adapters only.",
)


def page_environment() -> Environment:
    """Return what the audit's pages are made with: everything escaped, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def audit_page(verdict: Verdict) -> str:
    """Return the page for a verdict on a RUN; the same verdict gives the same page."""
    environment = page_environment()
    environment.filters.update(figure=figure, delta=delta_text, date=date_text, odds=odds, strength=strength)
    template = environment.get_template("audit.html.j2")
    return template.render(
        verdict=verdict,
        facts=verdict.facts or None,
        adversaries=adversaries(verdict.facts),
        headline=_headline_delta(verdict.facts),
        limits=LIMITS,
    )


def write_page(path: Path, verdict: Verdict) -> None:
    """Write `audit_page` to `path`, atomically."""
    write_atomic(path, audit_page(verdict).encode())


def figure(value: float | None) -> str:
    """Return a number as people read it: three digits where it matters, an en dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "no bound"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def delta_text(key: str) -> str:
    """Return a delta as a power of ten where it is one."""
    mantissa, _, exponent = f"{float(key):e}".partition("e")
    if float(mantissa) != 1:
        return f"{float(key):g}"
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def date_text(milliseconds: int) -> str:
    """Return a time of the ledger as a date, UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def odds(epsilon: float | None) -> str:
    """Return how sure one may become of a thing held for even odds before, e^epsilon / (1 + e^epsilon)."""
    if epsilon is None:
        return "no bound"
    sure = 1 / (1 + math.exp(-min(epsilon, 700.0)))
    return f"{100 * sure:.1f} %" if sure < 0.999 else "more than 99.9 %"


def strength(epsilon: float | None) -> str:
    """Return a word for an epsilon, after the tiers of Ponomareva et al. 2023 (up to 1, up to 10, above)."""
    if epsilon is None:
        return "none"
    if epsilon <= 1:
        return "strong"
    if epsilon <= 10:
        return "reasonable"
    return "weak" if epsilon <= 20 else "hardly any"


def _headline_delta(facts: Mapping[str, Any]) -> str:
    deltas = list(facts.get("deltas", [])) if facts else []
    return HEADLINE_DELTA if HEADLINE_DELTA in deltas or not deltas else str(deltas[0])
