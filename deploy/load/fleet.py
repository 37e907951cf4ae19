"""Many SuperNodes in one process, on Flower's Fleet API. Run in the end-to-end test (tests/deploy).

Each node has its own key, connection, TLS session and heartbeat, and sends the messages that Flower's SuperNode sends;
what is missing is the process a message that a SuperNode starts, so this measures the server and not the devices. In
its place `client.app.pass_on` runs here: the relay itself, with its socket to the agent. Read in Flower 1.41.0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supernode.fleet_http_connection import http_request_response

from client.app import pass_on

IDLE_S = 3.0  # what a SuperNode sleeps that found no message
HALF = "train.mask"  # the reply that a faulty device announces and never sends


@dataclass
class Node:
    """One connected SuperNode: Flower's callbacks, its place among the people behind the socket, and when it is due."""

    place: int
    node_id: int
    calls: Sequence[Callable[..., Any]]
    due: float = 0.0


@dataclass
class Seen:
    """What the nodes did: messages and bytes of frames by kind, and how often Flower answered with an error."""

    messages: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    errors: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, seconds: float) -> None:
        """Count a message of a kind that took so long from its pull to its reply."""
        with self.lock:
            self.messages[kind] = self.messages.get(kind, 0) + 1
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def failed(self) -> None:
        """Count a call that Flower or the network answered with an error."""
        with self.lock:
            self.errors += 1


class Fleet:
    """Nodes on one server until `close`; `workers` threads share the nodes, each of which asks every `idle_s` seconds.

    The last `half` of them announce their masked vectors and never send them, as one that is killed at that moment.
    """

    def __init__(
        self,
        address: str,
        authority: Path,
        keys: Sequence[ec.EllipticCurvePrivateKey],
        workers: int = 16,
        idle_s: float = IDLE_S,
        half: int = 0,
    ) -> None:
        self.seen, self._idle_s, self._ended = Seen(), idle_s, threading.Event()
        self._whole = len(keys) - half
        self._stack, self._people = ExitStack(), len(keys)
        self._free = threading.Condition()
        certificates = authority.read_bytes()

        def connected(place: int) -> Node:
            connection = http_request_response(
                address, False, certificates, (keys[place], keys[place].public_key()), max_wait_time=120.0
            )
            node_id, *calls = cast("tuple[Any, ...]", connection.__enter__())
            self._stack.push(connection)
            return Node(place, node_id, calls)

        with ThreadPoolExecutor(workers) as pool:
            self._nodes = list(pool.map(connected, range(len(keys))))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop asking, and take the nodes off the server."""
        self._ended.set()
        for thread in self._threads:
            thread.join(150.0)
        with suppress(httpx.HTTPError, RuntimeError):
            self._stack.close()

    def _work(self) -> None:
        while not self._ended.is_set():
            node = self._next()
            if node is None:
                self._ended.wait(0.02)
                continue
            try:
                busy = self._serve(node)
            except Exception:  # noqa: BLE001 - a load goes on whatever one call met; the errors are counted
                self.seen.failed()
                busy = False
            node.due = time.monotonic() + (0.0 if busy else self._idle_s)
            with self._free:
                self._nodes.append(node)

    def _next(self) -> Node | None:
        """Take the node that is due longest off the list; None if none is."""
        with self._free:
            due = min(self._nodes, key=lambda node: node.due, default=None)
            if due is None or due.due > time.monotonic():
                return None
            self._nodes.remove(due)
            return due

    def _serve(self, node: Node) -> bool:
        """Ask for one message and answer it; return whether there was one."""
        receive, send, _, _, pull_object, push_object, confirm = node.calls
        found = receive()
        if found is None:
            return False
        began = time.monotonic()
        head, tree = found
        run_id = head.metadata.run_id
        message = pull_and_inflate_object_from_tree(
            tree,
            lambda name: pull_object(run_id, name),
            lambda name: confirm(run_id, name),
            return_type=Message,
            max_concurrent_pulls=1,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        config: dict[str, bool | float | int | str] = {"partition-id": node.place, "num-partitions": self._people}
        reply = pass_on(message, Context(run_id, node.node_id, config, RecordDict(), {}))
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            wanted, session = send(remove_content_from_message(reply), get_object_tree(reply), time.monotonic() - began)
            if node.place < self._whole or message.metadata.message_type != HALF:
                push_objects(
                    get_all_nested_objects(reply),
                    lambda name, data: push_object(run_id, session, name, data),
                    object_ids_to_push=wanted,
                )
        self.seen.note(message.metadata.message_type, time.monotonic() - began)
        return True
