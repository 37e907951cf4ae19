"""`python -P -m client.take_part_alone FOLDER`: what `confide device join` leaves running, and a service manager runs.

The passphrase, where a vault opens by one, comes in the environment; the SuperNode and what it starts never get it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from client.agent_home import AgentHome
from client.take_part import take_part
from client.vault_key import PASSPHRASE_VARIABLE
from privacy.errors import ConfideError
from privacy.files import write_atomic

PID = "take-part.pid"


def main(folder: Path) -> int:
    """Keep agent and SuperNode up until told to end; return the exit status."""
    passphrase = os.environ.pop(PASSPHRASE_VARIABLE, None)
    write_atomic(folder / PID, str(os.getpid()).encode())
    try:
        take_part(AgentHome(folder), lambda: None, passphrase, lambda line: _say(f"{line}\n"))
    except ConfideError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        (folder / PID).unlink(missing_ok=True)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
