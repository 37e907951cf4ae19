"""A host: one process with one frozen base model, one thread, and some of the people. Calls come over a pipe.

The devices of a host are real ones: each with its policy, its ledger on the disk, its keys. What a host hands to the
engine as an answer is the wire message and nothing else; the other methods are the researcher's view of simulated
people, which no server of a real federation has.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Protocol

from client.documents import Person
from privacy.errors import ConfideError
from simulation.config import RunConfig
from simulation.quiet import quiet_libraries


@dataclass(frozen=True)
class HostSettings:
    """What a host needs to begin: paths, people, the signed policy with its root key, device keys, the noise root.

    `number` is the host's own among the W hosts of a run; `directory_file` is empty where nobody is a device.
    """

    config: RunConfig
    model_path: str
    basis_file: str
    people: tuple[Person, ...]
    policy_file: bytes
    root_key: bytes
    device_keys: dict[str, bytes]
    noise_root: bytes
    run_folder: str
    number: int = 0
    directory_file: bytes = b""


def host_main(connection: Connection, alive: Connection, settings: HostSettings) -> None:
    """Serve calls (method, arguments) until the pipe closes; each reply is ("ok", result) or ("error", line)."""
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    quiet_libraries()
    host: Any = None
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if host is None:
                from simulation.work import HostWork  # torch is imported in the worker alone

                host = HostWork(settings)
            with host.lock:  # one model: an agent that trains for a relay has it to itself
                result = getattr(host, method)(*arguments)
            connection.send(("ok", result))
        except ConfideError as error:
            connection.send(("error", str(error)))
        except Exception as error:  # noqa: BLE001 simulated people: the text of an error may be shown here
            connection.send(("error", f"{type(error).__name__}: {error}"))


def _die_with_parent(alive: Connection) -> None:
    """Leave at once when the engine is gone, killed or not: nobody would take the answers, and locks must be free."""
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)


Call = tuple[str, tuple[Any, ...]]
CLOSING_S = 5.0
ENDED = "a worker process ended; is there enough memory?"


class Hosts(Protocol):
    """Where the people of a simulation live: worker processes, or one process in a test."""

    def run(self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None]) -> None:
        """Make each person's call; `done(user, result)` for every one, in any order. Raises ConfideError."""

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Make one call on every host and return the results in the hosts' order."""

    def __enter__(self) -> Hosts:
        """Return the hosts, ready for calls."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all hosts."""


class HostPool:
    """Worker processes and who lives where: person i on host i modulo the number of hosts."""

    def __init__(self, settings: Sequence[HostSettings]) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._homes = {person.user: w for w, s in enumerate(settings) for person in s.people}
        self._pipes: list[Connection] = []
        self._alive: list[Connection] = []
        self._processes = []
        for one in settings:
            ours, theirs = context.Pipe()
            watch, watched = context.Pipe()
            process = context.Process(target=host_main, args=(theirs, watched, one), daemon=True)
            with _interrupts_held():
                process.start()
            theirs.close()
            watched.close()
            self._pipes.append(ours)
            self._alive.append(watch)
            self._processes.append(process)

    def run(self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None]) -> None:
        """Make each person's call on that person's host, all hosts at once; `done(user, result)` as results arrive.

        Raises ConfideError with the host's line; what the other hosts are doing is then abandoned.
        """
        queues: list[list[tuple[str, Call]]] = [[] for _ in self._pipes]
        for user, call in calls:
            queues[self._homes[user]].append((user, call))
        self._drain(queues, done)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Make one call on every host and return the results in the hosts' order."""
        results: dict[str, Any] = {}
        queues = [[(str(w), (method, arguments))] for w in range(len(self._pipes))]
        self._drain(queues, results.__setitem__)
        return [results[str(w)] for w in range(len(self._pipes))]

    def _drain(self, queues: list[list[tuple[str, Call]]], done: Callable[[str, Any], None]) -> None:
        from multiprocessing.connection import wait

        pending: dict[Connection, tuple[int, str]] = {}
        for w, queue in enumerate(queues):
            self._next(w, queue, pending)
        while pending:
            for pipe in wait(list(pending)):
                assert isinstance(pipe, Connection)
                w, user = pending.pop(pipe)
                try:
                    state, result = pipe.recv()
                except (EOFError, OSError):
                    raise ConfideError(ENDED) from None
                if state != "ok":
                    raise ConfideError(result)
                self._next(w, queues[w], pending)
                done(user, result)

    def _next(self, w: int, queue: list[tuple[str, Call]], pending: dict[Connection, tuple[int, str]]) -> None:
        if queue:
            user, call = queue.pop(0)
            try:
                self._pipes[w].send(call)
            except OSError:
                raise ConfideError(ENDED) from None
            pending[self._pipes[w]] = (w, user)

    def close(self, at_once: bool = False) -> None:
        """End all hosts: when they have finished what they do, or at once."""
        for connection in self._alive if at_once else self._pipes:
            connection.close()
        for process in self._processes:
            process.join(timeout=CLOSING_S)
        for connection in (*self._pipes, *self._alive):
            connection.close()
        for process in self._processes:
            process.join(timeout=CLOSING_S)
            if process.is_alive():
                process.kill()

    def __enter__(self) -> HostPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back inside the block. A process begun there never sees it: its parent does, and ends it in order."""
    resource_tracker.ensure_running()  # it lets the signal through again where it has to be started first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
