"""Frames over a grid by hand, which reorders, repeats, delays and fails; nodes that lie about their device."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid

from privacy.errors import ConfideError
from privacy.session import Greeting, Hello
from privacy.wire import Refusal, RefusalCode, decode_request
from server.courier import FlowerCourier
from tests.agents_by_hand import signing_key
from tests.flower_messages import frames_of, identified

USERS = [f"d{i:02d}" for i in range(4)]
KEYS = {user: signing_key(user).public_key() for user in USERS}
NODES = {101: ["d00"], 2**63 + 5: ["d01"], 7: ["d02"], 55: ["d03"]}
Answer = Callable[[int, Message, list[bytes]], "list[bytes] | Exception | None"]
"""(node, message, frames) -> the frames of its reply; an error, or nothing."""


class HandGrid:
    """A grid of `nodes`. Replies come shuffled, each as often as `times` says, after as many looks as `delay` says."""

    def __init__(self, answer: Answer, nodes: Iterable[int] = NODES) -> None:
        self.answer, self.nodes = answer, list(nodes)
        self.times: Callable[[int], int] = lambda node: 1
        self.delay: Callable[[int], int] = lambda node: 0
        self.untaken: set[int] = set()
        self.pushed: list[Message] = []
        self.looks, self._count = 0, 0
        self._waiting: list[tuple[int, Message]] = []
        self._order = random.Random(4)  # an order for a test, no secret

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names: list[Any] = []
        for message in messages:
            self._count += 1
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            if node in self.untaken:
                names.append(None)  # what Flower's own grid returns for a message that it could not push
                continue
            names.append(f"m{self._count}")
            self.pushed.append(message)
            got = self.answer(node, message, frames_of(message))
            if got is None:
                continue
            for _ in range(self.times(node)):
                self._waiting.append((self.looks + self.delay(node), self._reply(message, got)))
        return names

    @staticmethod
    def _reply(message: Message, got: list[bytes] | Exception) -> Message:
        if isinstance(got, Exception):
            return Message(Error(code=1, reason=str(got)), reply_to=message)
        return Message(RecordDict({"confide": ConfigRecord({"frames": got})}), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return what is due, also replies to messages that nobody waits for: a grid that errs."""
        assert all(type(name) is str for name in message_ids)
        self.looks += 1
        due = [reply for at, reply in self._waiting if at <= self.looks]
        self._waiting = [(at, reply) for at, reply in self._waiting if at > self.looks]
        self._order.shuffle(due)
        return due


@pytest.fixture(autouse=True)
def task() -> Iterator[None]:
    with identified():
        yield


def hello_from(user: str, node: int, nonce: str, held: int = 1, signer: str = "") -> bytes:
    return Hello.signed(signing_key(signer or user), user, held, node, nonce).encode()


