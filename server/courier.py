"""Frames over Flower: which device speaks through which node, and a loop of our own that sends and asks for answers."""

from __future__ import annotations

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


_In = TypeVar("_In")
_Out = TypeVar("_Out")


class FlowerCourier:
    """Brings frames to the devices of `directory` through a Flower grid.

    Node ids are Flower's: random, new at every start. A device is found anew at each greeting by its own signature over
    node id and nonce. A node may speak for several simulated people, on a device it speaks for one.
    """

    def __init__(
        self,
        grid: Grid,
        directory: Mapping[str, Ed25519PublicKey],
        people_per_node: Callable[[int], int] = lambda _: 1,
        nodes: int = 1,
        greeting_s: float = GREETED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
        until = self._clock() + deadline_s
        messages = [_message(node, message_type, frames, deadline_s) for node, frames in boxes.items()]
        pushed = {str(name) for name in self._tried(self._grid.push_messages, messages) if name}  # None: not taken
        waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in messages if m.metadata.message_id in pushed}
        pause, longest = POLL_S
        self._replies.forget()
        while waiting and self._clock() < until:
            for reply in self._tried(self._replies.whole, list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None or (node != reply.metadata.src_node_id and not reply.has_error()):
                    continue  # a reply that came twice, too late, or from a node that nobody asked
                pause = POLL_S[0]
                for place, data in enumerate(_frames(reply)[: len(boxes[node])]):
                    heard(node, place, data)
            if waiting:
                time.sleep(pause)
                pause = min(1.5 * pause, longest)

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
