"""Worker processes: one that dies is started again, and none is left when the pool closes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from client.documents import Person
from privacy.errors import ConfideError
from simulation.config import RunConfig
from simulation.host import HostPool, HostSettings, host_main

PATIENCE_S = 30.0


def settings(user: str) -> HostSettings:
    """Return settings of a host that is never asked to load its model."""
    return HostSettings(RunConfig(), "nowhere", "nowhere", (Person(user, ()),), b"", b"", b"", bytes(32), "nowhere")


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
    started = time.monotonic()
    processes: list[Any] = []
    try:
        with HostPool([settings("u1"), settings("u2")]) as pool:
            processes += pool._processes
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert processes
    assert not any(map(alive, processes))
    assert time.monotonic() - started < PATIENCE_S


def test_people_live_on_the_host_that_their_settings_name() -> None:
    with HostPool([settings("u1"), settings("u2")]) as pool:
        assert [pool.home(user) for user in ("u1", "u2")] == [0, 1]


def test_an_answer_that_nobody_waits_for_ends_the_worker_in_order() -> None:
    """The engine may be gone between a call and its answer: no trace, it ends as one that was closed."""
    context = multiprocessing.get_context("spawn")
    (ours, theirs), (_watch, watched) = context.Pipe(), context.Pipe()
    ours.send(("probe", ("u1",)))
    ours.close()
    process = context.Process(target=host_main, args=(theirs, watched, settings("u1")), daemon=True)
    process.start()
    theirs.close()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
