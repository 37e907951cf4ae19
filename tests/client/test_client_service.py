"""The agent's side of the relay: when it answers, what it answers twice, and that no state shows before its time."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.deliveries
from client.deliveries import Deliveries
from client.listener import RELAY_PREAMBLE, RelaySocket
from client.service import KEPT_JOBS, AgentService, Lazy, Pace, Worker
from privacy.canonical import sha256_hex
from privacy.errors import ConfideError
from privacy.secagg.device import SumDevice
from privacy.secagg.messages import Begin, Confirm, ConfirmRequest
from privacy.secagg.server import SumServer
from privacy.session import Accepted, Delivery, Greeting, Hello, Received, Start, Training, basis_item, digest_of
from privacy.wire import Answer, Message, Refusal, RefusalCode, decode
from tests.agents_by_hand import BASIS, LAYOUT, PLANTED, SERVER_KEY, Crew, signing_key

TICK_S, HOLD_S = 0.1, 1.3
TOLERANCE_S = 0.08  # of the scheduler of a busy machine with two cores; below one tick


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    one = Crew(tmp_path)
    yield one
    one.close()


def told(crew: Crew, place: int, data: bytes) -> Message:
    return decode(crew.service.reply(place, 9, data))


def ready(crew: Crew) -> None:
    for place in range(len(crew.users)):
        assert isinstance(told(crew, place, crew.delivery), Received)


# -- around a sum ---------------------------------------------------------------------------------------------------


def test_a_device_says_what_it_holds_under_its_signature_and_keeps_what_is_signed(crew: Crew) -> None:
    greeting = Greeting("3" * 64, crew.offered).encode()
    for held in (0, 3):
        hello = told(crew, 1, greeting)
        assert isinstance(hello, Hello) and (hello.device_id, hello.held) == ("d01", held)
        hello.verify(crew.keys["d01"].public_key(), 9, "3" * 64)
        assert told(crew, 1, crew.delivery) == Received("d01", digest_of(crew.items))


def test_where_one_call_comes_after_the_other_the_same_delivery_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each device still says what it got; and what came in between, or was refused, is not taken for it."""
    crew = Crew(tmp_path)
    crew.service = AgentService(list(crew.devices.values()), crew.deliveries, Lazy())
    taken: list[tuple[bytes, ...]] = []
    take = crew.deliveries.take

    def noted(items: tuple[bytes, ...]) -> None:
        taken.append(tuple(items))
        take(items)

    monkeypatch.setattr(crew.deliveries, "take", noted)
    basis, start = crew.items
    broken = Delivery((basis[:-1],)).encode()
    ready(crew)
    assert taken == [crew.items]
    assert [crew.service.reply(place, 9, broken) for place in (0, 1)] == [b"", b""], "refused, each time"
    assert len(taken) == 3
    assert told(crew, 0, Delivery((start,)).encode()) == Received("d00", digest_of((start,)))
    assert told(crew, 0, crew.delivery) == Received("d00", digest_of(crew.items))
    assert taken[3:] == [(start,), crew.items]
    crew.close()


@pytest.mark.parametrize("place", [-1, 3, 2**32 - 1])
def test_a_place_where_nobody_is_gets_nothing(crew: Crew, place: int) -> None:
    assert crew.service.reply(place, 9, Greeting("3" * 64).encode()) == b""


def test_what_nobody_signed_or_named_is_not_kept(crew: Crew) -> None:
    basis, start = crew.items
    forged = Start("test", "first", 0, crew.slots).signed(signing_key("d00")).item()
    elsewhere = Start("other", "first", 0, crew.slots).signed(SERVER_KEY).item()
    changed = start[:40] + bytes([start[40] ^ 1]) + start[41:]
    other_basis = basis_item(
        replace(BASIS, factors={name: (2 * a, b) for name, (a, b) in BASIS.factors.items()}).to_bytes()
    )
    endless = Start("test", "first", 0, np.full((1, 16), np.inf, dtype=np.float32)).signed(SERVER_KEY).item()
    assert crew.service.reply(0, 9, Delivery((start,)).encode()) == b"", "adapters before their basis"
    for item in (other_basis, basis[:-1], basis[:1] + b"x"):
        assert crew.service.reply(0, 9, Delivery((item,)).encode()) == b""
    assert crew.deliveries.held(crew.offered) == 0
    assert isinstance(told(crew, 0, Delivery((basis,)).encode()), Received)
    for item in (forged, elsewhere, changed, endless):
        assert crew.service.reply(0, 9, Delivery((item,)).encode()) == b""
    assert crew.deliveries.held(crew.offered) == 1
    assert told(crew, 0, crew.training) == Refusal(crew.query.sha256, "d00", RefusalCode.RELEASE)
    assert crew.learner.trained == []


