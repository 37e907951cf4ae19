"""Flower's SuperLink, patient with its own database: `python -P server/patient_superlink.py …/flower-superlink ARGS`.

Flower waits five seconds for a lock of its SQLite database and then answers 500. With two hundred devices on two cores
that was seen six times in a quarter of an hour, and what asked does not always ask again: a SuperNode whose heartbeat
meets it sends none any more and counts as gone until it is started anew, and the program that starts runs ends. Here a
request waits for a minute. All else is Flower's own command, in the process that was started as this one. Read in
Flower 1.41.0: the one name of Flower's that it does not promise to keep stands in this file.
"""

from __future__ import annotations

import runpy
import sys

WAIT_MS = "60000"


def patient(pragmas: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return Flower's settings of SQLite with a longer wait for a lock."""
    return tuple((name, WAIT_MS if name == "busy_timeout" else value) for name, value in pragmas)


def main() -> None:
    """Run the program named by the first argument with those that follow."""
    from flwr.supercore import constant, sql_mixin

    vars(sql_mixin)["SQLITE_PRAGMAS"] = patient(constant.SQLITE_PRAGMAS)
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
