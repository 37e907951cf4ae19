"""`python -P server/healthy.py FOLDER`: exit status 0 if the door of the server over FOLDER answers, for health checks.

Standard library only, so that it starts in a moment.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from pathlib import Path


def healthy(folder: Path) -> bool:
    """Return whether the door on this machine answers within five seconds, with the certificate that devices pin."""
    try:
        chosen = json.loads((folder / "federation.json").read_bytes())
        port = int(chosen["address"].rpartition(":")[2])
        host = "localhost" if chosen["listen"] == "0.0.0.0" else chosen["listen"]  # noqa: S104 - compared, not bound
        context = ssl.create_default_context(cafile=str(folder / "tls" / "ca.crt"))
        with urllib.request.urlopen(f"https://{host}:{port}/health", timeout=5, context=context) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, KeyError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(Path(sys.argv[1])) else 1)
