"""What a host that dies under Flower needs again is on the disk, and no more than that."""

from __future__ import annotations

import struct
from pathlib import Path

from privacy.canonical import sha256_hex
from privacy.session import Accepted, Delivery, Received, Training, digest_of
from privacy.wire import decode_request
from simulation.relayed import KEPT_DELIVERIES, remembered
from tests.privacy.secagg_cohort import masked_query


class Agents:
    """Agents that take what they are given and note it; `full` of them refuses to train."""

    def __init__(self, full: int = -1) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self._full = full

    def reply(self, place: int, node_id: int, data: bytes) -> bytes:
        del node_id
        self.heard.append((place, data))
        request, name = decode_request(data), f"u{place}"
        if isinstance(request, Delivery):
            return Received(name, digest_of(request.items)).encode()
        assert isinstance(request, Training)
        return b"" if place == self._full else Accepted(sha256_hex(request.query_bytes), name).encode()


def word(attempt: int) -> bytes:
    return Training(masked_query(5 + attempt).to_bytes()).encode()


def parcel(i: int) -> bytes:
    return Delivery((b"\x02" + bytes([i]),)).encode()


def test_a_host_started_again_is_told_what_the_dead_one_had_taken(tmp_path: Path) -> None:
    reply = remembered(Agents(full=2).reply, tmp_path / "0")
    for place in range(4):
        reply(place, 9, parcel(1))
    for attempt in (0, 1):
        reply(0, 9, parcel(2 + attempt))
        for place in (3, 0, 2, 3):
            reply(place, 9, word(attempt))
    again = Agents()
    assert remembered(again.reply, tmp_path / "0", again=True)
    parcels = [(0, parcel(i)) for i in (1, 2, 3)]
    assert again.heard == [*parcels, (3, word(1)), (0, word(1))], "each once, of the newest query, not who refused"


def test_what_comes_after_it_was_started_again_is_kept_as_well(tmp_path: Path) -> None:
    reply = remembered(Agents().reply, tmp_path / "0")
    for i in range(KEPT_DELIVERIES + 3):
        reply(0, 9, parcel(i))
    reply(1, 9, word(0))
    second = remembered(Agents().reply, tmp_path / "0", again=True)
    second(2, 9, word(0))
    second(1, 9, word(0))
    second(2, 9, parcel(99))
    third = Agents()
    remembered(third.reply, tmp_path / "0", again=True)
    kept = [(0, parcel(i)) for i in (*range(4, KEPT_DELIVERIES + 3), 99)]
    assert third.heard == [*kept, (1, word(0)), (2, word(0))]


def test_half_a_place_was_answered_to_nobody_and_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    remembered(Agents().reply, tmp_path / "0")(1, 9, word(0))
    with (tmp_path / "0" / "places").open("ab") as places:
        places.write(struct.pack("<I", 7)[:3])
    agents = Agents()
    remembered(agents.reply, tmp_path / "0", again=True)
    assert agents.heard == [(1, word(0))]
    remembered(agents.reply, tmp_path / "0")
    other = Agents()
    remembered(other.reply, tmp_path / "0", again=True)
    assert other.heard == []
