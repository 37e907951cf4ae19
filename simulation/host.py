"""A host: one process with one frozen base model, one thread, and some of the people. Calls come over a pipe.

The devices of a host are real ones: each with its policy, its ledger on the disk, its keys. What a host hands to the
engine as an answer is the wire message and nothing else; the other methods are the researcher's view of simulated
people, which no server of a real federation has.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from client.documents import Person
from privacy.errors import ConfideError
from simulation.config import RunConfig
from simulation.crowd import People
from simulation.quiet import quiet_libraries
from simulation.workers import context, interrupts_held, take_environment


@dataclass(frozen=True)
class HostSettings:
    """What a host needs to begin: paths, people, the signed policy with its root key, the roots of keys and noise.

    `people` have devices whose keys follow from `device_root`; where that is empty nobody has one. `others` have none.
    `number` is the host's own among the W hosts of a run; `directory_file` is empty where no device needs it.
    """

    config: RunConfig
    model_path: str
    basis_file: str
    people: Sequence[Person]
    policy_file: bytes
    root_key: bytes
    device_root: bytes
    noise_root: bytes
    run_folder: str
    number: int = 0
    directory_file: bytes = b""
    others: Sequence[Person] = ()

    @property
    def everybody(self) -> People:
        """Return the people of this host by name."""
        return People(self.people, self.others)


def peak_memory_bytes() -> int:
    """Return the most memory that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def host_main(
    connection: Connection, alive: Connection, settings: HostSettings, environment: Mapping[str, str]
) -> None:
    """Serve calls (method, arguments) until the pipe closes; each reply is ("ok", result) or ("error", line).

    An engine that is gone before its answer was written ends the host without a word, as one that is gone before.
    """
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()
    take_environment(environment)
    quiet_libraries()
    host = Host(settings)
    while True:
        try:
            method, arguments = connection.recv()
            connection.send(host.call(method, arguments))
        except (EOFError, OSError):  # of the pipe alone: an error of a call is an answer
            return


class Host:
    """One host's work, begun at the first call."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self.work: Any = None

    def call(self, method: str, arguments: Sequence[Any]) -> tuple[str, Any]:
        """Return ("ok", result) of one call, or ("error", line); of `SEVERAL` the results of all calls in it."""
        if method == SEVERAL:
            results = []
            for each in arguments:
                state, result = self.call(*each)
                if state != "ok":
                    return state, result
                results.append(result)
            return "ok", results
        try:
            if self.work is None:
                from simulation.work import HostWork  # torch is imported in the worker alone

                self.work = HostWork(self._settings)
            with self.work.lock:  # one model: an agent that trains for a relay has it to itself
                return "ok", getattr(self.work, method)(*arguments)
        except ConfideError as error:
            return "error", str(error)
        except Exception as error:  # noqa: BLE001 simulated people: the text of an error may be shown here
            return "error", f"{type(error).__name__}: {error}"


def _die_with_parent(alive: Connection) -> None:
    """Leave at once when the engine is gone, killed or not: nobody would take the answers, and locks must be free."""
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)


Call = tuple[str, tuple[Any, ...]]
Before = Callable[[str], Sequence[Call]]
SEVERAL = "several"  # calls that travel together
MOST_AT_ONCE = 64
SHORT_S, LONG_S = 0.1, 0.4
CLOSING_S = 5.0
MOST_RESTARTS = 3
ENDED = "a worker process ended; is there enough memory?"


def nothing(_user: str) -> Sequence[Call]:
    """Return no calls: a host that was started again lacks nothing for what comes."""
    return ()


class Hosts(Protocol):
    """Where the people of a simulation live: worker processes, or one process in a test."""

    def run(
        self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
    ) -> None:
        """Make each person's call; `done(user, result)` for every one, in any order. Raises ConfideError."""

    def life(self, user: str) -> int:
        """Return how often the person's host was started again: what it held in memory before is lost."""

    def listen(self, folder: Path) -> None:
        """Let every host answer relays on a socket in `folder`."""

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Make one call on every host and return the results in the hosts' order."""

    @property
    def sentinels(self) -> Sequence[int]:
        """Return what `multiprocessing.connection.wait` takes, for each host that nobody starts again by itself."""

    def __enter__(self) -> Hosts:
        """Return the hosts, ready for calls."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all hosts."""