def honest(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
    """Every node speaks for its devices, and answers a frame with a refusal in its device's name."""
    out = []
    for user, frame in zip(NODES[node], frames, strict=False):
        if message.metadata.message_type == "query.hello":
            request = decode_request(frame)
            assert isinstance(request, Greeting)
            out.append(hello_from(user, node, request.nonce, held=len(request.offered)))
        else:
            out.append(frame + user.encode())
    return out


def courier_over(grid: HandGrid, **settings: Any) -> FlowerCourier:
    return FlowerCourier(cast(Grid, grid), KEYS, **{"nodes": 4, "greeting_s": 0.5} | settings)


def exchanged(courier: FlowerCourier, users: Iterable[str] = USERS, deadline_s: float = 2.0) -> list[tuple[str, bytes]]:
    got: list[tuple[str, bytes]] = []
    frames = {user: b"f-" + user.encode() for user in users}
    courier.exchange("answer", frames, deadline_s, lambda device, data: got.append((device, data)))
    return got


EXPECTED = [(user, b"f-" + user.encode() + user.encode()) for user in USERS]


def test_frames_reach_their_devices_and_answers_come_back_under_their_names() -> None:
    grid = HandGrid(honest)
    courier = courier_over(grid)
    assert courier.greet(["a" * 64, "b" * 64], USERS) == dict.fromkeys(USERS, 2)
    assert sorted(exchanged(courier)) == EXPECTED
    assert {m.metadata.message_type for m in grid.pushed} == {"query.hello", "train.answer"}
    assert sorted(exchanged(courier, ["d02"])) == EXPECTED[2:3], "nobody else is asked"
    assert grid.pushed[-1].metadata.dst_node_id == 7
    assert sorted(exchanged(courier, ["stranger"], 0.1)) == []


def test_replies_in_any_order_delayed_and_repeated_count_once() -> None:
    grid = HandGrid(honest)
    grid.times, grid.delay = lambda node: 3, lambda node: node % 5
    courier = courier_over(grid)
    assert set(courier.greet([], USERS)) == set(USERS)
    assert sorted(exchanged(courier)) == EXPECTED
    assert sorted(exchanged(courier)) == EXPECTED


def test_a_reply_to_an_earlier_message_is_dropped() -> None:
    grid = HandGrid(honest)
    courier = courier_over(grid)
    courier.greet([], USERS)
    grid.delay = lambda node: 10**6 if node == 7 else 0
    assert sorted(exchanged(courier, deadline_s=0.2)) == [e for e in EXPECTED if e[0] != "d02"]
    grid._waiting = [(0, reply) for _, reply in grid._waiting]  # it comes now, in the middle of the next exchange
    grid.delay = lambda node: 0
    grid.answer = lambda node, message, frames: [b"new"]
    assert sorted(exchanged(courier)) == [(user, b"new") for user in USERS]


def test_errors_strangers_and_other_forms_count_as_nothing() -> None:
    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type == "query.hello":
            return honest(node, message, frames)
        wrong: dict[int, list[bytes] | Exception] = {
            101: RuntimeError("a text"),
            7: cast("list[bytes]", ["text"]),
            55: [b"", b"too", b"many"],
        }
        return wrong.get(node, [])

    courier = courier_over(HandGrid(answer))
    courier.greet([], USERS)
    begun = time.monotonic()
    assert exchanged(courier) == []
    assert time.monotonic() - begun < 1.5, "an error is an answer: nobody is waited for"


def test_a_reply_from_another_node_than_was_asked_is_dropped() -> None:
    grid = HandGrid(honest)
    courier = courier_over(grid)
    courier.greet([], USERS)
    genuine = grid._reply

    def lying(message: Message, got: Any) -> Message:
        reply = genuine(message, got)
        if message.metadata.dst_node_id == 7:
            reply.metadata.__dict__["_src_node_id"] = 55
        return reply

    grid._reply = lying  # type: ignore[method-assign]
    assert sorted(exchanged(courier, deadline_s=0.3)) == [e for e in EXPECTED if e[0] != "d02"]


def test_a_message_that_the_grid_did_not_take_is_waited_for_by_nobody() -> None:
    grid = HandGrid(honest)
    courier = courier_over(grid)
    courier.greet([], USERS)
    grid.untaken = {7}
    begun = time.monotonic()
    assert sorted(exchanged(courier, deadline_s=3.0)) == [e for e in EXPECTED if e[0] != "d02"]
    assert time.monotonic() - begun < 1.0


def test_who_is_silent_is_waited_for_until_the_deadline_and_no_longer() -> None:
    silent = {7}
    grid = HandGrid(lambda node, message, frames: None if node in silent else honest(node, message, frames))
    courier = courier_over(grid)
    begun = time.monotonic()
    assert set(courier.greet([], USERS)) == set(USERS) - {"d02"}
    assert 0.5 <= time.monotonic() - begun < 1.5
    assert exchanged(courier, ["d02"], 5.0) == [], "who did not answer the greeting is not reached, and not waited for"


def test_a_message_that_is_lost_on_the_way_is_sent_once_more_when_most_have_answered() -> None:
    lost = {7: 1, 55: 2}  # how many messages to each are lost

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type != "query.hello" and lost.get(node, 0):
            lost[node] -= 1
            return None
        return honest(node, message, frames)

    grid = HandGrid(answer)
    courier = courier_over(grid, again_s=0.2)
    courier.greet([], USERS)
    grid.pushed.clear()
    begun = time.monotonic()
    assert sorted(exchanged(courier, deadline_s=1.5)) == [e for e in EXPECTED if e[0] != "d03"], "not more than once"
    assert time.monotonic() - begun >= 1.5
    asked = [(m.metadata.dst_node_id, frames_of(m)) for m in grid.pushed]
    assert sorted(node for node, _ in asked[4:]) == [7, 55]
    assert dict(asked[4:]) == {node: frames for node, frames in asked[:4] if node in (7, 55)}, "the same bytes"


def test_nobody_is_asked_twice_while_most_are_silent_or_the_frame_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {7, 55, 101}

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        asked = message.metadata.message_type != "query.hello"
        return None if asked and node in silent else honest(node, message, frames)

    grid = HandGrid(answer)
    courier = courier_over(grid, again_s=0.1)
    courier.greet([], USERS)
    grid.pushed.clear()
    exchanged(courier, deadline_s=0.5)
    assert len(grid.pushed) == 4, "three of four are silent: it is not these messages that were lost"
    silent.difference_update({55, 101})
    monkeypatch.setattr("server.courier.AGAIN_BYTES", 4)
    grid.pushed.clear()
    exchanged(courier, deadline_s=0.5)
    assert len(grid.pushed) == 4


def test_who_answers_both_messages_is_heard_once() -> None:
    grid = HandGrid(honest)
    courier = courier_over(grid, again_s=0.05)
    courier.greet([], USERS)
    grid.pushed.clear()
    grid.delay = lambda node: 6 if node == 7 else 0
    assert sorted(exchanged(courier)) == EXPECTED
    assert [m.metadata.dst_node_id for m in grid.pushed[4:]] == [7]
    assert sorted(exchanged(courier)) == EXPECTED, "and what comes late is nothing at the next stage"


def test_it_waits_for_the_least_number_of_nodes_and_says_if_there_is_none() -> None:
    grid = HandGrid(honest, [101])
    begun = time.monotonic()
    assert set(courier_over(grid).greet([], USERS)) == {"d00"}
    assert time.monotonic() - begun >= 0.5
    with pytest.raises(ConfideError, match="no node"):
        courier_over(HandGrid(honest, [])).greet([], USERS)


# -- nodes that lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie", ["another's key", "another node", "another nonce", "more held", "unknown device", "cut"]
)
def test_a_hello_that_its_device_did_not_sign_here_and_now_is_no_hello(lie: str) -> None:
    """Node 7 claims to be d00, which is behind node 101; d00 is found where it is, or nowhere."""

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type != "query.hello" or node != 7:
            return honest(node, message, frames)
        nonce = cast(Greeting, decode_request(frames[0])).nonce
        genuine = hello_from("d00", 101, nonce)
        if lie == "another's key":
            return [hello_from("d00", 7, nonce, signer="d02")]
        if lie == "another node":
            return [genuine]  # overheard at node 101
        if lie == "another nonce":
            return [hello_from("d00", 7, "0" * 64)]  # of an earlier greeting
        if lie == "more held":
            hello = Hello.signed(signing_key("d00"), "d00", 0, 7, nonce)
            return [Hello("d00", 1, hello.signature).encode()]
        if lie == "unknown device":
            return [hello_from("stranger", 7, nonce)]
        return [genuine[:-1]]

    grid = HandGrid(answer)
    courier = courier_over(grid)
    assert set(courier.greet([], USERS)) == {"d00", "d01", "d03"}
    grid.pushed.clear()
    exchanged(courier, ["d00"])
    assert [m.metadata.dst_node_id for m in grid.pushed] == [101]


