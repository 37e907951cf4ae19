"""`python -m simulation.search.plot WORK OUT.svg NAME …`: gain over base by round of several runs, as one SVG.

Written by hand in the drawing language itself: no plotting package is needed for a few lines.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from simulation.search.campaign import Folder

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 48, 40, 16, 160
COLOURS = ("#1b6ca8", "#c1553b", "#3b8f5a", "#8a5aa8", "#7a7a2a", "#444444")


def curves(work: Path, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the gain in percent by round of every named run, zero before the first."""
    return {name: [0.0, *(100 * row["gain"] for row in Folder(work / name).rows())] for name in names}


def svg(lines: Mapping[str, Sequence[float]], title: str) -> str:
    """Return the curves as one SVG document: rounds to the right, percent upwards, a legend beside."""
    most = max((max(line) for line in lines.values()), default=1.0) or 1.0
    least = min((min(line) for line in lines.values()), default=0.0)
    rounds = max((len(line) - 1 for line in lines.values()), default=1) or 1

    def place(number: float, gain: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * number / rounds
        y = TOP + (HEIGHT - TOP - BOTTOM) * (most - gain) / (most - least)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12">',
        f"<title>{escape(title)}</title>",
    ]
    for number in range(rounds + 1):
        x, y = place(number, least).split(",")
        parts.append(f'<text x="{x}" y="{float(y) + 18}" text-anchor="middle">{number}</text>')
    step = next(s for s in (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if (most - least) / s <= 8 or s == 50.0)
    for tick in range(int(least / step), int(most / step) + 1):
        x, y = place(0, tick * step).split(",")
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(y) + 4}" text-anchor="end">{tick * step:g} %</text>')
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(place(number, gain) for number, gain in enumerate(line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{TOP + 16 + 18 * i}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Write OUT.svg from the runs in WORK; a label may follow a name after `=`."""
    work, out = Path(arguments[0]), Path(arguments[1])
    labelled = {name.partition("=")[0]: name.partition("=")[2] or name for name in arguments[2:]}
    found = curves(work, list(labelled))
    title = "gain over the base model on held-out people, by round"
    out.write_text(svg({labelled[name]: line for name, line in found.items()}, title), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
