"""Real Flower messages and contexts for tests, and a relay in a process of its own for each message."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

ROOT = Path(__file__).parents[1]

# Starts like Flower's worker, and then forks for each message: every child has seen no message but its own.
RELAYS = """
import json, os, sys
from flwr.app import Context, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message
from client.app import app
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        node, config = asked["node"], asked["config"]
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        message = message_from_proto(Message.FromString(bytes.fromhex(asked["message"])))
        reply = message_to_proto(app(message, context)).SerializeToString()
        print(json.dumps({"process": os.getpid(), "reply": reply.hex()}), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


class Relays:
    """Relay processes, a new one for each message. `processes` holds their numbers."""

    def __init__(self) -> None:
        command: Sequence[str] = [sys.executable, "-c", RELAYS]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        self.processes: list[int] = []

    def __call__(self, message: Message, node: int, config: dict[str, str | int]) -> Message:
        """Return the reply of a relay that is started for this message and gone after it."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        line = json.dumps({"node": node, "config": config, "message": carried(message).hex()})
        self._parent.stdin.write(line + "\n")
        self._parent.stdin.flush()
        answer = json.loads(self._parent.stdout.readline())
        self.processes.append(answer["process"])
        return message_from_proto(ProtoMessage.FromString(bytes.fromhex(answer["reply"])))

    def close(self) -> None:
        """End the process from which they come."""
        self._parent.communicate(timeout=10)


@contextmanager
def identified() -> Iterator[None]:
    """Let messages be made as Flower's processes do, which know which task they are."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = 1, 1, 1
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def instruction(frames: object, kind: str = "train.fit", node: int = 9) -> Message:
    """Return what our server sends; `frames` may be anything that a record can hold."""
    with identified():
        content = RecordDict({"confide": ConfigRecord({"frames": frames})})  # type: ignore[dict-item]
        message = Message(content, dst_node_id=node, message_type=kind, ttl=60.0, group_id="")
    message.metadata.__dict__["_message_id"] = f"message-{id(message)}"
    return message


def context_of(node: int, **config: str | int) -> Context:
    """Return a node's context."""
    named = {name.replace("_", "-"): value for name, value in config.items()}
    return Context(run_id=1, node_id=node, node_config=dict(named), state=RecordDict(), run_config={})


def frames_of(message: Message) -> list[bytes]:
    """Return the frames in a relay's message."""
    frames = message.content.config_records["confide"]["frames"]
    assert isinstance(frames, list)
    return [bytes(frame) for frame in frames]  # type: ignore[arg-type]


def carried(message: Message) -> bytes:
    """Return a message as Flower carries it."""
    return bytes(message_to_proto(message).SerializeToString())
