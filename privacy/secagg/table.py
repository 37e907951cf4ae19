"""Print the rings of cohorts above 128 as PROTOCOL.md shows them: python -m privacy.secagg.table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from privacy.query import Cohort
from privacy.secagg.graph import links_of

COHORTS: Final = (129, 200, 300, 500, 1000, 2000, 5000, 10000, 16384)


def ring_table(cohorts: Sequence[int] = COHORTS) -> str:
    """Return the table of n, c, min_survivors, neighbours k = 2 h, h, f and t, one cohort a line, in Markdown."""
    lines = ["| n | c | min_survivors | k = 2 h | h | f | t |", "|---|---|---|---|---|---|---|"]
    for n in cohorts:
        cohort = Cohort(n)
        links = links_of(cohort)
        cells = (n, cohort.max_colluding, cohort.min_survivors, 2 * links.reach, links.reach)
        lines.append("| " + " | ".join(map(str, (*cells, links.run_floor, links.threshold))) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(ring_table())
