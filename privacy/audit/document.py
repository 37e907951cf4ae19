"""A report as data: sections of blocks that HTML, PDF and JSON all show, so that no two of them can differ.

Every block is plain values. Whoever draws it draws all of it: a block that a format cannot draw is an error there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Text:
    """A paragraph. `kind` is "plain", "lead" (large), "note" (soft) or "stamp" (cannot be overlooked)."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Facts:
    """Names and their values, in two columns; an empty value is a line to be filled in by hand."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A caption, a head and rows of cells. A cell `E3` or `2, E3` in the column `evidence` names numbered evidence.

    `widths` are shares of the line, one a column.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    widths: tuple[float, ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in (*self.rows, self.widths)):
            raise ValueError(f"{self.caption}: a row has more or fewer cells than the head")


@dataclass(frozen=True)
class Bullets:
    """A list of short statements."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """One row of a chart: an interval, a point in it, and what is allowed; None where there is none."""

    label: str
    low: float
    high: float
    point: float | None
    allowed: float | None
    said: str


@dataclass(frozen=True)
class Chart:
    """Intervals on one axis from 0 on, each beside what is allowed: a bar beyond its mark is a broken claim."""

    caption: str
    axis: str
    marks: tuple[Mark, ...]

    @property
    def end(self) -> float:
        """Return where the axis ends: a little beyond the largest figure in it."""
        figures = [x for m in self.marks for x in (m.high, m.point or 0.0, m.allowed or 0.0)]
        return 1.08 * max([*figures, 1e-9])


@dataclass(frozen=True)
class Evidence:
    """Numbered evidence: E1, E2, …, with its outcome ("holds", "violated", "unchecked") and what was seen."""

    number: str
    title: str
    outcome: str
    detail: str


@dataclass(frozen=True)
class EvidenceList:
    """What was checked, numbered, for the claims to name."""

    items: tuple[Evidence, ...]


Block = Text | Facts | Table | Bullets | Chart | EvidenceList


@dataclass(frozen=True)
class Section:
    """One numbered section; `name` is its anchor."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report: `holds` is false where anything that was checked is violated; `stamp` is "" or what must be seen."""

    title: str
    subtitle: str
    holds: bool
    line: str
    stamp: str
    sections: tuple[Section, ...]

    def as_dict(self) -> dict[str, object]:
        """Return the document for JSON, each block with its kind."""
        return {
            "title": self.title,
            "subtitle": self.subtitle,
            "holds": self.holds,
            "line": self.line,
            "stamp": self.stamp,
            "sections": [
                {"name": each.name, "title": each.title, "blocks": [block_dict(block) for block in each.blocks]}
                for each in self.sections
            ],
        }


def block_dict(block: Block) -> dict[str, object]:
    """Return a block for JSON."""
    return {"block": type(block).__name__.lower(), **{f.name: _plain(getattr(block, f.name)) for f in fields(block)}}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mark | Evidence):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of them do not exceed: an order statistic, so somebody's own, never a mean."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
