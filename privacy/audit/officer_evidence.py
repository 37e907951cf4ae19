"""Section 6 of the officer's report: numbered evidence, each with its outcome, and the plots of audits and attacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from privacy.audit.document import Block, Chart, Evidence, EvidenceList, Facts, Mark, Section, Table, Text, percentile
from privacy.audit.html import figure
from privacy.audit.verdict import Verdict

ABSENT = {
    "mechanism": "not given: confide audit mechanism --save RUN/evidence/mechanism.json",
    "bugs": "not given: confide audit bugs --save RUN/evidence/bugs.json",
    "attacks": "not given: confide audit attacks --save RUN/evidence/attacks.json",
    "scrub": "not given: confide scrub --evaluate --json > RUN/evidence/scrub.json",
}


@dataclass(frozen=True)
class Numbered:
    """All evidence with its numbers; `keys` names each: a check of the verdict, `layer:…`, `attack:…`, `scrub`."""

    items: tuple[Evidence, ...]
    keys: tuple[str, ...]

    @classmethod
    def of(
        cls,
        verdict: Verdict,
        evidence: Mapping[str, Mapping[str, Any]],
        extra: Iterable[tuple[str, str, str]] = (),
        code_sha256: str = "",
    ) -> Numbered:
        """Return the findings of a verdict, then what the files of evidence say, numbered in this order.

        What held for other code than `code_sha256` was not checked for this one; what was violated there stays so.
        """
        rows = [(each.check, each.title, each.outcome.value, each.detail) for each in verdict.findings]
        rows += [(f"extra:{title}", title, outcome, detail) for title, outcome, detail in extra]
        for name, read in (("mechanism", _layers), ("bugs", _bugs), ("attacks", _attacks), ("scrub", _scrub)):
            if name not in evidence:
                rows.append((name, _titles[name], "unchecked", ABSENT[name]))
                continue
            same = name == "scrub" or evidence[name].get("code_sha256") == code_sha256
            rows += read(evidence[name]) if same else [_of_other_code(row) for row in read(evidence[name])]
        items = (Evidence(f"E{i}", title, outcome, detail) for i, (_, title, outcome, detail) in enumerate(rows, 1))
        return cls(tuple(items), tuple(key for key, *_ in rows))

    @property
    def holds(self) -> bool:
        """Return whether nothing is violated."""
        return not self.count("violated")

    @property
    def line(self) -> str:
        """Return the outcome in one line."""
        if self.holds:
            return f"{self.count('holds')} checks hold, none is violated, {self.count('unchecked')} could not be made"
        worst = next(each for each in self.items if each.outcome == "violated")
        return f"{self.count('violated')} violated, first {worst.number}, {worst.title}: {worst.detail}"

    def count(self, outcome: str) -> int:
        """Return how many have this outcome."""
        return sum(each.outcome == outcome for each in self.items)

    def refer(self, *keys: str) -> str:
        """Return the numbers of the evidence named, an en dash where none of it was given."""
        found = [item.number for key, item in zip(self.keys, self.items, strict=True) if key in keys]
        return ", ".join(found) or "–"

    def detail(self, key: str) -> str:
        """Return what was seen, with its number."""
        for name, item in zip(self.keys, self.items, strict=True):
            if name == key:
                return f"{item.number}: {item.detail}"
        return "not known"


Row = tuple[str, str, str, str]
_titles = {
    "mechanism": "The audit of the mechanism",
    "bugs": "The audit sees bugs that were planted",
    "attacks": "Attacks",
    "scrub": "Scrubbing, measured against labels",
}


def _of_other_code(row: Row) -> Row:
    key, title, outcome, detail = row
    return key, title, "unchecked" if outcome == "holds" else outcome, f"of OTHER code than made this report: {detail}"


def _layers(found: Mapping[str, Any]) -> list[Row]:
    rows = []
    for layer in found["layers"]:
        failed = [f"{check['name']}: {check['detail']}" for check in layer["checks"] if check["holds"] is False]
        said = f"all of {len(layer['checks'])}; at least {figure(layer['lower_bound'])}, claimed "
        said += f"{figure(layer['claimed'])} ({layer['quantity']}); {layer['power']}"
        outcome = "holds" if layer["holds"] else "violated"
        rows.append((f"layer:{layer['name']}", f"Mechanism, {layer['name']}", outcome, "; ".join(failed) or said))
    return rows


def _bugs(found: Mapping[str, Any]) -> list[Row]:
    planted = [row for row in found["rows"] if row["bug"]]
    caught = sum(bool(row["red"]) for row in planted)
    detail = (
        f"{caught} of {len(planted)} turn a layer red; the code as it is {'does not' if found['clean'] else 'DOES'}"
    )
    return [("bugs", _titles["bugs"], "holds" if found["holds"] else "violated", detail)]


def _attacks(found: Mapping[str, Any]) -> list[Row]:
    return [
        (
            f"attack:{row['name']}",
            f"Attack, {row['title']}",
            ("holds" if row["teeth"] else "unchecked") if row["holds"] else "violated",
            f"unprotected {row['unprotected']['said']}; protected {row['protected']['said']}; {row['allowed_said']}",
        )
        for row in found["attacks"]
    ]


def _scrub(found: Mapping[str, Any]) -> list[Row]:
    recall = found.get("recall")
    detail = f"recall {figure(float(recall))}" if isinstance(recall, int | float) else "as the file says"
    return [("scrub", _titles["scrub"], "holds", f"{detail}; what was missed stays in the text. Not part of any ε")]


def evidence_section(numbered: Numbered, evidence: Mapping[str, Mapping[str, Any]], code_sha256: str) -> Section:
    """Return section 6."""
    blocks: list[Block] = [
        Text("A lower bound below a claim does not prove the claim: it says that this audit found nothing.", "note"),
        EvidenceList(numbered.items),
    ]
    if "mechanism" in evidence:
        blocks += _mechanism_blocks(evidence["mechanism"], code_sha256)
    if "bugs" in evidence:
        rows = tuple(
            (str(row["bug"]).replace("-", " "), ", ".join(row["red"]) or "NOT SEEN")
            for row in evidence["bugs"]["rows"]
            if row["bug"]
        )
        blocks.append(
            Table("Bugs planted on purpose, and the layers that turned red.", ("bug", "red"), rows, (0.5, 0.5))
        )
    if "attacks" in evidence:
        blocks += _attack_blocks(evidence["attacks"])
    return Section("evidence", "6. Evidence", tuple(blocks))


def _mechanism_blocks(found: Mapping[str, Any], code_sha256: str) -> list[Block]:
    marks = []
    for layer in found["layers"]:
        claimed = layer["claimed"] or 1.0
        ceiling = layer["ceiling"] if layer["ceiling"] is not None else layer["lower_bound"]
        said = f"at least {figure(layer['lower_bound'])}, claimed {figure(layer['claimed'])}"
        said += f", could have shown {figure(layer['ceiling'])}" if layer["ceiling"] is not None else ""
        marks.append(Mark(layer["name"], 0.0, ceiling / claimed, layer["lower_bound"] / claimed, 1.0, said))
    same = found.get("code_sha256") == code_sha256
    audited = "the code that made this report" if same else "OTHER code than that which made this report"
    caption = "What was shown (dot), what could have been shown (bar), what is claimed (line)."
    return [
        Chart(caption, "in units of each layer’s claim", tuple(marks)),
        Facts(
            (("audited", f"{audited} ({str(found.get('code_sha256'))[:16]})"), ("training", str(found.get("trainer"))))
        ),
    ]


def _attack_blocks(found: Mapping[str, Any]) -> list[Block]:
    marks = []
    for row in found["attacks"]:
        for side in ("unprotected", "protected"):
            result = row[side]
            allowed = row["allowed"] if side == "protected" else None
            marks.append(
                Mark(f"{row['title']}, {side}", result["low"], result["high"], result["value"], allowed, result["said"])
            )
    return [
        Chart("Attacks with their 95 % intervals; the line is what (ε, δ) allows.", "success, 0 to 1", tuple(marks)),
        Text(str(found.get("about", "")), "note"),
    ]


def fairness_blocks(report: Mapping[str, Any]) -> tuple[Block, ...]:
    """Return how unevenly the release helps people, from a simulation's report; a line where nothing is known."""
    people = [row for row in report.get("people") or () if {"base", "global"} <= set(row.get("bits") or {})]
    if not people:
        return (Text("How evenly people profit is not known: a real campaign measures nobody’s loss in the clear."),)
    gains = [(row["bits"]["base"] - row["bits"]["global"]) / row["bits"]["base"] for row in people]
    by_text = [gain for _, gain in sorted(zip((row.get("tokens", 0) for row in people), gains, strict=True))]
    third = max(1, len(by_text) // 3)
    worse = sum(gain < 0 for gain in gains)
    rows = (
        ("people scored", f"{len(people)}"),
        ("worse off than without the release", f"{worse} ({100 * worse / len(people):.0f} %)"),
        ("gain, 5th percentile of people", _percent(percentile(gains, 0.05))),
        ("gain, half of the people", _percent(percentile(gains, 0.5))),
        ("gain, 95th percentile", _percent(percentile(gains, 0.95))),
        ("third with the least text", f"{_percent(sum(by_text[:third]) / third)} on average"),
        ("third with the most text", f"{_percent(sum(by_text[-third:]) / third)} on average"),
    )
    return (
        Text("Fairness: bits per token that the released adapter saves, person by person, against the base model."),
        Facts(rows),
        Text(
            "Computed in the clear by the simulation; no ε covers these figures, and they are not for release.", "note"
        ),
    )


def _percent(share: float) -> str:
    return f"{100 * share:+.2f} %"
