"""What stands before every request: only this machine's own page and programs get through, and little can be loaded.

    Host      one of our own names          a foreign name that resolves to loopback (DNS rebinding) is refused
    Origin    ours, or none at all          another page in the same browser is refused
    token     in the Authorization header   a page of another site cannot set it, another port's server never gets it

A cookie would not do: cookies know hosts and no ports, so every other server on loopback would be sent it.
"""

from __future__ import annotations

import time
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.face.tokens import Tokens

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=()",
    "Cache-Control": "no-store",
}
MAX_BODY_BYTES: Final = 2**20
_OPEN_PATHS: Final = ("/", "/words.json")  # the empty page; what fills it needs a token
_STATIC: Final = "/static/"


class TooLong(Exception):
    """A body beyond `MAX_BODY_BYTES`."""


class Guard:
    """Middleware: refuses by Host, Origin, size and token, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, tokens: Tokens, port: int) -> None:
        self._app, self._tokens = app, tokens
        self.running, self.last_s = 0, time.monotonic()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, with_headers)
            return
        self.running += 1
        try:
            await self._pass_on(scope, receive, with_headers)
        finally:
            self.running, self.last_s = self.running - 1, time.monotonic()

    def idle_s(self) -> float:
        """Return for how long nobody has asked anything that was let through."""
        return 0.0 if self.running else time.monotonic() - self.last_s

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise TooLong
            return message

        await self._app(scope, bounded, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._hosts:
            return fault(421, "this address is not ours")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if (origin is not None and origin not in self._origins) or site not in ("none", "same-origin"):
            return fault(403, "another page may not ask here")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return fault(413, f"at most {MAX_BODY_BYTES} bytes")
        path = scope["path"]
        if path in _OPEN_PATHS or path.startswith(_STATIC):
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        scopes = self._tokens.scopes(token.strip()) if kind.lower() == "bearer" else frozenset()
        if not scopes:
            return fault(401, "no valid token")
        scope["scopes"] = scopes
        return None


def may(request: Request, scope: str) -> bool:
    """Return whether the token of a request is for a scope."""
    return scope in request.scope.get("scopes", ())


def fault(status: int, message: str, **more: Any) -> JSONResponse:
    """Return an error in the form that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None, **more}}
    return JSONResponse(body, status)
