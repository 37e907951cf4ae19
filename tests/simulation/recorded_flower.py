"""`simulation.flower_process` with an ear on Flower's grid: every message both ways goes into a folder as carried."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

RECORDS = "CONFIDE_TEST_RECORDS"


def record(folder: Path) -> None:
    """Write `00001.down` and `00002.up` and so on into `folder`, in the order in which the grid sees the messages."""
    numbers = count(1)
    push, pull = InMemoryGrid.push_messages, InMemoryGrid.pull_messages

    def kept(message: Message, way: str) -> None:
        (folder / f"{next(numbers):05d}.{way}").write_bytes(message_to_proto(message).SerializeToString())

    def push_messages(self: Any, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        names = push(self, messages)
        for message in messages:
            kept(message, "down")
        return names

    def pull_messages(self: Any, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(pull(self, message_ids))
        for message in replies:
            kept(message, "up")
        return replies

    InMemoryGrid.push_messages = push_messages  # type: ignore[method-assign]
    InMemoryGrid.pull_messages = pull_messages  # type: ignore[method-assign]


if __name__ == "__main__":
    from simulation.flower_process import main

    record(Path(os.environ[RECORDS]))
    main(int(sys.argv[1]))
