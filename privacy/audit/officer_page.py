"""The officer's report as one HTML file: no script, no outside asset; the same document gives the same bytes."""

from __future__ import annotations

from privacy.audit.document import Block, Chart, Document
from privacy.audit.html import page_environment


def officer_page(document: Document) -> str:
    """Return the page."""
    template = page_environment().get_template("officer.html.j2")
    return template.render(document=document, kind_of=_kind, at=_at)


def _kind(block: Block) -> str:
    return type(block).__name__.lower()


def _at(chart: Chart, value: float) -> float:
    """Return where a value stands on an axis of 1,000."""
    return round(1000 * value / chart.end, 2)
