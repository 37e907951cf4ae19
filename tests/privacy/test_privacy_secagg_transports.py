"""One loop, three transports, one integer sum; the graph's table; the directory of keys."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.canonical import canonical_json
from privacy.directory import Directory, Member, open_directory, signed_directory
from privacy.errors import CohortTooSmall, ConfigError, SignatureInvalid, SumInvalid, WireError
from privacy.query import Cohort, Query
from privacy.secagg.clear import ClearDevice, ClearSum
from privacy.secagg.device import SumDevice
from privacy.secagg.graph import COMPLETE_UP_TO, Links, Ring, least_unlikely, links_of, ring
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.messages import Begin
from privacy.secagg.server import SumServer
from privacy.secagg.table import COHORTS, ring_table
from privacy.wire import Answer, Refusal, decode
from tests.privacy.secagg_cohort import directory_of, exact_sum, masked_query, name_of, signing_key, vectors_of
from tests.privacy.test_privacy_docs import PROTOCOL_TEXT

TRANSPORTS = ("masked", "ideal", "off")
Devices = dict[str, SumDevice] | dict[str, ClearDevice]


def summed(transport: str, vectors: dict[str, NDArray[np.uint32]], gone: str) -> SumServer | ClearSum:
    """Drive one transport with the loop that fits all; the device `gone` answers nothing."""
    n, dim = len(vectors), next(iter(vectors.values())).size
    query = replace(masked_query(n, dim), transport=transport)
    names, directory, head = sorted(vectors), directory_of(n), "a" * 64
    machine: SumServer | ClearSum
    devices: Devices
    if transport == "masked":
        machine = SumServer(query, names, directory)
        devices = {
            name: SumDevice(query, name, directory, signing_key(name), vectors[name], head, MemoryJournal())
            for name in names
        }
    else:
        machine = ClearSum(query, names, directory)
        devices = {name: ClearDevice(query, name, vectors[name], signing_key(name), head) for name in names}
    while not machine.finished:
        with pytest.raises(SumInvalid):
            _ = machine.total
        for name, request in machine.requests().items():
            if name != gone:
                assert machine.receive(name, devices[name].reply(request))
        machine.advance()
    assert machine.requests() == {} and machine.stage == "finished"
    assert not machine.receive(names[0], b"")
    with pytest.raises(ConfigError):
        machine.advance()
    return machine


def test_three_transports_one_sum() -> None:
    vectors = vectors_of(6, 11, seed=3)
    machines = [summed(transport, vectors, name_of(4)) for transport in TRANSPORTS]
    survivors = tuple(name for name in sorted(vectors) if name != name_of(4))
    for machine in machines:
        assert np.array_equal(machine.total, exact_sum(vectors, survivors))
        assert machine.total.dtype == np.int64
        assert machine.survivors == survivors
        assert machine.heads == dict.fromkeys(survivors, "a" * 64)


def clear_query(n: int = 4) -> Query:
    return replace(masked_query(n, 3), transport="ideal")


def test_a_sum_in_the_clear_below_its_floor_is_none() -> None:
    query = clear_query()
    machine = ClearSum(query, [name_of(i) for i in range(4)], None)
    device = ClearDevice(query, name_of(0), np.zeros(3, np.uint32))
    assert machine.receive(name_of(0), device.reply(machine.requests()[name_of(0)]))
    with pytest.raises(CohortTooSmall):
        machine.advance()
    assert machine.stage == "aborted" and not machine.finished


def test_a_sum_in_the_clear_takes_signed_answers_of_its_devices_once() -> None:
    query = clear_query()
    names = [name_of(i) for i in range(4)]
    machine = ClearSum(query, names, directory_of(4))
    good = ClearDevice(query, names[0], np.ones(3, np.uint32), signing_key(names[0]))
    answer = good.reply(Begin(query.sha256).encode())
    bad = [
        ClearDevice(query, names[0], np.ones(3, np.uint32)),
        ClearDevice(query, names[0], np.ones(3, np.uint32), signing_key(names[1])),
        ClearDevice(query, names[0], np.ones(2, np.uint32), signing_key(names[0])),
        ClearDevice(query, names[1], np.ones(3, np.uint32), signing_key(names[1])),
        ClearDevice(replace(query, round=9), names[0], np.ones(3, np.uint32), signing_key(names[0])),
    ]
    begins = [Begin(query.sha256).encode(), Begin(replace(query, round=9).sha256).encode()]
    for device in bad:
        for begin in begins:
            assert not machine.receive(names[0], device.reply(begin))
    assert not machine.receive("stranger", answer) and not machine.receive(names[0], answer[:-1])
    assert machine.receive(names[0], answer) and not machine.receive(names[0], answer)
    for begin in (begins[1], b"", answer):
        assert isinstance(decode(good.reply(begin)), Refusal)


def test_a_vector_of_a_private_sum_never_goes_in_the_clear() -> None:
    query = masked_query(4, 3)
    with pytest.raises(ConfigError):
        ClearDevice(query, name_of(0), np.zeros(3, np.uint32))
    with pytest.raises(ConfigError):
        ClearSum(query, [name_of(0)], None)
    with pytest.raises(ConfigError):
        SumServer(clear_query(), [name_of(i) for i in range(4)], directory_of(4))
    machine = SumServer(query, [name_of(i) for i in range(4)], directory_of(4))
    bare = Answer(query.sha256, name_of(0), np.zeros(3, np.uint32)).signed(signing_key(name_of(0)))
    assert not machine.receive(name_of(0), bare.encode())


def test_the_table_of_rings_is_the_protocols() -> None:
    assert f"<!-- ring:begin -->\n{ring_table()}<!-- ring:end -->" in PROTOCOL_TEXT


@pytest.mark.parametrize("n", COHORTS)
def test_the_bounds_of_a_ring_hold_and_no_smaller_one_does(n: int) -> None:
    """The hypergeometric tails again, in floats of this test's own, from the law and not from the code."""
    cohort, links = Cohort(n), links_of(Cohort(n))
    m, c, h, f, t = cohort.min_survivors, cohort.max_colluding, links.reach, links.run_floor, links.threshold

    def tail(population: int, marked: int, drawn: int, least: int) -> float:
        ways = sum(comb(marked, i) * comb(population - marked, drawn - i) for i in range(least, drawn + 1))
        return ways / comb(population, drawn)

    assert n * tail(m, c, h, f) <= 2**-40 < n * tail(m, c, h, f - 1)
    assert n * (1 - tail(n, n - n // 5, h, f)) <= 2**-20 * (1 + 1e-9)
    assert t == 2 * f - 1 or n * tail(m - 1, c, 2 * h, t) <= 2**-40
    assert t <= 2 * f - 1 and 2 * h < m
    smaller = least_unlikely(m, c, h - 1, n, 40)
    assert smaller > h - 1 or n * (1 - tail(n, n - n // 5, h - 1, smaller)) > 2**-20 * (1 - 1e-9)


def test_up_to_128_everybody_is_everybodys_neighbour() -> None:
    assert links_of(Cohort(COMPLETE_UP_TO)).complete and not links_of(Cohort(COMPLETE_UP_TO + 1)).complete
    assert ring(4, links_of(Cohort(5)), bytes(32)).neighbours(2) == (0, 1, 3)


def test_neighbours_on_a_ring_are_mutual_and_as_many_as_said() -> None:
    links = links_of(Cohort(150))
    some = ring(140, links, bytes(32))
    near = [some.neighbours(rank) for rank in range(140)]
    assert all(len(others) == 2 * links.reach and list(others) == sorted(others) for others in near)
    assert all(rank in near[other] and rank not in near[rank] for rank in range(140) for other in near[rank])
    assert ring(140, links, bytes([1]) * 32).order != some.order
    assert sorted(some.order) == list(range(140))


def test_the_run_rule_keeps_honest_survivors_connected_whoever_drops_out() -> None:
    """Small rings, every set of survivors and colluders: if the rule holds and no run has `run_floor` colluders, the
    honest survivors are one component. Dropping one from a run that is at its floor breaks the rule."""
    size, links = 9, Links(reach=3, run_floor=2, threshold=3)
    some = Ring(size, links, tuple(range(size)))
    met = 0
    for present in range(2**size):
        alive = [bool(present >> r & 1) for r in range(size)]
        if not some.every_run_holds(alive):
            assert any(sum(alive[(at + i) % size] for i in range(3)) < 2 for at in range(size))
            continue
        for colluding in range(2**size):
            if any(sum(colluding >> (at + i) % size & 1 for i in range(3)) >= 2 for at in range(size)):
                continue
            honest = {r for r in range(size) if alive[r] and not colluding >> r & 1}
            assert connected(honest, some)
            met += 1
    assert met > 900


def connected(ranks: set[int], some: Ring) -> bool:
    reached, todo = set[int](), [min(ranks)]
    while todo:
        rank = todo.pop()
        reached.add(rank)
        todo += [other for other in some.neighbours(rank) if other in ranks - reached]
    return reached == ranks


ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def test_a_directory_opens_only_under_its_root_key_and_only_unchanged() -> None:
    directory = directory_of(3)
    data = signed_directory(directory, ROOT_KEY)
    assert open_directory(data, ROOT_KEY.public_key()) == directory
    assert open_directory(data, ROOT_KEY.public_key()).sha256 == directory.sha256
    assert hash(directory) == hash(directory_of(3)) and len(directory) == 3 and list(directory) == sorted(directory)
    with pytest.raises(SignatureInvalid):
        open_directory(data, signing_key("other").public_key())
    for at in range(len(data)):
        with pytest.raises((SignatureInvalid, WireError, ConfigError)):
            open_directory(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], ROOT_KEY.public_key())


MEMBER = Member("a", signing_key("a").public_key().public_bytes_raw().hex(), "org")


@pytest.mark.parametrize(
    "changes",
    [
        {"device_id": "d\u0435vice"},  # a Cyrillic letter that looks like a Latin one
        {"device_id": "a b"},
        {"device_id": ""},
        {"public_key": "A" * 64},
        {"public_key": "0" * 63},
        {"organisation": "\u0430cme"},
        {"vetted": 1},
    ],
)
def test_members_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(MEMBER, **changes)


def test_a_name_or_a_key_stands_once_in_a_directory() -> None:
    other = replace(MEMBER, device_id="b")
    key = signing_key("b").public_key().public_bytes_raw().hex()
    assert Directory.of("f", [replace(other, public_key=key), MEMBER])["a"] == signing_key("a").public_key()
    for members in ((MEMBER, MEMBER), (MEMBER, other), (replace(other, public_key=key), MEMBER), ()):
        with pytest.raises(ConfigError):
            Directory("f", members)
    assert Directory.of("f", [MEMBER, replace(other, public_key=key, vetted=False)]).vetted == {"a"}


def test_other_forms_of_a_directory_are_refused() -> None:
    fields = json.loads(directory_of(2).to_bytes())
    row = fields["devices"][0]
    changes: list[dict[str, Any]] = [
        {"protocol": "confide-directory/2"},
        {"devices": {}},
        {"devices": [row, row]},
        {"devices": [row | {"more": 1}]},
        {"devices": [1]},
        {"federation": 1},
    ]
    for change in changes:
        with pytest.raises((WireError, ConfigError)):
            Directory.from_bytes(canonical_json(fields | change))
    twice = directory_of(2).to_bytes().replace(b'"federation":', b'"federation":"x","federation":')
    with pytest.raises(WireError):
        Directory.from_bytes(twice)
    with pytest.raises(WireError):
        open_directory(b"x" * (2**24 + 2**12 + 1), ROOT_KEY.public_key())
