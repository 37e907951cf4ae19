"""The loop of a round against a courier by hand: who is asked, what counts, what is lost, what is asked again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.adapter import state_sha256
from privacy.answer import make_answer
from privacy.canonical import sha256_hex
from privacy.errors import CohortTooSmall, ConfideError
from privacy.fixedpoint import from_ring
from privacy.ledger import Ledger
from privacy.session import Accepted, Received, Training, digest_of
from privacy.wire import Refusal, RefusalCode, decode, decode_request
from server.campaign import Asked, Campaign, CampaignPlan
from server.optimizer import FedAvg
from server.rounds import Deadlines, Done, Rounds, Watch, scheduled_dropouts
from tests.agents_by_hand import BASIS, LAYOUT, SERVER_KEY, Crew

N = 6
STAGES = {"ideal": ("answer",), "masked": ("advertise", "shares", "mask", "confirm", "unmask")}
Change = Callable[[str, str, bytes], Sequence[tuple[str, bytes]]]
"""(action, device, genuine answer) -> what arrives: (who it seems to be from, frame) in order."""


def as_it_is(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
    return [(device, frame)]


class HandCourier:
    """Brings frames to a crew and its answers back, changed by `change`. Keeps who was asked what, and when."""

    def __init__(self, crew: Crew, change: Change = as_it_is) -> None:
        self.crew, self.change = crew, change
        self.asked: dict[str, list[list[str]]] = defaultdict(list)
        self.there: Callable[[], Sequence[str]] = lambda: crew.users
        self.deadlines: list[tuple[str, float]] = []
        self.late: list[tuple[str, bytes]] = []

    def greet(self, offered: Sequence[str], invited: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(reversed(list(self.there())), self.crew.deliveries.held(offered))

    def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
        self.asked[action].append(sorted(frames))
        self.deadlines.append((action, deadline_s))
        for device, frame in frames.items():
            answer = self.crew.service.reply(self.crew.users.index(device), 9, frame)
            for seems, data in self.change(action, device, answer):
                done(seems, data)


class Notes(Watch):
    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.heard: list[tuple[str, str]] = []
        self.survivors: list[list[str]] = []

    def answered(self, asked: Asked, name: str, device_id: str) -> None:
        self.heard.append((name, device_id))

    def closed(self, asked: Asked, survivors: Sequence[str], seconds: float) -> None:
        self.survivors.append(list(survivors))

    def lost(self, asked: Asked, reason: str) -> None:
        self.reasons.append(reason)


def plan_for(crew: Crew, **changes: Any) -> CampaignPlan:
    plan = CampaignPlan(
        federation="test",
        campaign="first",
        rounds=1,
        cohort=N,
        personas=0,
        slot_dim=LAYOUT.dim,
        clip_norm=crew.query.clip_norm,
        noise_multiplier=crew.query.noise_multiplier,
        transport=crew.query.transport,
        limits=crew.query.limits,
        optimizer=FedAvg(),
        basis_sha256=BASIS.sha256,
        policy_sha256=crew.policy.sha256,
        seed=3,
        directory_sha256=crew.directory.sha256,
    )
    return replace(plan, **changes)


def release_hash(slots: Any) -> str:
    return state_sha256(BASIS.sha256, LAYOUT, [LAYOUT.unflatten(row) for row in slots])


@contextmanager
def campaign_in(folder: Path, crew: Crew, **changes: Any) -> Iterator[Campaign]:
    folder.mkdir(exist_ok=True)
    with Ledger(folder / "federation.jsonl", SERVER_KEY, {"federation": "test", "owner": "federation"}) as ledger:
        keys = {user: key.public_key() for user, key in crew.keys.items()}
        yield Campaign(plan_for(crew, **changes), folder / "rounds", ledger, crew.users, release_hash, keys)


def rounds_over(campaign: Campaign, courier: Any, **changes: Any) -> Rounds:
    settings: dict[str, Any] = {
        "deadlines": Deadlines(stage=5.0, training=2.0, again=0.01, greeting=0.1),
        "watch": Notes(),
    }
    return Rounds(campaign, courier, BASIS.to_bytes(), lambda start: start.signed(SERVER_KEY), **settings | changes)


class Played:
    """One campaign of a crew, run to its end."""

    def __init__(self, tmp_path: Path, transport: str = "ideal", change: Change = as_it_is, **changes: Any) -> None:
        plan = {name: changes.pop(name) for name in ("rounds",) if name in changes}
        self.crew = Crew(tmp_path / "crew", N, transport)
        self.courier, self.notes = HandCourier(self.crew, change), Notes()
        self.folder = tmp_path / "server"
        try:
            with campaign_in(self.folder, self.crew, **plan) as campaign:
                rounds_over(campaign, self.courier, watch=self.notes, **changes).run()
                self.sums = campaign.sums
        finally:
            self.crew.close()

    def total(self, survivors: Sequence[str], query: Any) -> Any:
        crew = self.crew
        vectors = [
            make_answer(crew.learner.update(u, {}, query, 0), query, u, crew.noise_key(u)).vector for u in survivors
        ]
        return from_ring(np.sum(vectors, axis=0, dtype=np.uint32))


def stored_total(folder: Path) -> Any:
    from server.campaign import _stored_sum

    (path,) = sorted((folder / "rounds").glob("*.sum"))
    return _stored_sum(path)


# -- who is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", STAGES)
def test_a_round_goes_through_its_stages_and_the_sum_is_exact(tmp_path: Path, transport: str) -> None:
    played = Played(tmp_path, transport)
    assert list(played.courier.asked) == ["release", "fit", *STAGES[transport]]
    assert all(asked == [played.crew.users] for asked in played.courier.asked.values())
    total, heads = stored_total(played.folder)
    assert sorted(heads) == played.crew.users
    assert np.array_equal(total, played.total(played.crew.users, played.sums[0].query))
    assert played.notes.survivors == [played.crew.users]


def test_only_who_answered_a_stage_is_asked_at_the_next(tmp_path: Path) -> None:
    """With 12 devices and a floor of 9, one leaves at each of three steps."""
    gone = {"fit": "d00", "advertise": "d01", "shares": "d02"}

    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        return [] if gone.get(action) == device else [(device, frame)]

    crew = Crew(tmp_path / "crew", 12, "masked")
    courier = HandCourier(crew, change)
    with campaign_in(tmp_path / "server", crew, cohort=12) as campaign:
        rounds_over(campaign, courier).run()
        assert campaign.sums[0].survivors == 9
    everybody, expected = set(crew.users), {}
    for stage in ("release", "fit", *STAGES["masked"]):
        expected[stage] = [sorted(everybody)]
        everybody -= {gone.get(stage, "")}
    assert courier.asked == expected
    crew.close()


@pytest.mark.parametrize("fault", ["of something else", "silent"])
def test_who_lacks_something_gets_just_that_and_who_does_not_receive_is_not_asked_to_train(
    tmp_path: Path, fault: str
) -> None:
    crew = Crew(tmp_path / "crew", N)
    crew.deliveries.take(crew.items[:1])
    parcels: list[bytes] = []

    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if action == "release" and device == "d00":
            return [] if fault == "silent" else [(device, Received(device, digest_of(())).encode())]
        return [(device, frame)]

    class Noting(HandCourier):
        def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
            parcels.extend(frames.values() if action == "release" else ())
            super().exchange(action, frames, deadline_s, done)

    courier = Noting(crew, change)
    with campaign_in(tmp_path / "server", crew) as campaign:
        rounds_over(campaign, courier).run()
    items = decode_request(parcels[0]).items  # type: ignore[union-attr]
    assert len(items) == 2 and crew.offered[0] not in {sha256_hex(item) for item in items}  # start and history
    assert courier.asked["fit"] == [crew.users[1:]]
    crew.close()


def test_relays_that_only_just_start_cost_no_attempt(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "crew", N)
    courier, greetings = HandCourier(crew), iter([[], crew.users[:2], crew.users])
    courier.there = lambda: next(greetings)
    with campaign_in(tmp_path / "server", crew) as campaign:
        rounds_over(campaign, courier).run()
        assert campaign.sums[0].query.attempt == 0 and campaign.sums[0].survivors == N
    crew.close()


def test_where_too_few_are_there_nobody_trains_and_nobody_pays(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "crew", N)
    courier = HandCourier(crew)
    courier.there = lambda: crew.users[:4]
    with campaign_in(tmp_path / "server", crew) as campaign, pytest.raises(CohortTooSmall):
        rounds_over(campaign, courier).run()
    assert crew.learner.trained == [] and "fit" not in courier.asked
    assert all(not list(device.ledger.account.charged()) for device in crew.devices.values())
    crew.close()


# -- what counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", STAGES)
def test_what_is_late_repeated_foreign_or_garbage_changes_nothing(tmp_path: Path, transport: str) -> None:
    """Each answer comes with everything that was ever said before, garbage, strangers, others' answers, and twice."""
    before: list[tuple[str, bytes]] = []
    other = "ab" * 32

    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        noise: list[tuple[str, bytes]] = [
            ("stranger", frame),
            ("stranger", Refusal(other, "stranger", RefusalCode.BUSY).encode()),
            ("d05" if device != "d05" else "d04", frame),
            (device, b""),
            (device, b"garbage"),
            (device, frame[:-1]),
            (device, frame + b"x"),
            (device, Refusal(other, device, RefusalCode.BUSY).encode()),
            (device, Refusal(other, device, RefusalCode.UNABLE).encode()),
            (device, Accepted(other, device).encode()),
            (device, Refusal(other, "stranger", RefusalCode.BUDGET).encode()),
            *before[-40:],
        ]
        before.append((device, frame))
        again = Refusal(decode_query_hash(frame), device, RefusalCode.BUSY).encode()
        return [*noise, (device, frame), *noise, (device, frame), (device, again)]

    played = Played(tmp_path, transport, change)
    total, heads = stored_total(played.folder)
    assert sorted(heads) == played.crew.users
    assert np.array_equal(total, played.total(played.crew.users, played.sums[0].query))
    assert all(len(asked) == 1 for asked in played.courier.asked.values()), "nobody is asked twice"
    assert len(played.notes.heard) == len(set(played.notes.heard)), "nobody is counted twice"
    assert {device for _, device in played.notes.heard} == set(played.crew.users)


