"""Flower's simulation in a process of its own: `python -m simulation.flower_process NODES [CLUSTER]`.

Ends when its campaign does, or when the run that started it is gone: its line closes then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from typing import Any

from flwr.simulation import run_simulation

from client.app import app as client_app
from server.app import app as server_app


def main(nodes: int, cluster: str = "") -> None:
    """Run our ServerApp and relay on `nodes` virtual nodes of Flower, its relays on a Ray of its own or a `cluster`.

    Where Flower fails the process ends at once: the thread of its ServerApp would wait for devices for ever.
    """
    here: dict[str, Any] = {
        "address": "local",
        "num_cpus": RELAYS,
        "include_dashboard": False,
    }  # never somebody else's Ray
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0, **DYING},
                "init_args": {**({"address": cluster} if cluster else here), "log_to_driver": False},
            },
        )
    except Exception:  # noqa: BLE001 whatever it is, it is for the log
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


# Ray's options of an actor, which Flower hands on: a relay that died is started again and what it did is done again.
# A frame that comes twice gets the same answer.
DYING = {"max_restarts": 3, "max_task_retries": 3}
RELAYS = 4  # Flower's workers: each is a process that waits for an agent most of the time


def _end_with_parent(parent: int) -> None:
    """Leave when the process that started this one is gone, with all of this group.

    Ray's processes end with their driver, but one that is just being started does not know yet that it should.
    """
    import time

    while os.getppid() == parent:
        time.sleep(0.5)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3])
