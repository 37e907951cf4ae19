# Checked by a linter only: tests/deploy runs it over the lock and compares it with what the extra really needs.
"""`python subset.py LOCK NAMES`: prints the hashed lines of a lock for the named packages; fails if one is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def subset(lock: str, names: list[str]) -> str:
    """Return the blocks of `lock` for `names`, hashes included. Raises SystemExit that names what is missing."""
    blocks = {
        m.group(1): block for block in re.split(r"\n(?=[a-z0-9])", lock) if (m := re.match(r"([a-z0-9.-]+)==", block))
    }
    missing = sorted(set(names) - set(blocks))
    if missing:
        raise SystemExit(f"not in the lock: {', '.join(missing)}")
    return "".join(f"{blocks[name].rstrip()}\n" for name in sorted(set(names)))


if __name__ == "__main__":
    lock_file, names_file = map(Path, sys.argv[1:3])
    wanted = [line.strip() for line in names_file.read_text().splitlines() if line.strip() and line[0] != "#"]
    sys.stdout.write(subset(lock_file.read_text(), wanted))