class Pool(ABC):
    """Hosts that can die: who lives where, and calls made again on a host that was started again.

    Person i lives on host i modulo the number of hosts. A host that died is started again at most `MOST_RESTARTS` times
    and its people's calls are made again: what devices owe is on the disk. What their agents held in memory is brought
    back by `before`, see `run`. Calls that take a moment each travel together, so that a pipe is no part of their cost.
    """

    def __init__(self, settings: Sequence[HostSettings]) -> None:
        self._settings = tuple(settings)
        self._everybody = [one.everybody for one in settings]
        self.restarts = [0] * len(self._settings)
        self._at_once = [1] * len(self._settings)
        self._sent = [(0, 0.0)] * len(self._settings)  # how many calls each host has before it, and since when

    @abstractmethod
    def _send(self, w: int, call: Call) -> None:
        """Hand host `w` a call; raises OSError where it is gone."""

    @abstractmethod
    def _arrived(self, waiting: Collection[int]) -> list[int]:
        """Return which of the hosts that were sent a call have something to say, once one has."""

    @abstractmethod
    def _received(self, w: int) -> tuple[str, Any]:
        """Return what host `w` says, ("ok", result) or ("error", line); raises OSError or EOFError where it is gone."""

    @abstractmethod
    def _renew(self, w: int) -> None:
        """Start host `w` again in place of one that is gone."""

    @property
    def sentinels(self) -> Sequence[int]:
        """Return nothing to look at: hosts are started again without this process."""
        return ()

    def home(self, user: str) -> int:
        """Return the number of the host on which a person lives. Raises KeyError for somebody unknown."""
        for number, people in enumerate(self._everybody):
            if user in people:
                return number
        raise KeyError(user)

    def life(self, user: str) -> int:
        """Return how often the person's host was started again."""
        return self.restarts[self.home(user)]

    def run(
        self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
    ) -> None:
        """Make each person's call on that person's host, all hosts at once; `done(user, result)` as results arrive.

        Where a host had to be started again, `before(user)` are the calls that go before that person's, for what was
        lost with it. Raises ConfideError with the host's line; what the other hosts are doing is then abandoned.
        """
        queues = [deque[tuple[str, Call]]() for _ in self._settings]
        for user, call in calls:
            queues[self.home(user)].append((user, call))
        self._drain(queues, done, before)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """Make one call on every host and return the results in the hosts' order."""
        results: dict[str, Any] = {}
        queues = [deque([(str(w), (method, arguments))]) for w in range(len(self._settings))]
        self._drain(queues, results.__setitem__, nothing)
        return [results[str(w)] for w in range(len(self._settings))]

    def listen(self, folder: Path) -> None:
        """Let every host answer relays on a socket in `folder`."""
        self.everywhere("listen", str(folder))

    def _drain(self, queues: list[deque[tuple[str, Call]]], done: Callable[[str, Any], None], before: Before) -> None:
        waiting: set[int] = set()
        for w, queue in enumerate(queues):
            self._next(w, queue, waiting, before)
        while waiting:
            for w in self._arrived(waiting):
                waiting.remove(w)
                try:
                    state, result = self._received(w)
                except (EOFError, OSError):
                    self._again(w, queues[w], before)
                    self._next(w, queues[w], waiting, before)
                    continue
                if state != "ok":
                    raise ConfideError(result)
                number, since = self._sent[w]
                self._pace(w, time.monotonic() - since)
                users = [queues[w].popleft()[0] for _ in range(number)]
                self._next(w, queues[w], waiting, before)
                for user, one in zip(users, [result] if number == 1 else result, strict=True):
                    if user:
                        done(user, one)

    def _next(self, w: int, queue: deque[tuple[str, Call]], waiting: set[int], before: Before) -> None:
        """Send the first calls of the queue, which stay there until they are answered."""
        while queue:
            calls = [call for _, call in islice(queue, self._at_once[w])]
            self._sent[w] = len(calls), time.monotonic()
            try:
                self._send(w, calls[0] if len(calls) == 1 else (SEVERAL, tuple(calls)))
            except OSError:
                self._again(w, queue, before)
                continue
            waiting.add(w)
            return

    def _pace(self, w: int, seconds: float) -> None:
        """Let more calls travel together where they took a moment, fewer where a bar would stand still."""
        if seconds < SHORT_S:
            self._at_once[w] = min(MOST_AT_ONCE, 2 * self._at_once[w])
        elif seconds > LONG_S:
            self._at_once[w] = max(1, self._at_once[w] // 2)

    def _again(self, w: int, queue: deque[tuple[str, Call]], before: Before) -> None:
        """Start host `w` again, with what its people need before the calls that are left. Raises ConfideError."""
        self.restarts[w] += 1
        if self.restarts[w] > MOST_RESTARTS:
            raise ConfideError(ENDED)
        self._renew(w)
        left = [(user, call) for user, call in queue if user]
        queue.clear()
        for user, call in left:
            queue.extend(("", again) for again in before(user))
            queue.append((user, call))


class HostPool(Pool):
    """Worker processes on this machine, each at the other end of a pipe."""

    def __init__(self, settings: Sequence[HostSettings]) -> None:
        super().__init__(settings)
        started = [_started(one) for one in settings]
        self._pipes = [pipe for pipe, _, _ in started]
        self._alive = [watch for _, watch, _ in started]
        self._processes = [process for _, _, process in started]

    @property
    def sentinels(self) -> Sequence[int]:
        """Return the worker processes' sentinels: who dies between two calls is noticed by these alone."""
        return [process.sentinel for process in self._processes]

    def _send(self, w: int, call: Call) -> None:
        self._pipes[w].send(call)

    def _arrived(self, waiting: Collection[int]) -> list[int]:
        ready = wait([self._pipes[w] for w in sorted(waiting)])
        return [w for w in sorted(waiting) if self._pipes[w] in ready]

    def _received(self, w: int) -> tuple[str, Any]:
        state, result = self._pipes[w].recv()
        return state, result

    def _renew(self, w: int) -> None:
        for connection in (self._pipes[w], self._alive[w]):
            connection.close()
        self._processes[w].join(timeout=CLOSING_S)
        self._pipes[w], self._alive[w], self._processes[w] = _started(self._settings[w])

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


def _started(settings: HostSettings) -> tuple[Connection, Connection, Any]:
    """Return the pipe to a new host process, the one that it watches, and the process."""
    begun = context()
    ours, theirs = begun.Pipe()
    watch, watched = begun.Pipe()
    arguments = theirs, watched, settings, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    process: Any = begun.Process(target=host_main, args=arguments, daemon=True)  # type: ignore[attr-defined]
    with interrupts_held():
        process.start()
    theirs.close()
    watched.close()
    return ours, watch, process
