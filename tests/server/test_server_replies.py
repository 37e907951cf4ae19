"""A reply that is half sent holds up nobody else's, and is given once it is whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from server.replies import AGAIN_S, Replies

ASKED = [f"asked {text}" for text in ("half", "whole", "late", "broken", "first", "second")]


class SuperLink:
    """The runtime interface of a SuperLink, as far as replies need it: what was announced, which parts are there."""

    def __init__(self) -> None:
        self.announced: list[tuple[Any, Any]] = []
        self.parts: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.confirmed: list[str] = []
        self.broken = 0
        self.told: set[str] = set()

    def announce(self, reply: Message) -> list[str]:
        """Announce a reply and return the names of its parts, none of which is there yet."""
        asked = reply.metadata.reply_to_message_id
        head = SimpleNamespace(metadata=SimpleNamespace(message_id=reply.object_id, reply_to_message_id=asked))
        self.announced.append((head, get_object_tree(reply)))
        return list(get_all_nested_objects(reply))

    def send(self, reply: Message) -> None:
        self.parts |= {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}

    def PullMessages(self, request: Any) -> Any:
        assert not self.told & set(request.message_ids), "Flower answers this with an error in place of the reply"
        self.told |= {head.metadata.reply_to_message_id for head, _ in self.announced}
        told, self.announced = self.announced, []
        return SimpleNamespace(messages_list=[m for m, _ in told], message_object_trees=[t for _, t in told])

    def PullObject(self, request: Any) -> Any:
        if self.broken:
            self.broken -= 1
            raise httpx.ConnectError("no way")
        name = request.object_id
        return SimpleNamespace(
            object_found=name not in self.gone, object_available=name in self.parts, object_content=self.parts.get(name)
        )

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages inside a program of its own alone, which has these numbers."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


@pytest.fixture
def link() -> SuperLink:
    return SuperLink()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def replies(link: SuperLink, now: list[float]) -> Replies:
    grid: Any = SimpleNamespace(_runtime_client=link, node=None, run=SimpleNamespace(run_id=7))
    return Replies(grid, lambda: now[0])


def reply(text: bytes) -> Message:
    asked = Message(RecordDict(), dst_node_id=3, message_type="train")
    asked.metadata.__dict__["_message_id"] = f"asked {text.decode()}"
    made = Message(RecordDict({"confide": ConfigRecord({"frames": [text]})}), reply_to=asked)
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def texts(messages: list[Message]) -> list[Any]:
    contents: list[Any] = [message.content["confide"] for message in messages]
    return [content["frames"][0] for content in contents]


def test_half_a_reply_holds_up_nobody_and_is_given_when_it_is_whole(
    link: SuperLink, replies: Replies, now: list[float]
) -> None:
    half, other = reply(b"half"), reply(b"whole")
    for each in (half, other):
        link.announce(each)
    link.send(other)
    found = replies.whole(ASKED)
    assert texts(found) == [b"whole"] and link.confirmed == [other.object_id]
    assert found[0].metadata.message_id == other.object_id
    assert found[0].metadata.reply_to_message_id == other.metadata.reply_to_message_id
    link.send(half)
    assert replies.whole(ASKED) == [], "it is asked for again after a pause"
    now[0] += AGAIN_S
    assert texts(replies.whole(ASKED)) == [b"half"]
    assert replies.whole(ASKED) == []


def test_what_is_never_whole_is_dropped_with_its_stage(link: SuperLink, replies: Replies, now: list[float]) -> None:
    late = reply(b"late")
    link.announce(late)
    assert replies.whole(ASKED) == []
    replies.forget()
    link.told.clear()
    link.send(late)
    now[0] += 2 * AGAIN_S
    assert replies.whole(["b"]) == []


def test_a_reply_whose_parts_the_server_dropped_is_none(link: SuperLink, replies: Replies, now: list[float]) -> None:
    broken = reply(b"broken")
    link.gone = set(link.announce(broken))
    for _ in range(2):
        assert replies.whole(ASKED) == []
        link.gone = set()
        link.send(broken)
        now[0] += AGAIN_S


def test_a_way_that_fails_for_a_moment_loses_no_reply(link: SuperLink, replies: Replies, now: list[float]) -> None:
    first, second = reply(b"first"), reply(b"second")
    for each in (first, second):
        link.announce(each)
        link.send(each)
    link.broken = 1
    assert texts(replies.whole(ASKED)) == [b"second"]
    now[0] += AGAIN_S
    assert texts(replies.whole(ASKED)) == [b"first"]


def test_a_grid_in_this_process_is_asked_as_it_is() -> None:
    grid: Any = SimpleNamespace(pull_messages=lambda ids: [f"reply to {name}" for name in ids])
    found: list[Any] = list(Replies(grid).whole(["a"]))
    assert found == ["reply to a"]