def test_a_basis_that_the_disk_did_not_take_is_asked_for_again(
    crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Deliveries(crew.policy, folder=tmp_path / "kept")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(client.deliveries, "write_atomic", full)
        with pytest.raises(OSError, match="No space"):
            kept.take(crew.items)
    assert kept.held(crew.offered) == 0 and kept.layout is None
    kept.take(crew.items)
    assert kept.held(crew.offered) == 3
    again = Deliveries(crew.policy, folder=tmp_path / "kept")
    assert again.held(crew.offered) == 1 and again.layout == LAYOUT


@pytest.mark.parametrize("broken", [b"", b"{", b"not a basis"])
def test_a_kept_basis_that_is_broken_or_of_another_policy_is_delivered_anew(
    crew: Crew, tmp_path: Path, broken: bytes
) -> None:
    (tmp_path / "basis.safetensors").write_bytes(broken)
    assert Deliveries(crew.policy, folder=tmp_path).held(crew.offered) == 0
    Deliveries(crew.policy, folder=tmp_path).take(crew.items)
    newer = replace(crew.policy, basis_sha256="d" * 64)
    assert Deliveries(newer, folder=tmp_path).held(crew.offered) == 0
    assert Deliveries(crew.policy, folder=tmp_path).held(crew.offered) == 1


def test_deliveries_are_taken_and_looked_at_by_many_threads(crew: Crew) -> None:
    starts = [
        Start("test", "first", r, np.full((1, LAYOUT.dim), r, dtype=np.float32)).signed(SERVER_KEY).item()
        for r in range(12)
    ]
    offered = tuple(map(sha256_hex, (crew.items[0], *starts)))
    crew.deliveries.take(crew.items[:1])
    until = time.monotonic() + 0.5

    def take(first: int) -> None:
        while time.monotonic() < until:
            for i in range(6):
                crew.deliveries.take(starts[first + i : first + i + 1])

    def look(_: int) -> None:
        while time.monotonic() < until:
            assert crew.deliveries.held(offered) & 1

    with ThreadPoolExecutor(4) as pool:
        work: list[tuple[Callable[[int], None], int]] = [(take, 0), (take, 6), (look, 0), (look, 0)]
        for done in [pool.submit(one, first) for one, first in work]:
            done.result()
    assert crew.deliveries.held(offered).bit_count() == 1 + client.deliveries.KEPT_STARTS


# -- training and the sum -------------------------------------------------------------------------------------------


def test_one_query_is_one_job_and_one_charge_however_often_it_comes(tmp_path: Path) -> None:
    crew = Crew(tmp_path, worker=Worker(threading.RLock()), pace=Pace(patience_s=5))
    ready(crew)
    with ThreadPoolExecutor(8) as pool:
        replies = [r.result() for r in [pool.submit(crew.service.reply, 0, 9, crew.training) for _ in range(16)]]
    assert set(replies) == {Accepted(crew.query.sha256, "d00").encode()}
    answers = {crew.service.reply(0, node, crew.collect) for node in (9, 10, 11)}
    assert len(answers) == 1 and isinstance(decode(answers.pop()), Answer)
    assert crew.learner.trained == ["d00"]
    assert len(list(crew.devices["d00"].ledger.account.charged())) == 1
    crew.close()


def test_a_query_that_this_process_never_accepted_is_stale(crew: Crew) -> None:
    ready(crew)
    assert told(crew, 0, crew.collect) == Refusal(crew.query.sha256, "d00", RefusalCode.STALE)
    told(crew, 0, crew.training)
    assert isinstance(told(crew, 0, crew.collect), Answer)
    assert told(crew, 1, crew.collect) == Refusal(crew.query.sha256, "d01", RefusalCode.STALE)


def test_what_the_policy_does_not_grant_is_refused_at_once(tmp_path: Path) -> None:
    crew = Crew(tmp_path, max_participations=1, allow_unprotected=False)
    ready(crew)
    unprotected = replace(crew.query, transport="off")
    word = Training(unprotected.to_bytes()).encode()
    assert told(crew, 0, word) == Refusal(unprotected.sha256, "d00", RefusalCode.UNPROTECTED)
    refusal = told(crew, 0, Training(b"{}").encode())
    assert refusal == Refusal(sha256_hex(b"{}"), "d00", RefusalCode.UNABLE)
    assert crew.learner.trained == []
    crew.close()


def test_old_jobs_are_forgotten(crew: Crew) -> None:
    ready(crew)
    for attempt in range(KEPT_JOBS + 5):
        query = replace(crew.query, attempt=attempt)
        assert isinstance(told(crew, 0, Training(query.to_bytes()).encode()), Accepted)
    first, last = crew.query, replace(crew.query, attempt=KEPT_JOBS + 4)
    assert told(crew, 0, Begin(first.sha256).encode()) == Refusal(first.sha256, "d00", RefusalCode.STALE)
    assert isinstance(told(crew, 0, Begin(last.sha256).encode()), Answer)


def masked_until_confirm(crew: Crew) -> tuple[bytes, bytes]:
    """Drive a masked sum to the survivors; return two different requests that each alone would be signed."""
    ready(crew)
    for place in range(len(crew.users)):
        assert isinstance(told(crew, place, crew.training), Accepted)
    machine = SumServer(crew.query, crew.users, crew.directory)
    while machine.stage != "confirm":
        for name, frame in machine.requests().items():
            assert machine.receive(name, crew.service.reply(crew.users.index(name), 9, frame))
        machine.advance()
    sets = [(True,) * 4, (True,) * 3 + (False,)]
    first, second = (ConfirmRequest(crew.query.sha256, flags).encode() for flags in sets)
    return first, second


def test_two_sets_of_survivors_at_the_same_moment_are_never_both_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may speak through two relays at once: a device still goes through the stages one by one.

    Signed twice, and answered twice at the last stage, shares of the self mask and of the mask keys of one device
    could be asked of different neighbours.
    """
    crew = Crew(tmp_path, 4, "masked")
    requests = masked_until_confirm(crew)
    confirm = SumDevice._confirm

    def slowly(self: SumDevice, request: ConfirmRequest) -> bytes:
        time.sleep(0.1)  # the checks of a large roster take as long
        return confirm(self, request)

    monkeypatch.setattr(SumDevice, "_confirm", slowly)
    with ThreadPoolExecutor(2) as pool:
        answers = [decode(a) for a in pool.map(lambda frame: crew.service.reply(0, 9, frame), requests)]
    assert sum(isinstance(answer, Confirm) for answer in answers) == 1
    assert [a.code for a in answers if isinstance(a, Refusal)] == [RefusalCode.SUM]
    crew.close()


def test_the_same_request_at_the_same_moment_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Crew(tmp_path, 4, "masked")
    ready(crew)
    told(crew, 0, crew.training)
    advertise = SumDevice._advertise

    def slowly(self: SumDevice, digest: bytes) -> bytes:
        time.sleep(0.1)
        return advertise(self, digest)

    monkeypatch.setattr(SumDevice, "_advertise", slowly)
    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(lambda _: crew.service.reply(0, 9, crew.collect), range(4)))
    assert len(answers) == 1 and not isinstance(decode(answers.pop()), Refusal)
    crew.close()


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["ideal", "masked"])
@pytest.mark.parametrize("error", [RuntimeError, OSError, MemoryError, ConfideError, UnicodeError])
def test_a_learner_that_fails_is_a_code_and_no_text(
    tmp_path: Path, transport: str, error: type[Exception], caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    crew = Crew(tmp_path, transport=transport, worker=Worker(threading.RLock()), pace=Pace(patience_s=5))

    def fail(_: str) -> None:
        raise error(PLANTED)

    crew.learner.on_update = fail
    ready(crew)
    assert isinstance(told(crew, 0, crew.training), Accepted)
    assert told(crew, 0, crew.collect) == Refusal(crew.query.sha256, "d00", RefusalCode.UNABLE)
    assert PLANTED not in caplog.text + "".join(capfd.readouterr())
    crew.learner.on_update = lambda _: None
    told(crew, 1, crew.training)
    assert not isinstance(told(crew, 1, crew.collect), Refusal), "the worker lives on"
    crew.close()


@pytest.mark.parametrize("part", ["hello", "refusal", "part", "refuse"])
def test_whatever_fails_inside_leaves_nothing_but_an_empty_frame_or_a_code(
    crew: Crew, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError(PLANTED)

    ready(crew)
    monkeypatch.setattr(crew.devices["d00"], part, fail)
    for data in (Greeting("3" * 64).encode(), crew.training, crew.collect):
        answer = crew.service.reply(0, 9, data)
        assert answer == b"" or decode(answer).encode() == answer
        assert PLANTED.encode() not in answer
    assert PLANTED not in caplog.text


def test_a_job_that_fails_in_a_way_nobody_foresaw_does_not_end_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    crew = Crew(tmp_path, worker=Worker(threading.RLock()), pace=Pace(patience_s=5))

    def fail(*_: object) -> Any:
        raise RuntimeError(PLANTED)

    ready(crew)
    monkeypatch.setattr(crew.devices["d00"], "part", fail)
    told(crew, 0, crew.training)
    assert told(crew, 0, crew.collect) == Refusal(crew.query.sha256, "d00", RefusalCode.UNABLE)
    told(crew, 1, crew.training)
    assert isinstance(told(crew, 1, crew.collect), Answer)
    assert PLANTED not in caplog.text + "".join(capfd.readouterr())
    crew.close()


# -- when it answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """One question over the real socket: when it was put, how long the answer took, what it was."""

    at_s: float
    latency_s: float
    message: Message


class Phone:
    """One device with an agent, a worker and a socket of its own."""

    def __init__(self, folder: Path, sockets: Path, seconds: float, pace: Pace, tick_s: float) -> None:
        self.crew = Crew(folder, 1, worker=Worker(threading.RLock()), pace=pace)
        self.crew.learner.seconds = {"d00": seconds}
        self.socket = RelaySocket(sockets / f"{folder.name}.sock", self.crew.service.reply, tick_s)
        ready(self.crew)

    def ask(self, frame: bytes) -> Heard:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as relay:
            relay.connect(os.fspath(self.socket.path))
            begun = time.monotonic()
            relay.sendall(RELAY_PREAMBLE + struct.pack("<IQI", 0, 9, len(frame)) + frame)
            with relay.makefile("rb") as stream:
                (size,) = struct.unpack("<I", stream.read(4))
                return Heard(begun, time.monotonic() - begun, decode(stream.read(size)))

    def collected(self) -> list[Heard]:
        """Ask for training, then every 0.25 s for the answer until it is there; return what was heard."""
        heard = [self.ask(self.crew.training)]
        for i in range(1, 40):
            time.sleep(max(0.0, heard[0].at_s + 0.25 * i - time.monotonic()))
            heard.append(self.ask(self.crew.collect))
            if isinstance(heard[-1].message, Answer):
                break
        return heard

    def close(self) -> None:
        self.socket.close()
        self.crew.close()


@pytest.fixture
def sockets() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="confide-test-"))
    yield folder
    shutil.rmtree(folder)


def two_phones(tmp_path: Path, sockets: Path, pace: Pace, tick_s: float) -> list[list[Heard]]:
    """Return what is heard of two devices at the same time, of which one trains 0.05 s and the other 0.8 s."""
    phones = [Phone(tmp_path / f"p{i}", sockets, s, pace, tick_s) for i, s in enumerate((0.05, 0.8))]
    with ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(Phone.collected, phones))
    for phone in phones:
        phone.close()
    return heard


def test_the_times_of_answers_do_not_tell_how_long_training_took(tmp_path: Path, sockets: Path) -> None:
    """Statistic: the largest difference, over all questions in their order, of the two devices' times from question to
    answer; and that of the times from the word to train to the answer. Both stay within `TOLERANCE_S`, less than a
    tick, where the trainings differ by 0.75 s. Every answer comes at its tick: latency in [k tick, k tick + tolerance].
    """
    quick, slow = two_phones(tmp_path, sockets, Pace(hold_s=HOLD_S), TICK_S)
    kinds = [[type(h.message).__name__ for h in heard] for heard in (quick, slow)]
    assert kinds[0] == kinds[1]
    assert kinds[0] == ["Accepted", *["Refusal"] * (len(quick) - 2), "Answer"] and len(quick) >= 6
    differences = [abs(a.latency_s - b.latency_s) for a, b in zip(quick, slow, strict=True)]
    assert max(differences) < TOLERANCE_S, differences
    ends = [h[-1].at_s + h[-1].latency_s - h[0].at_s for h in (quick, slow)]
    assert abs(ends[0] - ends[1]) < TOLERANCE_S
    for one in (*quick, *slow):
        assert one.latency_s >= TICK_S and one.latency_s % TICK_S < TOLERANCE_S


def test_without_hold_and_tick_the_times_do_tell(tmp_path: Path, sockets: Path) -> None:
    """The positive control of the test above."""
    quick, slow = two_phones(tmp_path, sockets, Pace(), 0.0)
    ends = [h[-1].at_s + h[-1].latency_s - h[0].at_s for h in (quick, slow)]
    assert ends[1] - ends[0] > 0.4 and len(slow) > len(quick)
    assert min(h.latency_s for h in (*quick, *slow)) < TICK_S


def test_accepted_is_sent_before_training_begins_to_count(tmp_path: Path, sockets: Path) -> None:
    phone = Phone(tmp_path / "p", sockets, 1.0, Pace(), 0.0)
    heard = phone.ask(phone.crew.training)
    assert isinstance(heard.message, Accepted) and heard.latency_s < 0.5
    phone.close()


@pytest.mark.parametrize("transport", ["ideal", "masked"])
def test_an_early_collection_says_busy_whatever_the_state(tmp_path: Path, transport: str) -> None:
    """Still waiting, training, trained, failed, refused after all: byte for byte the same until `hold_s` has passed."""
    now = [100.0]
    crew = Crew(tmp_path, 5, transport)
    lock = threading.RLock()
    crew.service = AgentService(
        list(crew.devices.values()), crew.deliveries, Worker(lock), Pace(hold_s=10.0), clock=lambda: now[0]
    )
    going_on, may_end = threading.Event(), threading.Event()

    def act(user: str) -> None:
        if user == "d02":
            raise RuntimeError(PLANTED)
        if user == "d03":
            going_on.set()
            assert may_end.wait(10)

    crew.learner.on_update = act
    ready(crew)
    crew.devices["d01"].directory = None  # refuses a masked sum only when it comes to it
    for place in range(5):  # d00 trains, d01 does or refuses, d02 fails, d03 is training, d04 waits
        assert isinstance(told(crew, place, crew.training), Accepted)
    assert going_on.wait(10)
    for seconds in (0.0, 5.0, 9.999):
        now[0] = 100.0 + seconds
        for place, user in enumerate(crew.users):
            busy = Refusal(crew.query.sha256, user, RefusalCode.BUSY)
            begun = time.perf_counter()
            assert told(crew, place, crew.collect) == busy
            assert time.perf_counter() - begun < 0.1
    may_end.set()
    now[0] = 110.0
    while isinstance(last := told(crew, 4, crew.collect), Refusal):
        assert last.code == RefusalCode.BUSY
        time.sleep(0.01)
    codes = [getattr(told(crew, place, crew.collect), "code", "") for place in range(5)]
    assert codes == ["", RefusalCode.DIRECTORY if transport == "masked" else "", RefusalCode.UNABLE, "", ""]
    crew.close()
