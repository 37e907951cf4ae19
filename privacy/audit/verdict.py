"""What an audit says: findings, each one check with its outcome, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Outcome(StrEnum):
    """Three outcomes, never two: what was not checked does not hold."""

    HOLDS = "holds"
    VIOLATED = "violated"
    UNCHECKED = "unchecked"


TITLES: Final[Mapping[str, str]] = {
    "ledger.federation": "The federation’s ledger is whole and signed",
    "ledger.devices": "Every device’s ledger is whole and signed",
    "ledger.history": "Queries and answers name states that the ledgers really had",
    "ledger.checkpoints": "The ledgers continue what others saw of them",
    "ledger.witness": "A witness countersigned the ledgers",
    "witness": "A ledger continues what this witness saw of it",
    "policy.signature": "The policy is signed, and every query was made under it",
    "policy.bounds": "No device was asked beyond its policy and budget",
    "round.cohort": "Every sum rests on enough devices",
    "round.charged": "Whoever is in a sum was charged for exactly that query",
    "release.files": "The release is whole, signed and finite",
    "release.ledger": "The release stands in the ledger, and the ledger reaches to it",
    "claims.release": "The release claims what the ledger gives",
    "claims.report": "The report claims what the ledger gives",
    "accountants": "Independent accountants agree",
    "stamp": "What is not private says so",
    "record": "Record-level lines give the epsilon that is claimed",
}
SHOWN: Final = 4


@dataclass(frozen=True)
class Finding:
    """One check: its name in `TITLES`, its outcome, and what was seen."""

    check: str
    outcome: Outcome
    detail: str
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.check not in TITLES:
            raise ValueError(f"unknown check {self.check}")

    @property
    def title(self) -> str:
        """Return the check in words."""
        return TITLES[self.check]

    def as_dict(self) -> dict[str, object]:
        """Return the finding for JSON."""
        return {
            "check": self.check,
            "title": self.title,
            "outcome": self.outcome.value,
            "detail": self.detail,
            "problems": list(self.problems),
        }


def judged(check: str, problems: Iterable[str], checked: str) -> Finding:
    """Return `violated` with all problems if there are any, else `holds` with what was `checked`."""
    found = tuple(problems)
    if not found:
        return Finding(check, Outcome.HOLDS, checked)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Finding(check, Outcome.VIOLATED, "; ".join(found[:SHOWN]) + more, found)


def unchecked(check: str, why: str) -> Finding:
    """Return a finding that says why nothing can be said."""
    return Finding(check, Outcome.UNCHECKED, why)


@dataclass(frozen=True)
class Verdict:
    """All findings on one subject, and the facts that were read on the way (for the report; plain JSON values)."""

    subject: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def violated(self) -> tuple[Finding, ...]:
        """Return the findings that do not hold."""
        return tuple(each for each in self.findings if each.outcome is Outcome.VIOLATED)

    @property
    def holds(self) -> bool:
        """Return whether nothing that was checked is violated."""
        return not self.violated

    @property
    def exit_code(self) -> int:
        """Return 0 if it holds, 1 if it is violated."""
        return 0 if self.holds else 1

    @property
    def line(self) -> str:
        """Return the verdict in one line."""
        if self.holds:
            open_ = sum(each.outcome is Outcome.UNCHECKED for each in self.findings)
            rest = f", {open_} could not be checked" if open_ else ""
            return f"{self.subject}: holds ({len(self.findings) - open_} checks{rest})"
        first = self.violated[0]
        more = f" (and {len(self.violated) - 1} more)" if len(self.violated) > 1 else ""
        return f"{self.subject}: VIOLATED: {first.check}: {first.detail}{more}"

    def as_dict(self) -> dict[str, object]:
        """Return the verdict for JSON."""
        return {
            "subject": self.subject,
            "holds": self.holds,
            "findings": [each.as_dict() for each in self.findings],
            **self.facts,
        }
