"""The door for devices: what a SuperNode needs passes unchanged over TLS, and nothing else reaches the SuperLink."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.superlink.routers.control.router import router as control_router
from flwr.superlink.routers.fleet.router import router as fleet_router

from deploy.local.federation import free_ports
from server.certificates import new_authority, new_server_certificate
from server.gateway import FLEET_CALLS, MAX_BODY_BYTES, Gateway
from tests.served_by_hand import asked, served

NOT_FOR_DEVICES = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


class Upstream:
    """Stands where the SuperLink stands, and remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.status = 201

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append((scope["method"], scope["path"], headers, body))
        more = [(b"content-type", b"application/x-protobuf"), (b"x-of-the-superlink", b"yes")]
        await send({"type": "http.response.start", "status": self.status, "headers": more})
        await send({"type": "http.response.body", "body": b"answer " + body[:32]})


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    new_authority(folder / "ca.key", folder / "ca.crt", "trial")
    new_server_certificate(folder, folder / "ca.key", folder / "ca.crt", ["127.0.0.1"])
    return folder


@pytest.fixture(scope="module")
def doors(tls: Path) -> Iterator[tuple[int, Upstream]]:
    upstream, (behind, port) = Upstream(), free_ports(2)
    with (
        served(upstream, behind, tls),
        served(Gateway(f"https://127.0.0.1:{behind}", tls / "ca.crt"), port, tls),
    ):
        yield port, upstream


def test_the_calls_are_those_of_the_pinned_flower_without_registration() -> None:
    paths = {route.path for route in fleet_router.routes}  # type: ignore[attr-defined]
    assert paths == FLEET_CALLS | NOT_FOR_DEVICES
    assert not FLEET_CALLS & {route.path for route in control_router.routes}  # type: ignore[attr-defined]


def test_a_fleet_call_passes_with_its_headers_and_its_bytes(doors: tuple[int, Upstream], tls: Path) -> None:
    port, upstream = doors
    for body in (b"", b"frame", bytes(range(256)) * 40_000):
        signature = {"flwr_signature": "abc", "content_type": "application/x-protobuf"}
        status, headers, data = asked(port, "POST", "/v1/fleet/push-object", body, tls / "ca.crt", **signature)
        assert (status, data) == (201, b"answer " + body[:32])
        assert headers["x-of-the-superlink"] == "yes"
        method, path, received, whole = upstream.seen[-1]
        assert (method, path, whole) == ("POST", "/v1/fleet/push-object", body)
        assert received["flwr-signature"] == "abc" and received["content-type"] == "application/x-protobuf"


def test_what_ends_a_supernodes_heartbeat_for_good_does_not_reach_it(doors: tuple[int, Upstream], tls: Path) -> None:
    port, upstream = doors
    try:
        for behind, here in ((500, 503), (503, 503), (401, 401), (404, 404), (201, 201)):
            upstream.status = behind
            assert asked(port, "POST", "/v1/fleet/send-node-heartbeat", b"x", tls / "ca.crt")[0] == here
    finally:
        upstream.status = 201


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/runtime/pull-task-input"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/push-object/"),
        ("POST", "//v1/control/start-run"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
    ],
)
def test_nothing_else_reaches_the_superlink(doors: tuple[int, Upstream], tls: Path, method: str, path: str) -> None:
    port, upstream = doors
    before = len(upstream.seen)
    assert asked(port, method, path, b"x", tls / "ca.crt")[0] == 404
    assert len(upstream.seen) == before


def test_a_query_in_the_address_is_dropped(doors: tuple[int, Upstream], tls: Path) -> None:
    port, upstream = doors
    assert asked(port, "POST", "/v1/fleet/get-run?x=/v1/control", b"x", tls / "ca.crt")[0] == 201
    assert upstream.seen[-1][1] == "/v1/fleet/get-run"


def test_health_is_answered_at_the_door(doors: tuple[int, Upstream], tls: Path) -> None:
    port, upstream = doors
    before = len(upstream.seen)
    assert asked(port, "GET", "/health", None, tls / "ca.crt")[0] == 200
    assert len(upstream.seen) == before


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(doors: tuple[int, Upstream], tls: Path) -> None:
    port, upstream = doors
    before = len(upstream.seen)
    status, _, _ = asked(
        port, "POST", "/v1/fleet/push-object", b"x", tls / "ca.crt", content_length=str(MAX_BODY_BYTES + 1)
    )
    assert status == 413 and len(upstream.seen) == before


def test_while_the_superlink_is_away_the_door_says_so(tls: Path) -> None:
    behind, port = free_ports(2)
    with served(Gateway(f"https://127.0.0.1:{behind}", tls / "ca.crt"), port, tls):
        assert asked(port, "POST", "/v1/fleet/get-run", b"x", tls / "ca.crt")[0] == 502


def test_a_certificate_of_another_authority_is_refused_by_a_device(doors: tuple[int, Upstream], tmp_path: Path) -> None:
    new_authority(tmp_path / "ca.key", tmp_path / "ca.crt", "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        asked(doors[0], "POST", "/v1/fleet/get-run", b"x", tmp_path / "ca.crt")
