"""An ASGI application on a real port of loopback, in a thread, for as long as a test looks at it."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from server.gateway import server


@contextmanager
def served(app: Any, port: int, tls: Path | None = None) -> Iterator[uvicorn.Server]:
    door = server(app, "127.0.0.1", port, tls)
    door.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=door.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60.0
    while not door.started:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.01)
    try:
        yield door
    finally:
        door.should_exit = True
        thread.join(30.0)


def asked(
    port: int, method: str, path: str, body: bytes | None = None, authority: Path | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request."""
    if authority is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    else:
        context = ssl.create_default_context(cafile=str(authority))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found
