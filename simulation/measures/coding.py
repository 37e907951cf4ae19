"""Coding style: what of a person's code is theirs whatever it does, as a few shares, and how alike two codes are.

    snake, camel, capital   shares of identifiers of two words or more: a_b, aB, AB
    tab, two, four          shares of indented lines that begin with a tab, with two spaces only, with fours
    length                  mean characters of a line over 100, at most 1
    comment                 share of lines that are or hold a comment (#, //, /*, --, and lines of a docstring)
    blank                   share of blank lines
    double                  share of quotation marks that are double

    alike = 1 - mean |difference| over the figures that both codes have

After the layout features of code stylometry (Caliskan-Islam et al. 2015, USENIX Security, section 3.2), a language's
grammar left out: the same figures for every language, and no figure of what the code means.
"""

from __future__ import annotations

import re

_IDENTIFIER = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]*\b")
_SNAKE = re.compile(r"^_*[a-z0-9]+(_[a-z0-9]+)+_*$")
_CAMEL = re.compile(r"^_*[a-z]+[a-z0-9]*([A-Z][a-z0-9]*)+$")
_CAPITAL = re.compile(r"^_*([A-Z][a-z0-9]+){2,}$")
_COMMENT = re.compile(r"(^|\s)(#|//|/\*|\*\s|--\s)|^\s*(\"\"\"|''')")
LONGEST = 100.0
FIGURES = ("snake", "camel", "capital", "tab", "two", "four", "length", "comment", "blank", "double")


def coding_style(code: str) -> dict[str, float]:
    """Return the figures of `code`, each in [0, 1]; those of which it holds nothing are left out."""
    lines = code.splitlines()
    found: dict[str, float] = {}
    names = [name for name in _IDENTIFIER.findall(code) if "_" in name.strip("_") or not (name.islower())]
    kinds = [(bool(_SNAKE.match(n)), bool(_CAMEL.match(n)), bool(_CAPITAL.match(n))) for n in names]
    told = [kind for kind in kinds if any(kind)]
    if told:
        found |= dict(zip(FIGURES[:3], (sum(part) / len(told) for part in zip(*told, strict=True)), strict=True))
    starts = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip() and line[0] in " \t"]
    if starts:
        tabs = sum(start[0] == "\t" for start in starts)
        fours = sum(start[0] == " " and len(start) % 4 == 0 for start in starts)
        found |= {"tab": tabs / len(starts), "four": fours / len(starts)}
        found["two"] = (len(starts) - tabs - fours) / len(starts)
    written = [line for line in lines if line.strip()]
    if written:
        found["length"] = min(1.0, sum(map(len, written)) / len(written) / LONGEST)
        found["comment"] = sum(bool(_COMMENT.search(line)) for line in written) / len(written)
        found["blank"] = 1 - len(written) / len(lines)
    if quotes := code.count('"') + code.count("'"):
        found["double"] = code.count('"') / quotes
    return found


def alike(own: str, text: str) -> float | None:
    """Return how alike the coding styles of two texts are, in [0, 1], 1 = the same; None where they share no figure."""
    a, b = coding_style(own), coding_style(text)
    both = sorted(a.keys() & b.keys())
    return 1 - sum(abs(a[name] - b[name]) for name in both) / len(both) if both else None
