"""The officer's report as PDF: the same document as the page, set line by line; the same document gives the same bytes.

Matplotlib embeds the font and writes text as text. There is no layout engine below this: lines are broken by measured
widths, and a block that does not fit begins on the next page.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.backends.backend_pdf import FigureCanvasPdf, PdfPages
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from privacy.audit.document import (
    Block,
    Bullets,
    Chart,
    Document,
    Evidence,
    EvidenceList,
    Facts,
    Mark,
    Section,
    Table,
    Text,
)

WIDTH, HEIGHT, MARGIN = 595.3, 841.9, 56.0  # points; A4
INNER: Final = WIDTH - 2 * MARGIN
INK, SOFT, RULE, ACCENT, GOOD, BAD, OPEN = "#1d1c1a", "#66625a", "#d8d4ca", "#1f5f8b", "#1c6b3a", "#b3140e", "#8a5a12"
OUTCOMES: Final = {"holds": ("✓ holds", GOOD), "violated": ("✗ violated", BAD), "unchecked": ("– not checked", OPEN)}
STYLES: Final = {"plain": (9.5, INK), "lead": (12.5, INK), "note": (9.0, SOFT), "stamp": (13.0, BAD)}
STYLE: Any = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "text.parse_math": False, "pdf.compression": 6}


def officer_pdf(document: Document) -> bytes:
    """Return the PDF."""
    with mpl.rc_context(STYLE):
        paper = _Paper(document.title)
        paper.write(document.title, 18, bold=True)
        paper.write(document.subtitle, 10, colour=SOFT)
        paper.skip(6)
        if document.stamp:
            paper.write(document.stamp, 13, bold=True, colour=BAD)
        paper.write("Holds" if document.holds else "Violated", 14, bold=True, colour=GOOD if document.holds else BAD)
        paper.write(document.line, 10)
        for section in document.sections:
            _section(paper, section)
        return paper.finish()


class _Paper:
    """Pages of text: a place that moves down, and a new page where the next thing does not fit."""

    def __init__(self, title: str) -> None:
        self.title, self.figures, self.y = title, list[Figure](), 0.0
        self.turn()

    def turn(self) -> None:
        """Begin a page."""
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        FigureCanvasPdf(self.figure)
        self.figures.append(self.figure)
        self.y = HEIGHT - MARGIN

    def need(self, height: float) -> bool:
        """Begin a page unless so much room is left; return whether one was begun."""
        if self.y - height >= MARGIN:
            return False
        self.turn()
        return True

    def skip(self, height: float) -> None:
        """Leave room."""
        self.y -= height

    def put(self, x: float, y: float, text: str, size: float, *, bold: bool = False, colour: str = INK) -> None:
        """Write one line at a place: the base line is at y."""
        weight = "bold" if bold else "normal"
        self.figure.text(x / WIDTH, y / HEIGHT, text, fontsize=size, color=colour, fontweight=weight)

    def rule(self, y: float, colour: str = RULE, left: float = MARGIN, right: float = WIDTH - MARGIN) -> None:
        """Draw a thin line across."""
        ends = [left / WIDTH, right / WIDTH], [y / HEIGHT, y / HEIGHT]
        self.figure.add_artist(Line2D(*ends, color=colour, linewidth=0.6))

    def box(self, x: float, y: float, width: float, height: float, colour: str, alpha: float = 1.0) -> None:
        """Fill a rectangle whose lower left corner is at (x, y)."""
        corner = x / WIDTH, y / HEIGHT
        shape = Rectangle(corner, width / WIDTH, height / HEIGHT, facecolor=colour, alpha=alpha, linewidth=0)
        self.figure.add_artist(shape)

    def write(self, text: str, size: float, *, bold: bool = False, colour: str = INK, indent: float = 0.0) -> None:
        """Write a paragraph, broken into lines, over pages where it must."""
        for line in broken(text, INNER - indent, size, bold):
            self.need(size * 1.4)
            self.skip(size * 1.4)
            self.put(MARGIN + indent, self.y, line, size, bold=bold, colour=colour)
        self.skip(size * 0.35)

    def finish(self) -> bytes:
        """Return the PDF of all pages, numbered."""
        buffer = io.BytesIO()
        facts: Any = {
            "Title": self.title,
            "CreationDate": None,
            "Producer": "confide",
            "Creator": "confide audit report",
        }
        with PdfPages(buffer, metadata=facts) as pages:
            for number, figure in enumerate(self.figures, 1):
                foot = f"{self.title}  ·  {number} of {len(self.figures)}"
                figure.text(MARGIN / WIDTH, 28 / HEIGHT, foot, fontsize=7.5, color=SOFT)
                pages.savefig(figure)
        return buffer.getvalue()


@lru_cache(maxsize=4)
def _font(bold: bool) -> FT2Font:
    return FT2Font(font_manager.findfont("DejaVu Sans:bold" if bold else "DejaVu Sans"))


@lru_cache(maxsize=4096)
def _advance(character: str, bold: bool) -> float:
    """Return the width of a character at size 1."""
    font = _font(bold)
    font.set_size(100, 72)
    return font.load_char(ord(character)).linearHoriAdvance / 65536 / 100


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Return the width of a line in points."""
    return size * sum(_advance(character, bold) for character in text)


