"""The devices of a host's people, each opened when it is asked and closed when others were asked since.

An open device holds a file descriptor, a lock and its ledger in memory; a closed one is its files and nothing else. So
what a host holds depends on how many devices are asked at once, not on how many there are.
"""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from client.agent import Device

MOST_OPEN = 256
MOST_OF_A_ROUND = 2048


def most_open(asked: int) -> int:
    """Return how many devices stay open where a round asks at most `asked` of a host's: all, within bounds.

    A round asks each of them four times; one that was closed in between is read and verified again each time. Half of
    the files that this process may open are left for others.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = MOST_OF_A_ROUND if files == resource.RLIM_INFINITY else min(MOST_OF_A_ROUND, files // 2)
    return max(MOST_OPEN, min(asked, room))


class Devices(Mapping[str, Device]):
    """At most `most` devices of `names` open at a time; `opened` makes one from its files. None: all may stay open.

    Whoever goes on with a device after another one was asked looks it up again: it may have been closed.
    """

    def __init__(self, names: Sequence[str], opened: Callable[[str], Device], most: int | None = MOST_OPEN) -> None:
        self.names, self.most = names, most
        self._opened, self._open = opened, OrderedDict[str, Device]()
        self._lock = threading.RLock()

    def __getitem__(self, user: str) -> Device:
        with self._lock:
            if user in self._open:
                self._open.move_to_end(user)
            else:
                if user not in self.names:
                    raise KeyError(user)
                while self.most is not None and len(self._open) >= self.most:
                    self._open.popitem(last=False)[1].ledger.close()
                self._open[user] = self._opened(user)
            return self._open[user]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, user: object) -> bool:
        return user in self.names

    def close(self) -> None:
        """Close every device that is open."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].ledger.close()

    def begun(self, folder: Path) -> list[str]:
        """Return the names of those of this host that have a ledger in `folder`: who was asked, now or before."""
        return sorted(path.stem for path in folder.glob("*.jsonl") if path.stem in self.names)


class Places(Sequence[Device]):
    """Devices by their place in a host, as a relay asks for them."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices

    def __getitem__(self, place: int) -> Device:  # type: ignore[override]
        return self._devices[self._devices.names[place]]

    def __len__(self) -> int:
        return len(self._devices)