def test_a_device_that_moves_to_another_node_is_found_there_at_the_next_greeting() -> None:
    where = {101: "d00", 7: "d02"}

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type != "query.hello":
            return frames
        nonce = cast(Greeting, decode_request(frames[0])).nonce
        return [hello_from(where[node], node, nonce)] if node in where else []

    grid = HandGrid(answer)
    courier = courier_over(grid)
    assert set(courier.greet([], USERS)) == {"d00", "d02"}
    where.clear()
    where.update({55: "d00"})
    assert set(courier.greet([], USERS)) == {"d00"}
    grid.pushed.clear()
    exchanged(courier, ["d00", "d02"])
    assert [m.metadata.dst_node_id for m in grid.pushed] == [55]


def test_a_hello_recorded_at_one_greeting_is_nothing_at_the_next() -> None:
    recorded: dict[int, list[bytes]] = {}

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type == "query.hello":
            return recorded.setdefault(node, cast("list[bytes]", honest(node, message, frames)))
        return honest(node, message, frames)

    courier = courier_over(HandGrid(answer))
    assert set(courier.greet([], USERS)) == set(USERS)
    assert courier.greet([], USERS) == {}
    assert exchanged(courier, deadline_s=0.2) == []


def test_many_people_behind_one_node_are_told_apart_by_their_places() -> None:
    people = [["d00", "d02"], ["d01", "d03"]]

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        if message.metadata.message_type != "query.hello":
            return [f and b"<" + f + b">" for f in frames]
        nonce = cast(Greeting, decode_request(frames[0])).nonce
        return [hello_from(user, node, nonce) for user in people[node]]

    grid = HandGrid(answer, [0, 1])
    courier = courier_over(grid, nodes=2, people_per_node=lambda nodes: 2)
    assert set(courier.greet([], USERS)) == set(USERS)
    assert sorted(exchanged(courier)) == [(u, b"<f-" + u.encode() + b">") for u in USERS]
    assert exchanged(courier, ["d02"]) == [("d02", b"<f-d02>")]
    assert frames_of(grid.pushed[-1]) == [b"", b"f-d02"]


def test_a_refusal_in_anothers_name_arrives_under_the_asked_devices_name() -> None:
    """The courier says whom it asked; whose name stands in the frame is for the round to compare."""
    forged = Refusal("a" * 64, "d01", RefusalCode.UNABLE).encode()

    def answer(node: int, message: Message, frames: list[bytes]) -> list[bytes] | Exception | None:
        return honest(node, message, frames) if message.metadata.message_type == "query.hello" else [forged]

    courier = courier_over(HandGrid(answer))
    courier.greet([], USERS)
    assert exchanged(courier, ["d00"]) == [("d00", forged)]
