"""Network namespaces: each device with a network of its own, on one bridge with the server. Needs root and `ip`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """A bridge of this machine with one namespace a device: the server at .1, device n at .n+1."""

    def __init__(self, devices: int) -> None:
        self._mark, self._subnet = secrets.token_hex(3), f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
        self.bridge, self.server = f"cf{self._mark}", f"{self._subnet}.1"
        self.devices = devices

    def namespace(self, number: int) -> str:
        return f"cf{self._mark}-{number}"

    def up(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.server}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for number in range(1, self.devices + 1):
            name, outside, inside = self.namespace(number), f"co{self._mark}{number}", f"ci{self._mark}{number}"
            ip("netns", "add", name)
            ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            ip("link", "set", inside, "netns", name)
            ip("link", "set", outside, "master", self.bridge, "up")
            ip("-n", name, "addr", "add", f"{self._subnet}.{number + 1}/24", "dev", inside)
            ip("-n", name, "link", "set", inside, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def cut(self, number: int, on: bool) -> None:
        """Take a device off the network, or put it back."""
        ip("link", "set", f"co{self._mark}{number}", "down" if on else "up")

    def slow(self, number: int, delay_ms: int, loss_percent: int) -> None:
        """Delay what a device sends, and lose some of it."""
        tc = ["tc", "-n", self.namespace(number), "qdisc", "add", "dev", f"ci{self._mark}{number}", "root", "netem"]
        done = subprocess.run(
            [*tc, "delay", f"{delay_ms}ms", "loss", f"{loss_percent}%"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no netem here: {done.stderr.strip()}")

    def inside(self, number: int) -> list[str]:
        """Return what stands before a command that runs in a device's namespace."""
        return ["ip", "netns", "exec", self.namespace(number)]

    def down(self) -> None:
        for number in range(1, self.devices + 1):
            subprocess.run(["ip", "netns", "del", self.namespace(number)], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", f"co{self._mark}{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True, check=False)


@contextmanager
def network(devices: int) -> Iterator[Network]:
    """Yield a network; skips where this user may make none."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and ip")
    made = Network(devices)
    try:
        made.up()
    except OSError as error:
        made.down()
        pytest.skip(f"no network namespaces here: {error}")
    try:
        yield made
    finally:
        made.down()
