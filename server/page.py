"""The operator's page and metrics on loopback: read only, no script, nothing from elsewhere.

    /   the page        /metrics   Prometheus        /overview.json   the same facts        /overview.css   its looks

Only GET, only under our own names: a foreign name that resolves to loopback and a request that another page makes are
refused. There is no token: what is shown are counts that any user of this machine may see, and nothing can be changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import jinja2
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import exposition

HERE: Final = Path(__file__).parent
POLICY: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
AGAIN_S: Final = 10  # the page loads itself anew


class Page:
    """What answers on the observe port. `look` returns the overview, `calls` the door's counts, `port` is its own."""

    def __init__(
        self, look: Callable[[], Mapping[str, Any]], calls: Callable[[], Mapping[str, int]], port: int
    ) -> None:
        self._look, self._calls = look, calls
        routes = [
            Route("/", self._page),
            Route("/metrics", self._metrics),
            Route("/overview.json", self._facts),
            Route("/overview.css", self._css),
        ]
        self.app: ASGIApp = Guard(Starlette(routes=routes), port)

    def _page(self, _: Request) -> Response:
        return HTMLResponse(self._template.render(**view(self._look(), self._calls()), again_s=AGAIN_S))

    def _metrics(self, _: Request) -> Response:
        return Response(exposition(self._look, self._calls), media_type="text/plain; version=1.0.0; charset=utf-8")

    def _facts(self, _: Request) -> Response:
        return Response(json.dumps(self._look()), media_type="application/json")

    def _css(self, _: Request) -> Response:
        return Response((HERE / "static" / "overview.css").read_bytes(), media_type="text/css")

    @cached_property
    def _template(self) -> jinja2.Template:
        loader = jinja2.FileSystemLoader(HERE / "templates")
        environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        return environment.get_template("overview.html.j2")


class Guard:
    """Middleware: refuses by Host, Origin and method, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

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
        await (refusal or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if headers.get("host", "") not in self._hosts:
            return PlainTextResponse("this address is not ours", 421)
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return PlainTextResponse("another page may not ask here", 403)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("nothing can be changed here", 405)
        return None


def view(facts: Mapping[str, Any], calls: Mapping[str, int]) -> dict[str, Any]:
    """Return what the page shows: the facts, the rounds with bars in percent of the invited, and the last event."""
    going = facts["campaign"]
    invited = facts["cohort"]["invited"]
    bars = [
        dict(each) | {"width": round(100 * (each["survivors"] or 0) / invited), "when": when(each["ts"])}
        for each in (going["sums"] if going else [])
    ]
    last = happened(going["last"]) if going and going["last"]["event"] else ""
    return {"facts": facts, "calls": calls, "bars": bars, "last": last, "warnings": warnings(facts)}


def when(ts: str | None) -> str:
    """Return an event's time to the second, for people; what is no time stays as it is."""
    try:
        return f"{datetime.fromisoformat(str(ts)).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return str(ts)


def happened(event: Mapping[str, Any]) -> str:
    """Return the last event of a campaign in words, with its time."""
    place = "" if event.get("round") is None else f" of round {event['round']}"
    stage = event.get("stage")
    words = {
        "begun": "the campaign began",
        "stage": f"stage {stage}{place} was asked",
        "answered": f"stage {stage}{place} was answered",
        "vectors": f"the masked answers{place} are in",
        "lost": f"an attempt{place} was lost",
        "sum": f"the sum{place} is there",
        "released": "its release is there",
        "failed": "the run failed",
    }
    return f"{words.get(event['event'], event['event'])}, {when(event.get('ts'))}"


def warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return what an operator should look at, in the words of docs/operations.md."""
    going, spent, cohort = facts["campaign"], facts["budget"] or {}, facts["cohort"]
    found = []
    if not cohort["met"]:
        found.append(f"Below the floor: {facts['devices']} devices, a round invites {cohort['invited']}.")
    if facts["certificate_days"] < 30:
        found.append(f"The server's certificate ends in {facts['certificate_days']} days.")
    if going and going["last"]["event"] == "failed":
        found.append(f"The last run failed: {going['last']['reason']}")
    if "error" in spent:
        found.append(f"The federation's ledger cannot be read: {spent['error']}")
    elif spent.get("share", 0) > 0.8:
        found.append(f"{spent['share']:.0%} of the lifetime budget is spent.")
    return found
