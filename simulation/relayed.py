"""What a host was sent over relays and needs again where it dies inside a round: kept on the disk, one folder a host.

    delivery-<k>    the newest deliveries, each frame once, in the order in which they came
    training        the newest word to train;  places: who accepted it, u32 each

A frame is kept before its answer leaves the host, so what nobody was told may be lost: whoever waits asks again. The
questions of a sum are not kept: an answer that was made lies with its device, and the keys of a sum under masks are
nowhere but in memory, so a device whose host dies in the middle of one drops out, as a real one does.
"""

from __future__ import annotations

import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from privacy.canonical import sha256_hex
from privacy.files import write_atomic
from privacy.session import Accepted, Received
from privacy.wire import decode

KEPT_DELIVERIES: Final = 8  # a lost attempt may start from what an earlier one was given: `client.deliveries` keeps 4
RECEIPT_BYTES: Final = 512  # no receipt is longer; a masked vector is not read for nothing

Reply = Callable[[int, int, bytes], bytes]


def remembered(reply: Reply, folder: Path, again: bool = False) -> Reply:
    """Return `reply` with a memory in `folder`: a new one, or `again` that of a host that died, told to `reply`."""
    kept = Remembered(reply, folder)
    if again:
        kept.resume()
    else:
        kept.begin()
    return kept.reply


class Remembered:
    """Answers relays with `reply`, and notes in `folder` what a host that is started again must be told again."""

    def __init__(self, reply: Reply, folder: Path) -> None:
        self._reply, self._folder = reply, folder
        self._deliveries: dict[str, Path] = {}  # hash of the frame -> its file, the oldest first
        self._number, self._training, self._places = 0, "", set[int]()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Forget what an earlier run left."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)

    def resume(self) -> int:
        """Tell the agents what those of the host that died knew; return how many people have to train again."""
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(self._folder.glob("delivery-*"), key=lambda path: int(path.name.partition("-")[2]))
        places = (self._folder / "places").read_bytes() if (self._folder / "places").exists() else b""
        training = (self._folder / "training").read_bytes() if places else b""
        for path in kept:
            data = path.read_bytes()
            self._reply(0, 0, data)
            self._deliveries[sha256_hex(data)] = path
            self._number = int(path.name.partition("-")[2]) + 1
        whole = len(places) // 4 * 4  # a number that was cut off was answered to nobody
        accepted = dict.fromkeys(place for (place,) in struct.iter_unpack("<I", places[:whole]))
        for place in accepted:
            self._reply(place, 0, training)
        self._training, self._places = sha256_hex(training), set(accepted)
        return len(accepted)

    def reply(self, place: int, node_id: int, data: bytes) -> bytes:
        """Return the agent's answer to a frame, which is noted before if the agent took it."""
        answer = self._reply(place, node_id, data)
        if 0 < len(answer) <= RECEIPT_BYTES:
            message = decode(answer)
            if isinstance(message, Received):
                self._delivered(data)
            elif isinstance(message, Accepted):
                self._accepted(place, data)
        return answer

    def _delivered(self, data: bytes) -> None:
        digest = sha256_hex(data)
        with self._lock:
            if digest in self._deliveries:
                return
            path = self._folder / f"delivery-{self._number}"
            write_atomic(path, data)
            self._deliveries[digest], self._number = path, self._number + 1
            while len(self._deliveries) > KEPT_DELIVERIES:
                self._deliveries.pop(next(iter(self._deliveries))).unlink(missing_ok=True)

    def _accepted(self, place: int, data: bytes) -> None:
        digest, file = sha256_hex(data), self._folder / "places"
        with self._lock:
            if digest != self._training:
                file.unlink(missing_ok=True)
                write_atomic(self._folder / "training", data)
                self._training, self._places = digest, set()
            if place not in self._places:
                self._places.add(place)
                with file.open("ab") as places:
                    places.write(struct.pack("<I", place))
