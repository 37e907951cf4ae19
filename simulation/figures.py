"""The report's plots as inline SVG: text stays text, colours are the page's own, nothing is fetched.

Matplotlib draws with stand-in colours; `_inline` turns them into CSS (`currentColor`, `var(--accent)`), so that one
picture follows the page from light to dark. Each function returns a complete `<svg role="img">` with a label for who
cannot see it, or "" where there is nothing to draw. The same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from simulation.report_schema import Interval

INK, FAINT, ACCENT, SECOND, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_CSS = {INK: "currentColor", FAINT: "var(--rule)", ACCENT: "var(--accent)", SECOND: "var(--second)"}
_CSS[PAPER] = "var(--paper)"
_WIDTH_IN = 6.0
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class GainRow:
    """One line of a gain plot. `emphasis` marks what is released."""

    label: str
    gain: Interval
    emphasis: bool = False


def gain_plot(rows: Sequence[GainRow], axis: str = "fewer bits than the base model, %") -> str:
    """Return a dot with its 95 % interval per row, first row on top, zero marked; "" without rows."""
    if not rows:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.62 + 0.36 * len(rows))
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for y, row in enumerate(rows):
            colour = ACCENT if row.emphasis else SECOND
            value, low, high = row.gain["value"], row.gain["low"], row.gain["high"]
            if low is not None and high is not None:
                axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([100 * value], [y], "o", color=colour, markersize=7, markeredgecolor=PAPER)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        spoken = "; ".join(f"{row.label} {_spoken(row.gain)}" for row in rows)
        return _inline(figure, "gain", f"{axis}, with 95 % intervals: {spoken}.")


def _spoken(gain: Interval) -> str:
    text = f"{100 * gain['value']:.1f} %"
    if gain["low"] is None or gain["high"] is None:
        return text
    return f"{text} ({100 * gain['low']:.1f} to {100 * gain['high']:.1f})"


def spread_plot(gains: Sequence[float], against: str = "base") -> str:
    """Return people sorted by what an arm does for them (a share per person); "" for fewer than two."""
    if len(gains) < 2:
        return ""
    values = 100 * np.sort(np.asarray(gains, dtype=np.float64))
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.5)
        place = np.arange(1, len(values) + 1)
        size = float(np.clip(300 / len(values), 3.0, 7.0))
        for better, colour in ((True, ACCENT), (False, SECOND)):
            chosen = (values > 0) == better
            marker = "o" if better else "D"
            axes.plot(place[chosen], values[chosen], marker, color=colour, markersize=size, markeredgewidth=0)
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.set_xlim(0, len(values) + 1)
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("people, sorted by gain")
        axes.set_ylabel(f"fewer bits than {against}, %")
        worse = int(np.sum(values < 0))
        label = f"Gain of each of {len(values)} people, sorted: median {np.median(values):.1f} %, {worse} below zero."
        return _inline(figure, "spread", label)


def people_plot(rows: Sequence[tuple[str, Sequence[float]]], axis: str) -> str:
    """Return everybody as a dot in a line for each arm, shares, with the median as a stroke; "" without two people.

    Dots lie where their value is, moved up and down by their order alone, so that equal ones are all seen.
    """
    kept = [(label, 100 * np.sort(np.asarray(values, dtype=np.float64))) for label, values in rows if len(values) > 1]
    if not kept:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.62 + 0.42 * len(kept))
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for y, (_, values) in enumerate(kept):
            size = float(np.clip(220 / len(values), 2.5, 6.0))
            up = y + 0.28 * np.sin(2.399963 * np.arange(len(values)))
            for better, colour in ((True, ACCENT), (False, SECOND)):
                chosen = (values > 0) == better
                axes.plot(values[chosen], up[chosen], "o", color=colour, markersize=size, markeredgewidth=0)
            middle = float(np.median(values))
            axes.plot([middle, middle], [y - 0.38, y + 0.38], color=INK, linewidth=1.6)
        axes.set_yticks(range(len(kept)), [label for label, _ in kept])
        axes.set_ylim(len(kept) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel(axis)
        spoken = "; ".join(f"{label} median {np.median(values):.1f} %" for label, values in kept)
        return _inline(figure, "people", f"{axis}, everybody under every arm: {spoken}.")


def rounds_plot(rounds: Sequence[int], released: Sequence[float | None], noiseless: Sequence[float | None]) -> str:
    """Return bits per token after each round, released and without noise (dashes); "" for fewer than two rounds."""
    series = [("global", released, ACCENT, "-", "o"), ("without noise", noiseless, SECOND, "--", "s")]
    drawn = [
        (name, [(r, v) for r, v in zip(rounds, values, strict=True) if v is not None], colour, line, marker)
        for name, values, colour, line, marker in series
    ]
    drawn = [row for row in drawn if row[1]]
    if not drawn or len(set(rounds)) < 2:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.3)
        for name, points, colour, line, marker in drawn:
            axes.plot(*zip(*points, strict=True), linestyle=line, marker=marker, color=colour, label=name, markersize=5)
        axes.set_xticks(sorted(set(rounds))[:: max(1, len(set(rounds)) // 10)])
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("round")
        axes.set_ylabel("bits per token")
        axes.legend(frameon=False)
        spoken = "; ".join(f"{name} {points[0][1]:.3f} to {points[-1][1]:.3f}" for name, points, *_ in drawn)
        return _inline(figure, "rounds", f"Bits per token by round: {spoken}.")


def waterfall_plot(steps: Sequence[tuple[str, float]]) -> str:
    """Return bits per token from one technique to the next, each bar from the figure before it; "" for fewer than two.

    The first bar stands on the axis' lower end, which is not zero: lengths of the others compare, its own does not.
    """
    if len(steps) < 2:
        return ""
    values = [value for _, value in steps]
    margin = 0.15 * max(max(values) - min(values), 1e-3)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(0.62 + 0.36 * len(steps))
        lowest = min(values) - margin
        for y, (_, value) in enumerate(steps):
            before = values[y - 1] if y else lowest
            colour = SECOND if y == 0 or value > before else ACCENT
            axes.barh(y, abs(value - before), left=min(value, before), color=colour, height=0.6)
            axes.plot([value, value], [y - 0.3, min(y + 1.3, len(steps) - 0.7)], color=INK, linewidth=0.8)
        axes.set_yticks(range(len(steps)), [name for name, _ in steps])
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.set_xlim(lowest, max(values) + margin)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("bits per token")
        spoken = "; ".join(f"{name} {value:.3f}" for name, value in steps)
        return _inline(figure, "waterfall", f"Bits per token from one technique to the next: {spoken}.")


def curve_plot(items: Sequence[int], gains: Sequence[Interval], axis: str) -> str:
    """Return gains with 95 % intervals by the number of items, on even places; "" for fewer than two."""
    if len(items) < 2:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(2.4)
        place = range(len(items))
        axes.axhline(0.0, color=INK, linewidth=0.8)
        axes.plot(place, [100 * gain["value"] for gain in gains], "o-", color=ACCENT, markersize=5)
        for x, gain in zip(place, gains, strict=True):
            if gain["low"] is not None and gain["high"] is not None:
                axes.plot([x, x], [100 * gain["low"], 100 * gain["high"]], color=ACCENT, linewidth=1.6)
        axes.set_xticks(place, [str(number) for number in items])
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("texts of the person’s own, the newest")
        axes.set_ylabel(axis)
        spoken = "; ".join(f"{n}: {_spoken(gain)}" for n, gain in zip(items, gains, strict=True))
        return _inline(figure, "curve", f"{axis} by the number of own texts: {spoken}.")


def _axes(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _inline(figure: Figure, name: str, label: str) -> str:
    """Return the figure as one `<svg>` element that stands inside HTML: no prolog, metadata, namespace or id clash.

    The ids that matplotlib refers to itself are hashes salted with `name`; the others go.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<defs>\s*<style.*?</style>\s*</defs>"):
        drawing = re.sub(unwanted, "", drawing, flags=re.DOTALL)
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing).replace("xlink:href=", "href=")
    drawing = re.sub(r'<g id="[A-Za-z]+_?\d*[A-Za-z_\d.]*"', "<g", drawing)
    drawing = re.sub(r"(font-family|font): [^;\"]*", _own_font, drawing)
    for stand_in, css in _CSS.items():
        drawing = drawing.replace(stand_in, css)
    size = re.search(r'viewBox="[^"]*"', drawing)
    head = f'<svg role="img" aria-label="{html.escape(label)}" {size.group() if size else ""}>'
    return head + drawing[drawing.index(">") + 1 :].strip()


def _own_font(found: re.Match[str]) -> str:
    """The page's own font: matplotlib's `font: 11px 'DejaVu Sans', ...` names faces that a reader may not have."""
    size = re.search(r"[\d.]+px", found.group())
    return f"font: {size.group()} var(--sans)" if size else "font-family: var(--sans)"
