"""Network namespaces: each device with a network of its own, on one bridge with the server. Needs root and `ip`."""

from __future__ import annotations

import os
import re
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

    def address(self, number: int) -> str:
        return f"{self._subnet}.{number + 1}"

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

    def slow(self, number: int, kbit: int) -> None:
        """Let a device's link carry `kbit` a second each way, through queues of half a second that drop what is over.

        A token bucket, which every kernel has; `netem`, which many lack, could delay and lose at will.
        """
        queue = ["root", "tbf", "rate", f"{kbit}kbit", "burst", "1600", "limit", str(max(4000, kbit * 1000 // 16))]
        inside = ["tc", "-n", self.namespace(number), "qdisc", "add", "dev", f"ci{self._mark}{number}"]
        for begin in (inside, ["tc", "qdisc", "add", "dev", f"co{self._mark}{number}"]):
            done = subprocess.run([*begin, *queue], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no token bucket here: {done.stderr.strip()}")

    def dropped(self, number: int) -> int:
        """Return how many packets the queues of a slow device have dropped, both ways."""
        inside = ["tc", "-s", "-n", self.namespace(number), "qdisc", "show", "dev", f"ci{self._mark}{number}"]
        outside = ["tc", "-s", "qdisc", "show", "dev", f"co{self._mark}{number}"]
        told = "".join(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in (inside, outside))
        return sum(map(int, re.findall(r"dropped (\d+)", told)))

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
