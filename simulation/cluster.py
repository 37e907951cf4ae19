"""Hosts on the nodes of a Ray cluster: agents and their people on every machine, calls and frames over Ray.

    this process  --calls-->  host w: an actor on node w modulo N, with the people w, w + W, w + 2 W, ...
    a relay of Flower on any node  --Unix socket-->  its node's door  --frames over Ray-->  host w

The relay knows nothing of it: on each node it finds a socket of every host in the one folder where it looks. A host
reads model and basis and writes ledgers in the same places as this process does: the machines share a file system. An
actor that dies is started again by Ray, on another node where its own is gone: a host then accepts and trains again
what it had accepted (`simulation.relayed`), and a door repeats the frame that it was passing on.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from privacy.errors import ConfideError, ConfigError
from simulation.host import MOST_RESTARTS, Call, Host, HostSettings, Pool
from simulation.quiet import quiet_libraries

THREADS = 8  # of an actor: its work is under one lock, what relays ask is not
KNOCK_S = 5.0
DYING = {"max_restarts": MOST_RESTARTS, "max_task_retries": MOST_RESTARTS}  # Ray's options of an actor
ROOT = Path(__file__).parent.parent


class HostActor:
    """One host inside a Ray actor."""

    def __init__(self, settings: HostSettings) -> None:
        os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"})
        quiet_libraries()
        self._host, self._listens, self._once = Host(settings), False, threading.Lock()

    def call(self, method: str, arguments: Sequence[Any]) -> tuple[str, Any]:
        """Return ("ok", result) of one call, or ("error", line)."""
        return self._host.call(method, arguments)

    def listen(self, again: bool = False) -> tuple[str, Any]:
        """Answer frames from now on; `again` in place of an actor that died."""
        with self._once:
            if self._listens:
                return "ok", None
            state, line = self._host.call("listen", ("", again))
            self._listens = state == "ok"
            return state, line

    def relayed(self, place: int, node_id: int, frame: bytes) -> bytes:
        """Return the answer to a frame that came through a door; nothing where this host cannot begin."""
        state, _ = self.listen(again=True)
        return cast("bytes", self._host.work.relayed(place, node_id, frame)) if state == "ok" else b""

    def process(self) -> int:
        """Return the number of the process that this actor is."""
        return os.getpid()


class Door:
    """One node's sockets, one for each host: what comes is passed on, and so is the answer."""

    def __init__(self, hosts: Sequence[Any]) -> None:
        from client.app import default_folder
        from client.listener import RelaySocket

        def passed_to(host: Any) -> Any:
            import ray

            return lambda place, node_id, frame: ray.get(host.relayed.remote(place, node_id, frame))

        self._sockets = [RelaySocket(default_folder() / f"{w}.sock", passed_to(host)) for w, host in enumerate(hosts)]

    def open(self) -> int:
        """Return how many hosts can be reached through this door."""
        return len(self._sockets)

    def close(self) -> None:
        """Close them."""
        for each in self._sockets:
            each.close()


class ClusterPool(Pool):
    """Hosts on all nodes of the Ray cluster at `address`. Raises ConfigError where there is none."""

    def __init__(self, settings: Sequence[HostSettings], address: str) -> None:
        super().__init__(settings)
        connect(address)
        self._nodes = node_ids()
        self._doors: list[Any] = []
        self._answers: dict[int, Any] = {}
        self._actors = [self._actor(w) for w in range(len(settings))]

    def nodes(self) -> list[str]:
        """Return the node of each host."""
        return [self._nodes[w % len(self._nodes)] for w in range(len(self._actors))]

    def processes(self) -> list[int]:
        """Return the process of each host, on its own machine."""
        import ray

        return [int(ray.get(actor.process.remote())) for actor in self._actors]

    def listen(self, folder: Path) -> None:
        """Let relays on every node reach every host, in the folder where they look if nobody tells them another."""
        import ray

        for state, line in ray.get([actor.listen.remote() for actor in self._actors]):
            if state != "ok":
                raise ConfideError(line)
        for node in self._nodes:
            options = {"num_cpus": 0, "max_concurrency": THREADS, **_on(node), **DYING}
            self._doors.append(ray.remote(Door).options(**options).remote(self._actors))
        ray.get([door.open.remote() for door in self._doors])

    def _actor(self, w: int) -> Any:
        import ray

        home = _on(self._nodes[w % len(self._nodes)], or_elsewhere=True)
        options = {"num_cpus": 0, "max_concurrency": THREADS, **home, **DYING}
        return ray.remote(HostActor).options(**options).remote(self._settings[w])

    def _send(self, w: int, call: Call) -> None:
        # Not repeated by Ray: what a host held in memory is gone, and `Pool` brings it back first.
        self._answers[w] = self._actors[w].call.options(max_task_retries=0).remote(*call)

    def _arrived(self, waiting: Collection[int]) -> list[int]:
        import ray

        numbers = {self._answers[w]: w for w in waiting}
        ready, _ = ray.wait(list(numbers), num_returns=1)
        return [numbers[each] for each in ready]

    def _received(self, w: int) -> tuple[str, Any]:
        import ray

        try:
            state, result = ray.get(self._answers.pop(w))
        except ray.exceptions.RayError as error:
            raise EOFError from error
        return state, result

    def _renew(self, w: int) -> None:
        """Leave it to Ray, which starts the actor again by itself and keeps calls until it is there."""

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        import ray

        if kind is None and self._doors:
            ray.get([door.close.remote() for door in self._doors])
        for actor in (*self._doors, *self._actors):
            ray.kill(actor)
        ray.shutdown()


def connect(address: str) -> None:
    """Connect this process to the cluster, once. Raises ConfigError where none is there."""
    try:
        import ray
    except ImportError:
        raise ConfigError("cluster needs Ray: install the extra `simulation`") from None
    if ray.is_initialized():
        return
    _knock(address)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    try:
        ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"no Ray cluster at {address}: {reason}") from None


def _knock(address: str) -> None:
    """Raise ConfigError where nobody listens at `address`, a host and a port: Ray itself asks again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto", "local": a name that Ray looks up
    try:
        socket.create_connection((host, int(port)), KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from None


def node_ids() -> list[str]:
    """Return the nodes of the cluster that are there and have processors, in a stable order."""
    import ray

    return sorted(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU"))


def processors(address: str) -> int:
    """Return how many processors the cluster's nodes have together."""
    import ray

    connect(address)
    return max(1, int(sum(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"])))


def _on(node: str, or_elsewhere: bool = False) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=or_elsewhere)}
