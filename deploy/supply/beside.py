"""The part of a lock that another lock does not hold. Run in the end-to-end test (tests/deploy)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

NAME = re.compile(r"([a-z0-9][a-z0-9.-]*)==")
LEFT_OUT = {"confide", "pip", "torch"}


def beside(lock: str, other: str) -> str:
    """Return the blocks of `lock` whose packages `other` does not pin; comments of the first lines stay."""
    known = LEFT_OUT | {match[1] for match in map(NAME.match, other.splitlines()) if match}
    kept, keep = [], True
    for line in lock.splitlines():
        if line.startswith(("# WARNING", "# Consider")) or not line.strip():
            continue
        if line[:1].strip() and not line.startswith("#"):
            found = NAME.match(line)
            keep = found is not None and found[1] not in known
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    sys.stdout.write(beside(*(Path(name).read_text(encoding="utf-8") for name in sys.argv[1:3])))
