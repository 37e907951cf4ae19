"""Replies over Flower's grid, such that one that is half sent holds up nobody else's.

    announced ──▶ its parts are asked for, again and again ──▶ whole: given to the caller, confirmed

A SuperNode announces a reply and then sends its parts. One that dies in between, or means to, leaves a reply that is
never whole; Flower's own `pull_messages` waits for it, three minutes and more, before it looks at the next one, and so
the stage is over for everybody. Here no reply is waited for: what is not whole yet is asked for again at a later look.
Read in Flower 1.41.0: the names of Flower's that it does not promise to keep stand in this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)

SOON_S, AGAIN_S = 0.1, 2.0  # before a part that was not there is asked for again: at first, and in the end


@dataclass
class _Coming:
    """A reply that was announced: its name, the parts that are missing, those that are here, when to look again."""

    name: str
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    due: float = 0.0
    pause: float = SOON_S


class Replies:
    """What came back over a grid. A grid inside this process, which has no half-sent replies, is asked as it is."""

    def __init__(self, grid: Grid, clock: Callable[[], float] = time.monotonic) -> None:
        self._grid, self._clock = grid, clock
        self._client: Any = getattr(grid, "_runtime_client", None)
        self._coming: list[_Coming] = []
        self._announced: set[str] = set()  # to which messages

    def forget(self) -> None:
        """Wait no longer for what was announced before: a new stage begins."""
        self._coming, self._announced = [], set()

    def whole(self, ids: Iterable[str]) -> list[Message]:
        """Return the replies to the messages `ids` that are whole now, each once, in the order they were announced.

        Raises httpx.HTTPError where the way to the server fails; what was announced is not lost then.
        """
        if self._client is None:
            return list(self._grid.pull_messages(ids))
        # Of a reply that it announced before, Flower says at a second question that there is none.
        asked = [name for name in ids if name not in self._announced]
        told = self._client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for message, tree in zip(told.messages_list, told.message_object_trees, strict=True):
            parts = [part.object_id for part in iterate_object_tree(tree)]
            self._announced.add(message.metadata.reply_to_message_id)
            self._coming.append(_Coming(message.metadata.message_id, parts))
        found, left = list[Message](), list[_Coming]()
        for one in self._coming:
            message = self._made(one)
            if message is not None:
                found.append(message)
            elif one.missing:
                left.append(one)
        self._coming = left
        return found

    def _made(self, one: _Coming) -> Message | None:
        """Return the reply if all its parts are there; with none `missing` and no reply it never will be."""
        if self._clock() < one.due:
            return None
        run_id = cast(Any, self._grid).run.run_id
        node = cast(Any, self._grid).node
        part_of = make_pull_object_fn_protobuf(self._client.PullObject, node=node, run_id=run_id)
        try:
            while one.missing:
                one.parts[one.missing[0]] = part_of(one.missing[0])
                del one.missing[0]
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=one.name)
            )
        except ObjectPullError:
            one.missing = []
            return None
        except (ObjectUnavailableError, httpx.HTTPError):
            one.due, one.pause = self._clock() + one.pause, min(2 * one.pause, AGAIN_S)
            one.missing = one.missing or [one.name]
            return None
        message = cast(Message, inflate_object_from_contents(one.name, one.parts))
        message.metadata.__dict__["_message_id"] = one.name
        return message
