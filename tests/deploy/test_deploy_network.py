"""Devices with networks of their own: they reach the door and nothing else, and may be slow, or cut off in a round."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.events import events
from tests.federation_by_command import Federation, made_basis, until
from tests.namespaces import Network, network

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DEVICES = 4  # three shares are needed of four: one may be cut off
REACH = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


@pytest.fixture
def net() -> Iterator[Network]:
    with network(DEVICES) as made:
        yield made


@pytest.fixture
def federation(net: Network, tmp_path: Path, tiny_model_dir: Path) -> Iterator[Federation]:
    basis = made_basis(tmp_path, tiny_model_dir)
    made = Federation(tmp_path, tiny_model_dir, basis, DEVICES, net, rounds=2)
    try:
        made.start()
        for number in range(1, DEVICES + 1):
            joined = made.enrol(number)
            made.take_part(number)
            made.admit(number, joined)
        yield made
    finally:
        assert made.commands.end() == []


def reaches(net: Network, number: int, host: str, port: int) -> bool:
    command = [*net.inside(number), sys.executable, "-c", REACH, host, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_devices_reach_the_door_alone_and_one_is_cut_off_in_a_round(federation: Federation, net: Network) -> None:
    door, control, observe = federation.ports
    assert reaches(net, 1, net.server, door)
    assert not any(reaches(net, 1, host, port) for host in (net.server, "127.0.0.1") for port in (control, observe))

    run = federation.commands.background("run", "server", "run", federation.server)
    until(lambda: federation.came_to(federation.home(3), 0, "advertised") or run.poll() is not None, "a stage")
    net.cut(3, on=True)
    until(lambda: federation.sums(0) or run.poll() is not None, "the sum without the device that was cut off")
    net.cut(3, on=False)
    until(lambda: run.poll() is not None, "the campaign is over")
    assert run.returncode == 0, (federation.commands.folder / "run.err").read_text()
    answers = [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"]
    assert len(answers) == 2 and answers[0] in (3, 4)
    federation.check_books()


def test_a_slow_and_lossy_network_is_waited_for(federation: Federation, net: Network) -> None:
    net.slow(2, kbit=256)
    federation.commands.confide("server", "run", federation.server)
    assert [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"] == [4, 4]
    assert net.dropped(2) > 0, "the network lost packets, or it was no test"
    federation.check_books()