def broken(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Return `text` in lines no wider than `width`; a word that is wider by itself is cut."""
    lines, line = list[str](), ""
    for word in text.split():
        for piece in _pieces(word, width, size, bold):
            joined = f"{line} {piece}" if line else piece
            if line and width_of(joined, size, bold) > width:
                lines.append(line)
                joined = piece
            line = joined
    return [*lines, line]


def _pieces(word: str, width: float, size: float, bold: bool) -> Iterator[str]:
    piece = ""
    for character in word:
        if piece and width_of(piece + character, size, bold) > width:
            yield piece
            piece = ""
        piece += character
    yield piece


def _section(paper: _Paper, section: Section) -> None:
    paper.skip(16)
    paper.need(80)
    paper.rule(paper.y)
    paper.skip(4)
    paper.write(section.title, 13, bold=True)
    for block in section.blocks:
        _DRAW[type(block)](paper, block)


def _text(paper: _Paper, block: Text) -> None:
    size, colour = STYLES[block.kind]
    paper.write(block.text, size, colour=colour, bold=block.kind == "stamp")


def _row(paper: _Paper, cells: Sequence[Sequence[str]], places: Sequence[float], size: float, **style: Any) -> None:
    """Write cells, each broken into lines, side by side."""
    top = paper.y
    for lines, x in zip(cells, places, strict=True):
        for i, line in enumerate(lines):
            paper.put(x, top - (i + 1) * size * 1.35, line, size, **style)
    paper.skip(max(map(len, cells)) * size * 1.35 + 3)


def _facts(paper: _Paper, block: Facts) -> None:
    size, left = 9.0, 150.0
    paper.skip(3)
    for name, value in block.rows:
        names, values = broken(name, left - 10, size), broken(value, INNER - left, size)
        height = max(len(names), len(values)) * size * 1.35 + 4
        paper.need(height)
        top = paper.y
        for i, line in enumerate(names):
            paper.put(MARGIN, top - (i + 1) * size * 1.35, line, size, colour=SOFT)
        for i, line in enumerate(values):
            paper.put(MARGIN + left, top - (i + 1) * size * 1.35, line, size)
        if not value:
            paper.rule(top - height + 3, SOFT, MARGIN + left)
        paper.skip(height + (6 if not value else 0))
    paper.skip(4)


def _table(paper: _Paper, block: Table) -> None:
    size, whole = 8.0, sum(block.widths)
    widths = [INNER * width / whole for width in block.widths]
    places = [MARGIN + sum(widths[:i]) for i in range(len(widths))]

    def head() -> None:
        _row(
            paper,
            [broken(n, w - 6, size, True) for n, w in zip(block.head, widths, strict=True)],
            places,
            size,
            bold=True,
        )
        paper.rule(paper.y, INK)
        paper.skip(2)

    paper.skip(4)
    paper.need(70)
    paper.write(block.caption, 9, colour=SOFT)
    head()
    for row in block.rows:
        cells = [broken(text, width - 6, size) for text, width in zip(row, widths, strict=True)]
        if paper.need(max(map(len, cells)) * size * 1.35 + 6):
            head()
        _row(paper, cells, places, size)
        paper.rule(paper.y)
        paper.skip(2)
    paper.skip(6)


def _bullets(paper: _Paper, block: Bullets) -> None:
    for item in block.items:
        paper.need(14)
        paper.put(MARGIN + 2, paper.y - 9.5 * 1.4, "•", 9.5)
        paper.write(item, 9.5, indent=14)


def _chart(paper: _Paper, block: Chart) -> None:
    paper.skip(4)
    paper.need(70)
    paper.write(f"{block.caption} ({block.axis})", 9, colour=SOFT)
    for mark in block.marks:
        _mark(paper, block, mark)
    paper.skip(4)


def _mark(paper: _Paper, block: Chart, mark: Mark) -> None:
    size, left = 8.0, 150.0
    labels, said = broken(mark.label, left - 10, size), broken(mark.said, INNER - left, size)
    height = max(len(labels) * size * 1.35, 14 + len(said) * size * 1.35) + 4
    paper.need(height)
    top, scale = paper.y, (INNER - left) / block.end
    for i, line in enumerate(labels):
        paper.put(MARGIN, top - (i + 1) * size * 1.35, line, size)
    origin, middle = MARGIN + left, top - 8
    paper.rule(middle, RULE, origin)
    paper.box(origin + scale * mark.low, middle - 4, scale * (mark.high - mark.low), 8, ACCENT, 0.28)
    if mark.point is not None:
        beyond = mark.allowed is not None and mark.point > mark.allowed * (1 + 1e-6)
        paper.box(origin + scale * mark.point - 1.5, middle - 5, 3, 10, BAD if beyond else ACCENT)
    if mark.allowed is not None:
        paper.box(origin + scale * mark.allowed - 0.5, middle - 7, 1, 14, INK)
    for i, line in enumerate(said):
        paper.put(origin, top - 14 - (i + 1) * size * 1.35 + 2, line, size, colour=SOFT)
    paper.skip(height)


def _evidence(paper: _Paper, block: EvidenceList) -> None:
    for item in block.items:
        _item(paper, item)


def _item(paper: _Paper, item: Evidence) -> None:
    size, left = 9.0, 110.0
    title, detail = broken(item.title, INNER - left, size), broken(item.detail, INNER - left, 8)
    paper.need((len(title) + min(len(detail), 6)) * 13 + 6)
    word, colour = OUTCOMES[item.outcome]
    paper.put(MARGIN, paper.y - size * 1.35, item.number, size, bold=True)
    paper.put(MARGIN + 30, paper.y - size * 1.35, word, size, bold=True, colour=colour)
    paper.skip(size * 0.1)
    for lines, height, tone in ((title, size, INK), (detail, 8.0, BAD if item.outcome == "violated" else SOFT)):
        for line in lines:
            paper.need(height * 1.35)
            paper.skip(height * 1.35)
            paper.put(MARGIN + left, paper.y, line, height, colour=tone)
    paper.skip(4)
    paper.rule(paper.y)
    paper.skip(1)


_DRAW: dict[type[Block], Callable[[_Paper, Any], None]] = {
    Text: _text,
    Facts: _facts,
    Table: _table,
    Bullets: _bullets,
    Chart: _chart,
    EvidenceList: _evidence,
}
