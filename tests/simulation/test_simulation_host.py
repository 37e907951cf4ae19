"""Worker processes: one that dies is started again, and none is left when the pool closes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import simulation.host
from client.documents import Person
from privacy.errors import ConfideError
from simulation.config import RunConfig
from simulation.devices import most_open
from simulation.host import SEVERAL, Call, Host, HostPool, HostSettings, Pool, host_main
from simulation.workers import take_environment

PATIENCE_S = 30.0
IMPORTS_S = 180.0  # a worker that imports for itself, on a machine that may be busy


def settings(*users: str) -> HostSettings:
    """Return settings of a host that is never asked to load its model."""
    people = tuple(Person(user, ()) for user in users)
    return HostSettings(RunConfig(), "nowhere", "nowhere", people, b"", b"", b"", bytes(32), "nowhere")


@contextmanager
def mock_environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    take_environment(variables)
    try:
        yield
    finally:
        take_environment(before)


def alive(process: Any) -> bool:
    return bool(process.is_alive())


def kill(pool: HostPool, w: int) -> None:
    os.kill(pool._processes[w].pid or 0, signal.SIGKILL)
    pool._processes[w].join(PATIENCE_S)


@pytest.mark.slow
@pytest.mark.parametrize("ask", [lambda p: p.run([("u1", ("probe", ("u1",)))], print), lambda p: p.everywhere("probe")])
def test_a_worker_that_died_is_started_again_and_asked_again(ask: Callable[[HostPool], Any]) -> None:
    """What it answers shows that it is there: it has no model to load."""
    with HostPool([settings("u1")]) as pool:
        kill(pool, 0)
        with pytest.raises(ConfideError, match="cannot load a causal language model from nowhere"):
            ask(pool)
        assert pool.restarts == [1] and alive(pool._processes[0])


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_no_worker_outlives_the_pool(error: type[BaseException] | None) -> None:
    """Closed in order, or at once on an error: either way within seconds, idle workers and those still starting."""
    started = 0.0
    processes: list[Any] = []
    try:
        with HostPool([settings("u1"), settings("u2")]) as pool:
            started = time.monotonic()  # what workers are forked from has imported by now
            processes += pool._processes
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert processes
    assert not any(map(alive, processes))
    assert time.monotonic() - started < PATIENCE_S


class Echo:
    """A host's work that tells what it was asked, and lasts as long as it is told."""

    lock = threading.RLock()

    def said(self, user: str, seconds: float = 0.0) -> str:
        time.sleep(seconds)
        if user == "u13":
            raise ConfideError("u13 is not here")
        return user.upper()


class EchoPool(Pool):
    """A pool whose one host is in this process; `sent` holds how many calls travelled together."""

    def __init__(self, people: int) -> None:
        super().__init__([settings(*(f"u{i}" for i in range(people)))])
        self.host, self.sent = Host(self._settings[0]), list[int]()
        self.host.work = Echo()

    def _send(self, w: int, call: Call) -> None:
        self.sent.append(len(call[1]) if call[0] == SEVERAL else 1)
        self._reply = self.host.call(*call)

    def _arrived(self, waiting: Collection[int]) -> list[int]:
        return list(waiting)

    def _received(self, w: int) -> tuple[str, Any]:
        if sum(self.sent) > 60 and not any(self.restarts):
            raise EOFError  # the host died while some calls were before it
        return self._reply

    def _renew(self, w: int) -> None:
        self.sent.append(0)


def asked(pool: EchoPool, people: Sequence[int], seconds: float = 0.0) -> dict[str, str]:
    heard: dict[str, str] = {}
    pool.run([(f"u{i}", ("said", (f"u{i}", seconds))) for i in people], heard.__setitem__)
    return heard


def test_calls_that_take_a_moment_travel_together_and_all_are_made_again_where_a_host_died() -> None:
    pool = EchoPool(100)
    some = [i for i in range(100) if i != 13]
    assert asked(pool, some) == {f"u{i}": f"U{i}" for i in some}
    assert pool.sent == [1, 2, 4, 8, 16, 32, 0, 32, 36] and pool.restarts == [1]
    with pytest.raises(ConfideError, match="u13 is not here"):
        asked(pool, [12, 13, 14])


def test_calls_that_take_long_travel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.host, "LONG_S", 0.02)
    monkeypatch.setattr(simulation.host, "SHORT_S", 0.001)
    pool = EchoPool(8)
    pool._at_once = [4]
    asked(pool, range(8), 0.02)
    assert pool.sent == [4, 2, 1, 1]


def test_a_worker_has_the_environment_of_whoever_asked_for_it() -> None:
    with mock_environment({"HOME": "here", "CONFIDE_CACHE": "there"}):
        take_environment({"CONFIDE_CACHE": "elsewhere"})
        assert dict(os.environ) == {"CONFIDE_CACHE": "elsewhere"}


def test_as_many_devices_stay_open_as_a_round_asks_within_what_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, asked_for, most in ((20_000, 500, 500), (1024, 700, 512), (64, 500, 256), (-1, 10**6, 2048)):
        monkeypatch.setattr("resource.getrlimit", lambda _, files=files: (files, files))
        assert most_open(asked_for) == most


def test_people_live_on_the_host_that_their_settings_name() -> None:
    with HostPool([settings("u1"), settings("u2")]) as pool:
        assert [pool.home(user) for user in ("u1", "u2")] == [0, 1]


def test_an_answer_that_nobody_waits_for_ends_the_worker_in_order() -> None:
    """The engine may be gone between a call and its answer: no trace, it ends as one that was closed."""
    context = multiprocessing.get_context("spawn")
    (ours, theirs), (_watch, watched) = context.Pipe(), context.Pipe()
    ours.send(("probe", ("u1",)))
    ours.close()
    process = context.Process(target=host_main, args=(theirs, watched, settings("u1"), dict(os.environ)), daemon=True)
    process.start()
    theirs.close()
    process.join(IMPORTS_S)
    assert process.exitcode == 0