def decode_query_hash(frame: bytes) -> str:
    return getattr(decode(frame), "query_sha256", "cd" * 32)


def test_the_clock_of_a_stage_and_of_training(tmp_path: Path) -> None:
    """Busy devices are asked again, only they, until they answer; the deadline of a stage goes to the courier."""
    busy = {"d01": 3, "d04": 1}

    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if action == "answer" and busy.get(device, 0):
            busy[device] -= 1
            frame = Refusal(decode_query_hash(frame), device, RefusalCode.BUSY).encode()
        return [(device, frame)]

    played = Played(tmp_path, "ideal", change)
    assert played.courier.asked["answer"] == [played.crew.users, ["d01", "d04"], ["d01"], ["d01"]]
    assert {deadline for _, deadline in played.courier.deadlines} == {5.0}
    assert played.sums[0].survivors == N


def test_after_the_deadline_of_training_who_is_busy_is_out(tmp_path: Path) -> None:
    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if action == "answer" and device == "d00":
            frame = Refusal(decode_query_hash(frame), device, RefusalCode.BUSY).encode()
        return [(device, frame)]

    begun = time.monotonic()
    played = Played(tmp_path, "ideal", change, deadlines=Deadlines(5.0, 0.1, 0.4, 0.05))
    assert 0.5 < time.monotonic() - begun < 10
    assert 4 <= len(played.courier.asked["answer"]) <= 10
    assert played.notes.survivors == [played.crew.users[1:]]


