"""`confide server start`: SuperLink and operator's page on loopback, the door for devices; until SIGTERM or Ctrl-C.

A SuperLink that ends is started again; a certificate that was renewed takes effect with the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from privacy.errors import ConfideError, ConfigError
from server.certificates import days_left
from server.folder import OperatorFolder
from server.gateway import Gateway, server
from server.overview import overview
from server.page import Page
from server.superlink import SuperLink, listens, stop

FRESH_S = 2.0
AGAIN_S = (1.0, 30.0)  # before a SuperLink that ended is started again: the first pause, and the longest


def serve(operator: OperatorFolder, ready: Callable[[], None]) -> None:
    """Run everything over the operator's folder; `ready` is called once devices can connect. Raises ConfideError."""
    settings = operator.settings
    with operator.alone("serve"):
        if days_left(operator.folder / "tls" / "server.crt") < 0:
            raise ConfigError("the server's certificate has ended: `confide server rotate --certificates`")
        link = SuperLink(operator)
        link.end_left_over()
        ports = {"control": settings.control, "observe": settings.observe, "address": settings.port}
        for what, port in ports.items():
            if listens(port):
                raise ConfigError(f"another program listens on port {port} ({what}): choose one that is free")
        ended, process = threading.Event(), link.start()
        try:
            link.wait_until_ready(process)
            link.register_all()
            asyncio.run(_doors(operator, link, process, ready, ended))
        finally:
            ended.set()
            link.end_left_over()


async def _doors(
    operator: OperatorFolder,
    link: SuperLink,
    process: subprocess.Popen[bytes],
    ready: Callable[[], None],
    ended: threading.Event,
) -> None:
    folder, settings = operator.folder, operator.settings
    gateway = Gateway(f"https://{link.address}", folder / "tls" / "ca.crt")
    page = Page(
        Looked(operator).facts, lambda: {"passed": gateway.passed, "refused": gateway.refused}, settings.observe
    )
    doors = [
        _calm(server(gateway, settings.listen, settings.port, folder / "tls")),
        _calm(server(page.app, "127.0.0.1", settings.observe)),
    ]
    loop = asyncio.get_running_loop()

    def end() -> None:
        ended.set()
        for door in doors:
            door.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    watch = threading.Thread(target=_keep_up, args=(link, process, ended), daemon=True, name="superlink")
    watch.start()
    tasks = [asyncio.create_task(door.serve()) for door in doors]
    while not all(door.started for door in doors) and not any(task.done() for task in tasks):
        await asyncio.sleep(0.05)
    if all(door.started for door in doors):
        ready()
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stopped = ended.is_set()
    end()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not stopped:
        raise ConfideError("a port could not be listened on: is the address this machine's?")


class Looked:
    """The overview, read anew at most every two seconds: a page that many look at costs no more than one."""

    def __init__(self, operator: OperatorFolder) -> None:
        self._operator, self._lock = operator, threading.Lock()
        self._seen: tuple[float, dict[str, Any]] | None = None

    def facts(self) -> dict[str, Any]:
        """Return `overview`, of now or of a moment ago."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > FRESH_S:
                self._seen = time.monotonic(), overview(self._operator)
            return self._seen[1]


def _keep_up(link: SuperLink, process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    """Start the SuperLink again whenever it ends."""
    pause = AGAIN_S[0]
    while not ended.is_set():
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            pause = AGAIN_S[0]
            continue
        stop(process.pid, 1.0)  # what it left of its session
        if ended.wait(pause):
            return
        pause = min(2 * pause, AGAIN_S[1])
        process = link.start()


def _calm(door: uvicorn.Server) -> uvicorn.Server:
    """Return the server without signal handlers of its own: one handler ends all doors."""

    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield

    door.capture_signals = nothing  # type: ignore[method-assign]
    return door
