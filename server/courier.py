"""Frames over Flower: which device speaks through which node, and a loop of our own that sends and asks for answers."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from privacy.errors import ConfideError, SignatureInvalid, WireError
from privacy.session import Greeting, Hello
from privacy.wire import decode
from server.replies import Replies
from server.rounds import Done

RECORD, FRAMES = "confide", "frames"
NOTHING = b""
GREETED_S = 30.0
POLL_S = (0.02, 0.5)  # the pause between two looks for answers: the first, and the longest
AGAIN_S = 15.0  # without an answer from anybody before those who are silent are asked once more
AGAIN_BYTES = 2**18  # the largest frames that are sent twice: a slow way has enough to do with larger ones


_In = TypeVar("_In")
_Out = TypeVar("_Out")


class FlowerCourier:
    """Brings frames to the devices of `directory` through a Flower grid.

    Node ids are Flower's: random, new at every start. A device is found anew at each greeting by its own signature over
    node id and nonce. A node may speak for several simulated people, on a device it speaks for one.

    With `again_s`, nodes that are silent when half of all have answered, and nobody else did for so long, are sent the
    same bytes once more in a message of their own. Flower loses a message now and then, when its database is locked at
    that moment, and never brings it again; a device gives the same bytes to the same question.
    """

    def __init__(
        self,
        grid: Grid,
        directory: Mapping[str, Ed25519PublicKey],
        people_per_node: Callable[[int], int] = lambda _: 1,
        nodes: int = 1,
        greeting_s: float = GREETED_S,
        clock: Callable[[], float] = time.monotonic,
        again_s: float = math.inf,
    ) -> None:
        self._again_s = again_s
        self._grid, self._directory, self._people = grid, directory, people_per_node
        self._replies = Replies(grid, clock)
        self._nodes, self._greeting_s, self._clock = nodes, greeting_s, clock
        self._places: dict[str, tuple[int, int]] = {}

    def greet(self, offered: Sequence[str], invited: Sequence[str]) -> Mapping[str, int]:
        """Return the devices that answer a greeting, each with the bits of the `offered` hashes that it holds.

        Everybody is asked, `invited` or not: whose node is whose is known by the answers alone.
        """
        nonce = secrets.token_hex(32)
        frame = Greeting(nonce, tuple(offered)).encode()
        nodes = self._present()
        held: dict[str, int] = {}
        self._places = {}

        def heard(node: int, place: int, data: bytes) -> None:
            try:
                hello = decode(data)
                if isinstance(hello, Hello) and hello.device_id in self._directory:
                    hello.verify(self._directory[hello.device_id], node % 2**64, nonce)
                    self._places[hello.device_id] = node, place
                    held[hello.device_id] = hello.held
            except (WireError, SignatureInvalid):
                return

        self._send("query.hello", {node: [frame] * self._people(len(nodes)) for node in nodes}, self._greeting_s, heard)
        return held

    def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
        """Send each device its frame; `done(device, answer)` as the answers come, until all are here or time is up."""
        devices = {self._places[device]: device for device in frames if device in self._places}
        boxes: dict[int, list[bytes]] = {}
        for (node, place), device in sorted(devices.items()):
            box = boxes.setdefault(node, [])
            box.extend([NOTHING] * (place + 1 - len(box)))
            box[place] = frames[device]

        def heard(node: int, place: int, data: bytes) -> None:
            device = devices.get((node, place))
            if device is not None and data != NOTHING:
                done(device, data)

        self._send(f"train.{action}", boxes, deadline_s, heard)

    def _present(self) -> list[int]:
        """Return the nodes that are there, after waiting for the least number of them."""
        until = self._clock() + self._greeting_s
        while True:
            nodes = sorted(self._grid.get_node_ids())
            if len(nodes) >= self._nodes or self._clock() > until:
                break
            time.sleep(0.05)
        if not nodes:
            raise ConfideError("no node is connected")
        return nodes

    def _send(
        self,
        message_type: str,
        boxes: Mapping[int, Sequence[bytes]],
        deadline_s: float,
        heard: Callable[[int, int, bytes], None],
    ) -> None:
        """Push one message to each node and pull replies until the deadline; errors and strangers count as nothing."""
        heard_s = self._clock()
        until = heard_s + deadline_s
        self._replies.forget()
        waiting = self._pushed(message_type, boxes, deadline_s)
        (pause, longest), again = POLL_S, len(waiting) // 2
        while waiting and self._clock() < until:
            if len(waiting) <= again and self._clock() - heard_s >= self._again_s:
                small = {node: boxes[node] for node in waiting.values() if sum(map(len, boxes[node])) <= AGAIN_BYTES}
                waiting |= self._pushed(message_type, small, until - self._clock())
                again = -1
            for reply in self._tried(self._replies.whole, list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None or (node != reply.metadata.src_node_id and not reply.has_error()):
                    continue  # a reply that came twice, too late, or from a node that nobody asked
                for other in [name for name, asked in waiting.items() if asked == node]:  # it was asked twice
                    del waiting[other]
                pause, heard_s = POLL_S[0], self._clock()
                for place, data in enumerate(_frames(reply)[: len(boxes[node])]):
                    heard(node, place, data)
            if waiting:
                time.sleep(pause)
                pause = min(1.5 * pause, longest)

    def _pushed(self, message_type: str, boxes: Mapping[int, Sequence[bytes]], ttl: float) -> dict[str, int]:
        """Push one message to each node and return the nodes by message; without those that the grid did not take."""
        messages = [_message(node, message_type, frames, ttl) for node, frames in boxes.items()]
        pushed = {str(name) for name in self._tried(self._grid.push_messages, messages) if name}  # None: not taken
        return {m.metadata.message_id: m.metadata.dst_node_id for m in messages if m.metadata.message_id in pushed}

    @staticmethod
    def _tried(call: Callable[[list[_In]], Iterable[_Out]], argument: list[_In]) -> list[_Out]:
        """Return what the grid gives; nothing where the way to it fails just now: a deadline decides, not one error."""
        try:
            return list(call(argument))
        except (httpx.HTTPError, OSError):
            return []


def _message(node: int, message_type: str, frames: Sequence[bytes], ttl: float) -> Message:
    content = RecordDict({RECORD: ConfigRecord({FRAMES: list(frames)})})
    return Message(content, dst_node_id=node, message_type=message_type, ttl=ttl, group_id="")


def _frames(reply: Message) -> list[bytes]:
    if reply.has_error():
        return []
    try:
        frames = cast("list[bytes]", reply.content.config_records[RECORD][FRAMES])
    except (KeyError, TypeError):
        return []
    return frames if isinstance(frames, list) and all(type(data) is bytes for data in frames) else []