# -- what is lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["fit", "answer"])
def test_where_every_device_refuses_there_is_one_clear_error(tmp_path: Path, action: str) -> None:
    def change(at: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if at == action:
            frame = Refusal(decode_query_hash(frame), device, RefusalCode.UNABLE).encode()
        return [(device, frame)]

    with pytest.raises(ConfideError, match=r"every device refused: device\.unable .*disk") as error:
        Played(tmp_path, "ideal", change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("action", ["fit", "answer"])
def test_one_device_that_refuses_where_the_others_are_silent_does_not_end_the_campaign(
    tmp_path: Path, action: str
) -> None:
    first = [True]

    def change(at: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if at == action and first[0]:
            if device != "d00":
                first[0] = device != "d05"
                return []
            frame = Refusal(decode_query_hash(frame), device, RefusalCode.UNABLE).encode()
        return [(device, frame)]

    played = Played(tmp_path, "ideal", change)
    assert len(played.notes.reasons) == 1 and played.sums[0].query.attempt == 1


@pytest.mark.parametrize("action", ["fit", "answer"])
def test_an_attempt_that_devices_know_and_a_restored_server_does_not_is_lost(tmp_path: Path, action: str) -> None:
    stale = set[str]()

    def change(at: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if at == action and device not in stale:
            stale.add(device)
            frame = Refusal(decode_query_hash(frame), device, RefusalCode.STALE).encode()
        return [(device, frame)]

    played = Played(tmp_path, "ideal", change)
    assert len(played.notes.reasons) == 1 and played.sums[0].query.attempt == 1


@pytest.mark.parametrize(("transport", "at"), [("ideal", "answer"), ("masked", "shares"), ("masked", "unmask")])
def test_with_too_few_the_attempt_is_lost_and_another_one_follows(tmp_path: Path, transport: str, at: str) -> None:
    lost = [2]

    def change(action: str, device: str, frame: bytes) -> Sequence[tuple[str, bytes]]:
        if action == at and device in ("d00", "d01") and lost[0]:
            lost[0] -= 1
            return []
        return [(device, frame)]

    played = Played(tmp_path, transport, change)
    query = played.sums[0].query
    assert (query.round, query.attempt) == (0, 1)
    assert len(played.notes.reasons) == 1
    total, _ = stored_total(played.folder)
    assert np.array_equal(total, played.total(played.crew.users, query)), "new noise, and no part of the lost one"


def test_nobody_there_is_a_lost_attempt_too_and_in_the_end_an_error(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "crew", N)
    courier, notes = HandCourier(crew), Notes()
    courier.there = list
    with campaign_in(tmp_path / "server", crew) as campaign, pytest.raises(CohortTooSmall, match="3 attempts"):
        rounds_over(campaign, courier, watch=notes).run()
    assert len(notes.reasons) == 3
    crew.close()


@pytest.mark.parametrize("transport", STAGES)
def test_what_is_lost_by_schedule_is_asked_and_answered_and_not_in_the_sum(tmp_path: Path, transport: str) -> None:
    played = Played(tmp_path, transport, dropped=lambda asked: scheduled_dropouts(5, 0.2, asked))
    stage = STAGES[transport][0] if transport == "ideal" else "mask"
    assert played.courier.asked[stage] == [played.crew.users], "they trained, paid and sent"
    assert played.sums[0].survivors == N - 1
    ((left,),) = [set(played.crew.users) - set(s) for s in played.notes.survivors]
    total, heads = stored_total(played.folder)
    assert left not in heads
    assert np.array_equal(total, played.total(sorted(heads), played.sums[0].query))


# -- what is resumed ------------------------------------------------------------------------------------------------


class Gone(Exception):
    """The server dies: nothing catches this."""


def test_a_resumed_campaign_asks_the_stored_question(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "crew", N)
    words: list[bytes] = []

    class Dying(HandCourier):
        def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
            words.extend(frames.values() if action == "fit" else ())
            if action == "answer" and len(words) == N:
                raise Gone
            super().exchange(action, frames, deadline_s, done)

    with campaign_in(tmp_path / "server", crew) as campaign, pytest.raises(Gone):
        rounds_over(campaign, Dying(crew)).run()
    with campaign_in(tmp_path / "server", crew) as campaign:
        rounds_over(campaign, Dying(crew)).run()
        assert campaign.sums[0].query.attempt == 0
    assert len(words) == 2 * N and len(set(words)) == 1
    assert isinstance(decode_request(words[0]), Training)
    for device in crew.devices.values():
        assert len(list(device.ledger.account.charged())) == 1
    crew.close()


def test_who_is_invited_does_not_depend_on_the_order_in_which_nodes_are_found(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "crew", 9)
    invited = []
    for i, order in enumerate((list(crew.users), crew.users[::-1], crew.users[4:] + crew.users[:4])):
        courier = HandCourier(crew)
        courier.there = lambda order=order: order  # type: ignore[misc]
        with campaign_in(tmp_path / f"server{i}", crew) as campaign:
            campaign.directory = sorted(order)
            invited.append(campaign.ask().invited)
    assert len(set(invited)) == 1 and len(invited[0]) == N
    keys = {user: key.public_key() for user, key in crew.keys.items()}
    with Ledger(tmp_path / "l.jsonl", SERVER_KEY, {"federation": "test", "owner": "federation"}) as ledger:
        backwards = Campaign(plan_for(crew), tmp_path / "r", ledger, crew.users[::-1], release_hash, keys)
        assert backwards.ask().invited == invited[0]
    crew.close()
