"""The relay: passes frames between Flower and the agent, and looks into none but for its form.

A Flower message to a node holds one frame for each person behind that node: one on a device, several in a simulation
of many people on few nodes. The agent's socket is named by this node's own configuration or environment, never by
anything that the server writes. Whatever fails here becomes an empty frame: no text, no exception. Imports nothing of
confide but `privacy.wire`.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from privacy.wire import MAX_BYTES, decode, decode_request

ACTIONS = ("release", "fit", "answer", "advertise", "shares", "mask", "confirm", "unmask")
PREAMBLE = b"confide-relay/1\n"
PATIENCE_S = 120.0
NOTHING = b""
RECORD, FRAMES = "confide", "frames"

app = ClientApp()


def pass_on(message: Message, context: Context) -> Message:
    """Return the agent's frames for the frames in `message`, in their order; nothing for a frame that is not ours."""
    try:
        frames = list(cast("list[bytes]", message.content.config_records[RECORD][FRAMES]))
    except Exception:  # noqa: BLE001 - Flower sends an exception's text to the server; a message of another form
        frames = []
    answers = [NOTHING] * len(frames)
    for i, frame in enumerate(frames):
        with suppress(Exception):  # as above: what failed is told to nobody
            answers[i] = answer_of(i, frame, context)
    return Message(RecordDict({RECORD: ConfigRecord({FRAMES: answers})}), reply_to=message)


def answer_of(i: int, frame: bytes, context: Context) -> bytes:
    """Return the agent's answer to the i-th frame of a message to this node; raises for whatever is no message."""
    if frame == NOTHING:
        return NOTHING
    decode_request(frame)
    place, path = agent_of(i, context)
    answer = exchange(path, place, context.node_id % 2**64, frame)
    decode(answer)
    return answer


def agent_of(i: int, context: Context) -> tuple[int, Path]:
    """Return which person of which agent's socket the i-th frame is for.

    A device has one socket, `confide-socket` of its node configuration or $CONFIDE_SOCKET. In a simulation W hosts
    listen in one folder ($CONFIDE_SOCKETS, or one of this user's alone); node p of N relays for the people p, p + N,
    p + 2 N and so on, and person j lives on host j modulo W.
    """
    path = context.node_config.get("confide-socket") or os.environ.get("CONFIDE_SOCKET")
    if path:
        return i, Path(str(path))
    folder = Path(os.environ.get("CONFIDE_SOCKETS") or default_folder())
    if folder.stat().st_uid != os.getuid():
        raise PermissionError("another user's sockets")
    hosts = len(list(folder.glob("*.sock")))
    person = int(context.node_config["partition-id"]) + i * int(context.node_config["num-partitions"])
    return person // hosts, folder / f"{person % hosts}.sock"


def default_folder() -> Path:
    """Return where the hosts of this user's simulation listen if nothing else is said."""
    return Path(tempfile.gettempdir()) / f"confide-{os.getuid()}"


def exchange(path: Path, place: int, node_id: int, frame: bytes) -> bytes:
    """Return what the agent at the socket `path` answers; raises OSError or ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(PATIENCE_S)
        agent.connect(os.fspath(path))
        agent.sendall(PREAMBLE + struct.pack("<IQI", place, node_id, len(frame)) + frame)
        with agent.makefile("rb") as stream:
            (size,) = struct.unpack("<I", stream.read(4))
            return stream.read(size) if size <= MAX_BYTES else NOTHING


app.query("hello")(pass_on)
for action in ACTIONS:
    app.train(action)(pass_on)
