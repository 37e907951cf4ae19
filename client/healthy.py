"""`python -P -m client.healthy FOLDER`: exit status 0 if the agent over FOLDER answers its owner, for health checks."""

from __future__ import annotations

import sys
from pathlib import Path

from client.listener import ask


def healthy(folder: Path) -> bool:
    """Return whether the agent answers within five seconds."""
    try:
        return "federation" in ask(folder, {"do": "status"}, 5.0)
    except (OSError, ValueError, EOFError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(Path(sys.argv[1])) else 1)
