"""The only door for devices: TLS, and of the SuperLink behind it the fleet's calls alone.

Flower's SuperLink serves three interfaces on one port, and whoever reaches the second can register nodes and start
runs: the open edition knows no accounts. So the SuperLink listens on loopback, and this passes on exactly the calls
that a SuperNode makes once it is registered. Everything else is answered 404 here, and never reaches it.

What the SuperLink answers 500, for a database that was locked at that moment, is answered 503: a SuperNode asks again
then. At 500 its heartbeat would end for good, and it would count as gone until somebody starts it anew.

SuperNodes prove who they are to the SuperLink by a signature in each call's headers, which pass through as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, MutableMapping
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

# All fleet calls but register-node and unregister-node: nodes are registered by the operator. A test compares the list
# with the pinned Flower's.
FLEET_CALLS: Final = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
MAX_BODY_BYTES: Final = 192 * 2**20  # above the largest masked vector
CALL_S: Final = 60.0
HOP_BY_HOP: Final = frozenset(
    [b"connection", b"host", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authorization"]
)
Scope = MutableMapping[str, Any]


class Gateway:
    """An ASGI application in front of the SuperLink at `upstream`, whose certificate `authority` vouches for."""

    def __init__(self, upstream: str, authority: Path) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(
            base_url=upstream, verify=context, timeout=CALL_S, limits=limits, trust_env=False
        )
        self.passed = self.refused = 0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, self._client)
        elif scope["type"] == "http" and (scope["method"], scope["path"]) in (("GET", "/health"), ("HEAD", "/health")):
            await _answer(send, 200)
        elif scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in FLEET_CALLS:
            self.passed += 1
            await self._pass_on(scope, receive, send)
        elif scope["type"] == "http":
            self.refused += 1
            await _answer(send, 404)

    async def _pass_on(self, scope: Scope, receive: Any, send: Any) -> None:
        if _declared(scope["headers"]) > MAX_BODY_BYTES:
            await _answer(send, 413)
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
        started = False
        try:
            request = self._client.build_request("POST", scope["path"], headers=headers, content=_body(receive))
            response = await self._client.send(request, stream=True)
            try:
                kept = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in HOP_BY_HOP]
                status = 503 if response.status_code == 500 else response.status_code
                await send({"type": "http.response.start", "status": status, "headers": kept})
                started = True
                async for part in response.aiter_raw():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await response.aclose()
        except TooLarge:
            await _answer(send, 413)
        except httpx.HTTPError:
            if started:
                raise
            await _answer(send, 502)  # the SuperLink is starting again; SuperNodes try again


class TooLarge(Exception):
    """A body beyond `MAX_BODY_BYTES`."""


def server(app: Any, host: str, port: int, tls: Path | None = None) -> uvicorn.Server:
    """Return a server of `app`, with the certificate in `tls` where one is given; it logs no requests."""
    more: dict[str, Any] = {}
    if tls is not None:
        more = {"ssl_certfile": str(tls / "server.crt"), "ssl_keyfile": str(tls / "server.key")}
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        **more,
    )
    return uvicorn.Server(config)


async def _body(receive: Any) -> AsyncIterator[bytes]:
    read = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the device has gone")
        part = message.get("body", b"")
        read += len(part)
        if read > MAX_BODY_BYTES:
            raise TooLarge
        if part:
            yield part
        if not message.get("more_body"):
            return


def _declared(headers: Iterable[tuple[bytes, bytes]]) -> int:
    found = dict(headers).get(b"content-length", b"0")
    return int(found) if found.isdigit() else 0


async def _answer(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Any, send: Any, client: httpx.AsyncClient) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            with contextlib.suppress(Exception):
                await asyncio.wait_for(client.aclose(), 5.0)
            await send({"type": "lifespan.shutdown.complete"})
            return
