"""What a server, a network or another device may try: each try is refused, changes nothing, or does no harm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy.directory import Directory
from privacy.errors import CohortTooSmall, ConfideError, ConfigError, PolicyRefused, SumInvalid
from privacy.query import Cohort
from privacy.secagg import keys
from privacy.secagg.device import SumDevice
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.messages import (
    SEALED_BYTES,
    Advertise,
    Begin,
    Confirm,
    ConfirmRequest,
    Masked,
    MaskRequest,
    RosterRequest,
    Row,
    Shares,
    Unmask,
    UnmaskRequest,
)
from privacy.secagg.roster import leaf, merkle_root
from privacy.secagg.server import SumServer
from privacy.wire import Refusal, RefusalCode, decode, decode_request
from tests.privacy.secagg_cohort import STAGES, Round, directory_of, exact_sum, masked_query, name_of, signing_key

N = 5
VICTIM = name_of(2)


def until(stage: str, n: int = N, **settings: Any) -> Round:
    """Return a cohort whose server waits for the answers of `stage`."""
    cohort = Round(n, 2, **settings)
    while cohort.server.stage != stage:
        cohort.run_stage()
    return cohort


def refused(device: SumDevice, frame: bytes, code: RefusalCode = RefusalCode.SUM) -> bool:
    answer = decode(device.reply(frame))
    return isinstance(answer, Refusal) and answer.code == code


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def finish(cohort: Round, gone: tuple[str, ...] = ()) -> None:
    """Run to the end and check that the sum is exactly that of its survivors."""
    while not cohort.server.finished:
        cohort.run_stage(gone)
    assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.server.survivors))


@pytest.mark.parametrize("stage", STAGES)
def test_every_flipped_byte_of_an_answer_is_refused_and_changes_nothing(stage: str) -> None:
    cohort = until(stage)
    answer = cohort.devices[VICTIM].reply(cohort.server.requests()[VICTIM])
    for at in range(len(answer)):
        assert not cohort.server.receive(VICTIM, flipped(answer, at)), at
    assert cohort.server.receive(VICTIM, answer)
    finish(cohort)
    assert VICTIM in cohort.server.survivors and cohort.server.liars == {}


@pytest.mark.parametrize("stage", STAGES)
def test_every_flipped_byte_of_a_request_is_refused_and_changes_nothing_or_harms_only_a_share(stage: str) -> None:
    cohort = until(stage)
    request = cohort.server.requests()[VICTIM]
    sealed_at = len(request) - (N - 1) * SEALED_BYTES if stage == "mask" else len(request)
    for at in range(sealed_at):
        assert refused(cohort.devices[VICTIM], flipped(request, at)), at
    finish(cohort)
    assert VICTIM in cohort.server.survivors and len(cohort.server.survivors) == N


def test_every_flipped_byte_of_a_sealed_share_costs_that_share_alone() -> None:
    """A sealed message that does not open is left out; the sum is the same as long as shares enough are left."""
    size = len(until("mask").server.requests()[VICTIM])
    for at in range(size - (N - 1) * SEALED_BYTES, size):
        cohort = until("mask", remember=True)
        cohort.to_device = lambda stage, name, frame, at=at: (
            flipped(frame, at) if (stage, name) == ("mask", VICTIM) else frame
        )
        finish(cohort)
        assert len(cohort.server.survivors) == N and cohort.server.liars == {}


def test_cut_and_lengthened_messages_are_refused() -> None:
    for stage in STAGES:
        cohort = until(stage)
        request = cohort.server.requests()[VICTIM]
        for bad in (request[:-1], request + b"\x00", request + request, b"", request[:9]):
            assert refused(cohort.devices[VICTIM], bad)
        answer = cohort.devices[VICTIM].reply(request)
        assert not any(cohort.server.receive(VICTIM, bad) for bad in (answer[:-1], answer + b"\x00", b""))


@pytest.mark.parametrize("declared", [2**14 + 1, 2**28, 2**32 - 1])
def test_declared_lengths_are_refused_before_anything_of_that_size_is_made(declared: int) -> None:
    size = declared.to_bytes(4, "little")
    for stage in STAGES[1:]:
        cohort = until(stage)
        request = cohort.server.requests()[VICTIM]
        answer = cohort.devices[VICTIM].reply(request)
        start = 9 + 32
        assert refused(cohort.devices[VICTIM], request[:start] + size + request[start + 4 :])
        start += 1 + len(VICTIM) + (32 if stage == "mask" else 0)
        assert not cohort.server.receive(VICTIM, answer[:start] + size + answer[start + 4 :])


OTHER_SUMS: list[dict[str, Any]] = [
    {"round": 2},
    {"attempt": 1},
    {"campaign": "second"},
    {"federation": "other"},
    {"release_sha256": "d" * 64},
    {"ledger_head": "d" * 64},
    {"policy_sha256": "d" * 64},
]


@pytest.mark.parametrize("changes", OTHER_SUMS, ids=lambda changes: next(iter(changes)))
def test_messages_of_another_sum_are_refused(changes: dict[str, Any]) -> None:
    """Round, attempt, run, federation, model, ledger or policy differ: so does ctx, which everything is bound to."""
    here, there = Round(N, 2), Round(N, 2, changes=changes)
    for stage in STAGES:
        for name, request in there.server.requests().items():
            assert refused(here.devices[name], request)
            answer = there.devices[name].reply(request)
            assert not here.server.receive(name, answer)
        assert here.server.stage == stage == there.server.stage
        here.run_stage()
        there.run_stage()
    assert np.array_equal(here.server.total, exact_sum(here.vectors, here.vectors))


def test_an_answer_relabelled_for_another_sum_does_not_verify() -> None:
    here, there = Round(N, 2), Round(N, 2, changes={"round": 2})
    answers = {name: there.devices[name].reply(frame) for name, frame in there.server.requests().items()}
    for name, answer in answers.items():
        message = decode(answer)
        assert isinstance(message, Advertise)
        moved = replace(message, query_sha256=here.query.sha256).encode()
        assert not here.server.receive(name, moved)


def test_one_device_that_holds_another_model_gets_no_masked_vector_out() -> None:
    """The server asks one device about another release: it sees rows signed for another ctx, and stops there."""
    cohort = Round(N, 2)
    other = replace(cohort.query, release_sha256="d" * 64)
    victim = cohort.device(VICTIM, query=other)
    assert refused(victim, cohort.server.requests()[VICTIM])
    cohort.run_stage((VICTIM,))
    answer = decode(victim.reply(Begin(other.sha256).encode()))
    assert isinstance(answer, Advertise)
    rows = {**cohort.server._rows, VICTIM: answer.row}
    request = roster_request(other.sha256, rows, VICTIM)
    assert refused(victim, request) and "verify" in victim.problem
    finish(cohort, (VICTIM,))
    assert VICTIM not in cohort.server.survivors


def roster_request(query_sha256: str, rows: dict[str, Row], reader: str) -> bytes:
    """Return the request that a server with these rows would send to `reader`, complete graph."""
    names = tuple(sorted(rows))
    root = merkle_root([leaf(name, rows[name]) for name in names])
    near = tuple(rows[name] for name in names if name != reader)
    return RosterRequest(query_sha256, names, root, (), near).encode()


def test_a_repeated_request_gets_identical_bytes_and_a_later_or_earlier_one_nothing() -> None:
    cohort = Round(N, 2)
    asked: list[tuple[bytes, bytes]] = []
    for _ in STAGES:
        request = cohort.server.requests()[VICTIM]
        cohort.run_stage()
        asked.append((request, next(f for s, n, way, f in reversed(cohort.seen) if n == VICTIM and way == "up")))
    for request, answer in asked:
        assert cohort.devices[VICTIM].reply(request) == answer
    fresh = Round(N, 2)
    for request, _ in asked[1:]:
        assert refused(fresh.devices[VICTIM], request)
    assert refused(fresh.devices[VICTIM], cohort.device(VICTIM).reply(asked[0][0]))


def test_an_answer_counts_once_only_from_its_device_and_only_at_its_stage() -> None:
    cohort = Round(N, 2)
    old: list[bytes] = []
    for _ in STAGES:
        answers = {name: cohort.devices[name].reply(f) for name, f in cohort.server.requests().items()}
        assert not any(cohort.server.receive(VICTIM, frame) for frame in old)
        assert not cohort.server.receive(VICTIM, answers[name_of(0)])
        assert not cohort.server.receive("stranger", answers[VICTIM])
        assert cohort.server.receive(VICTIM, answers[VICTIM])
        assert not cohort.server.receive(VICTIM, answers[VICTIM])
        old.append(answers[VICTIM])
        for name, answer in answers.items():
            cohort.server.receive(name, answer)
        cohort.server.advance()
    assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.vectors))
    with pytest.raises(ConfigError):
        cohort.server.advance()


def test_a_refusal_is_no_answer() -> None:
    cohort = Round(N, 2)
    assert not cohort.server.receive(VICTIM, Refusal(cohort.query.sha256, VICTIM, RefusalCode.UNABLE).encode())


def test_keys_that_a_server_swaps_or_puts_in_are_refused() -> None:
    cohort = until("shares")
    rows = dict(cohort.server._rows)
    a, b = name_of(0), name_of(1)
    own = X25519PrivateKey.generate().public_key().public_bytes_raw()
    for changed in (
        {a: rows[b], b: rows[a]},
        {a: replace(rows[a], mask_key=own)},
        {a: replace(rows[a], share_key=own)},
        {a: replace(rows[a], commitment=own)},
        {a: replace(rows[a], mask_key=rows[a].share_key, share_key=rows[a].mask_key)},
        {VICTIM: rows[a]},
    ):
        assert refused(cohort.devices[VICTIM], roster_request(cohort.query.sha256, rows | changed, VICTIM))
    finish(cohort)


def forged_row(cohort: Round, name: str, mask_key: bytes, share_key: bytes) -> Row:
    """Return a row that `name` signed: what a device of the server's own may advertise."""
    unsigned = Row(mask_key, share_key, bytes(32), b"")
    body = keys.ADVERTISED + Advertise(cohort.query.sha256, name, unsigned).encode()
    return replace(unsigned, signature=signing_key(name).sign(body))


def test_points_of_low_order_and_repeated_keys_are_refused_by_devices_and_left_out_by_the_server() -> None:
    good = X25519PrivateKey.generate().public_key().public_bytes_raw()
    low = bytes([1]) + bytes(31)
    liar = name_of(0)
    for mask_key, share_key in ((low, good), (good, low), (good, good)):
        cohort = until("shares")
        rows = cohort.server._rows | {liar: forged_row(cohort, liar, mask_key, share_key)}
        assert refused(cohort.devices[VICTIM], roster_request(cohort.query.sha256, rows, VICTIM))
        cohort = Round(N, 2)
        frame = Advertise(cohort.query.sha256, liar, forged_row(cohort, liar, mask_key, share_key)).encode()
        cohort.to_server = lambda stage, name, answer, frame=frame: frame if name == liar else answer
        finish(cohort)
        assert cohort.server.survivors == tuple(sorted(set(cohort.vectors) - {liar}))


def test_a_device_that_copies_the_key_of_another_takes_nobody_but_both_out() -> None:
    cohort = Round(7, 2)
    first, second = name_of(0), name_of(1)

    def copied(stage: str, name: str, answer: bytes) -> bytes:
        if stage != "advertise" or name != second:
            return answer
        row = cohort.server._rows[first]
        return Advertise(cohort.query.sha256, second, forged_row(cohort, second, row.mask_key, row.share_key)).encode()

    cohort.to_server = copied
    finish(cohort)
    assert cohort.server.survivors == tuple(sorted(set(cohort.vectors) - {first, second}))


def test_rosters_below_the_floor_unsorted_or_of_strangers_are_refused() -> None:
    cohort = until("shares", 6)
    rows, sha256 = dict(cohort.server._rows), cohort.query.sha256
    few = {name: rows[name] for name in sorted(rows)[: cohort.query.cohort.min_survivors - 1]}
    assert VICTIM in few
    assert refused(cohort.devices[VICTIM], roster_request(sha256, few, VICTIM))
    assert "floor" in cohort.devices[VICTIM].problem
    without = {name: row for name, row in rows.items() if name != VICTIM}
    assert refused(cohort.devices[VICTIM], roster_request(sha256, without, VICTIM))
    stranger = {("stranger" if name == name_of(0) else name): row for name, row in rows.items()}
    assert refused(cohort.devices[VICTIM], roster_request(sha256, stranger, VICTIM))
    right = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(right, RosterRequest)
    for names in (right.names[::-1], (right.names[0], *right.names[:-1])):
        assert refused(cohort.devices[VICTIM], replace(right, names=names).encode())
    assert refused(cohort.devices[VICTIM], replace(right, root=bytes(32)).encode())
    assert refused(cohort.devices[VICTIM], replace(right, proof=(bytes(32),)).encode())
    assert refused(cohort.devices[VICTIM], replace(right, rows=right.rows[:-1]).encode())
    finish(cohort)


def test_more_devices_than_invited_are_refused() -> None:
    """A cohort of 4 under a directory of 5: the fifth, however well it signs, makes the roster too long."""
    query = replace(masked_query(5, 2), cohort=Cohort(4))
    names = [name_of(i) for i in range(5)]
    devices = {
        name: SumDevice(
            query, name, directory_of(5), signing_key(name), np.zeros(2, np.uint32), "0" * 64, MemoryJournal()
        )
        for name in names
    }
    rows = {}
    for name, device in devices.items():
        answer = decode(device.reply(Begin(query.sha256).encode()))
        assert isinstance(answer, Advertise)
        rows[name] = answer.row
    assert refused(devices[VICTIM], roster_request(query.sha256, rows, VICTIM))
    with pytest.raises(ConfigError):
        SumServer(query, names, directory_of(5))


def test_sets_that_a_device_does_not_accept() -> None:
    """Below the floor, without the device, beyond those who took part, of another length."""
    cohort = until("mask", 6)
    request = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(request, MaskRequest)
    rank = cohort.server._roster.ranks[VICTIM]
    for flags in (
        (False,) * 6,
        tuple(r == rank or r < 3 for r in range(6)),
        tuple(r != rank for r in range(6)),
        (True,) * 5,
        (True,) * 7,
    ):
        near = sum(f for r, f in enumerate(flags) if r != rank)
        changed = replace(request, sharing=flags, sealed=(request.sealed * 2)[:near]).encode()
        assert refused(cohort.devices[VICTIM], changed)
    cohort.run_stage((name_of(5),))
    for flags in (
        tuple(r in (rank, 0, 1, 3) for r in range(6)),
        tuple(r != rank for r in range(6)),
        (True,) * 7,
    ):
        assert refused(cohort.devices[VICTIM], ConfirmRequest(cohort.query.sha256, flags).encode())
    finish(cohort, (name_of(5),))


def test_survivors_who_did_not_take_part_are_refused() -> None:
    cohort = until("shares", 7)
    cohort.run_stage((name_of(6),))
    cohort.run_stage()
    everybody = ConfirmRequest(cohort.query.sha256, (True,) * 7).encode()
    assert refused(cohort.devices[VICTIM], everybody) and "took part" in cohort.devices[VICTIM].problem


def test_two_sets_of_survivors_to_two_halves_unmask_nothing() -> None:
    """Equivocation: no set gets the signatures that any device wants to see, and no device signs twice."""
    cohort = until("confirm", 7)
    sets = [tuple(r != out for r in range(7)) for out in (0, 6)]
    asked = [ConfirmRequest(cohort.query.sha256, flags).encode() for flags in sets]
    signed: list[dict[int, bytes]] = [{}, {}]
    for rank in range(1, 6):
        half = rank % 2
        answer = decode(cohort.devices[name_of(rank)].reply(asked[half]))
        assert isinstance(answer, Confirm)
        signed[half][rank] = answer.signature
        assert refused(cohort.devices[name_of(rank)], asked[1 - half])
    assert {len(some) for some in signed} == {2, 3}
    for half in (0, 1):
        both = signed[half] | signed[1 - half]
        for some in (signed[half], both):
            flags = tuple(rank in some for rank in range(7))
            request = UnmaskRequest(cohort.query.sha256, flags, tuple(some[r] for r in sorted(some))).encode()
            for rank in signed[half]:
                assert refused(cohort.devices[name_of(rank)], request)


def test_too_few_forged_or_foreign_signatures_unmask_nothing() -> None:
    """A forged threshold: whatever a request says, a device wants q valid signatures of survivors on its own set."""
    cohort = until("unmask", 6)
    right = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(right, UnmaskRequest)
    assert sum(right.signers) == cohort.query.cohort.min_survivors == 5
    first = right.signers.index(True)
    fewer = replace(
        right,
        signers=tuple(s and r != first for r, s in enumerate(right.signers)),
        signatures=right.signatures[1:],
    )
    forged = replace(right, signatures=(bytes(64), *right.signatures[1:]))
    repeated = replace(right, signatures=(right.signatures[1], *right.signatures[1:]))
    nobody = UnmaskRequest(right.query_sha256, (False,) * 6, ())
    for bad in (fewer, forged, repeated, nobody):
        assert refused(cohort.devices[VICTIM], bad.encode())
    finish(cohort)


def test_a_signature_of_a_device_that_dropped_out_does_not_count() -> None:
    cohort = until("mask", 6)
    gone = name_of(5)
    cohort.run_stage((gone,))
    cohort.run_stage((gone,))
    right = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(right, UnmaskRequest)
    message = cohort.server._confirmed
    with_gone = replace(right, signers=(False, True, True, True, True, True))
    signatures = (*right.signatures[1:], signing_key(gone).sign(message))
    assert refused(cohort.devices[VICTIM], replace(with_gone, signatures=signatures).encode())


def test_nobody_gives_both_shares_of_one_device() -> None:
    """The same device named alive and dead: a set names it once; its holders give one share, of one of the two."""
    cohort = until("mask", 6)
    gone = name_of(5)
    for _ in range(2):
        cohort.run_stage((gone,))
    held = {name: dict(device._shares) for name, device in cohort.devices.items()}
    finish(cohort, (gone,))
    unmasked = [decode(frame) for stage, _, way, frame in cohort.seen if stage == "unmask" and way == "up"]
    assert len(unmasked) == 5
    for message in unmasked:
        assert isinstance(message, Unmask) and all(message.held)
        for rank, share in enumerate(message.shares):
            seed, mask = held[message.device_id][rank][:32], held[message.device_id][rank][32:]
            assert share == (mask if rank == 5 else seed) and seed != mask
            assert (seed if rank == 5 else mask) not in b"".join(f for _, _, way, f in cohort.seen if way == "up")
    assert all(device._shares == {} for name, device in cohort.devices.items() if name != gone)


def test_false_shares_are_outvoted_and_named() -> None:
    """A device that hands out false shares is found, as there are shares enough without it; the sum stays exact."""
    cohort = until("unmask", 6)
    liar = name_of(3)

    def lies(stage: str, name: str, answer: bytes) -> bytes:
        if name != liar:
            return answer
        message = decode(answer)
        assert isinstance(message, Unmask)
        false = replace(message, shares=tuple(bytes([share[0] ^ 1]) + share[1:] for share in message.shares))
        signature = signing_key(name).sign(keys.UNMASKED + cohort.server._view + false.signed_part())
        return replace(false, signature=signature).encode()

    cohort.to_server = lies
    finish(cohort)
    assert set(cohort.server.liars) == {liar} and cohort.server.liars[liar] == tuple(sorted(cohort.vectors))


def test_more_false_shares_than_can_be_outvoted_give_no_sum() -> None:
    cohort = until("unmask", 6)

    def lies(stage: str, name: str, answer: bytes) -> bytes:
        message = decode(answer)
        assert isinstance(message, Unmask)
        if name not in (name_of(3), name_of(4)):
            return answer
        false = replace(message, shares=tuple(bytes(32) for _ in message.shares))
        signature = signing_key(name).sign(keys.UNMASKED + cohort.server._view + false.signed_part())
        return replace(false, signature=signature).encode()

    cohort.to_server = lies
    with pytest.raises(SumInvalid):
        finish(cohort)
    assert cohort.server.stage == "aborted"
    with pytest.raises(SumInvalid):
        _ = cohort.server.total


def test_a_dealer_of_false_shares_costs_the_sum_and_never_falsifies_it() -> None:
    cohort = Round(6, 2)
    dealer = cohort.devices[name_of(1)]
    cohort.run_stage()
    kept = dealer._secrets
    dealer._secrets = replace(kept, self_seed=bytes(32))  # shares of another seed than it committed to and masks with
    requests = cohort.server.requests()
    for name, device in cohort.devices.items():
        assert cohort.server.receive(name, device.reply(requests[name]))
    dealer._secrets = kept
    cohort.server.advance()
    with pytest.raises(SumInvalid):
        finish(cohort)


def test_unvetted_devices_do_not_make_up_the_honest_floor() -> None:
    """Six devices, three of them vetted: `honest` is five, so nobody goes on with such a roster."""
    some = directory_of(6)
    members = tuple(replace(m, vetted=i < 3) for i, m in enumerate(some.members))
    directory = Directory("test", members)
    query = masked_query(6, 2, directory_sha256=directory.sha256)
    names = [m.device_id for m in members]
    devices = {
        name: SumDevice(query, name, directory, signing_key(name), np.zeros(2, np.uint32), "0" * 64, MemoryJournal())
        for name in names
    }
    server = SumServer(query, names, directory)
    for _ in range(2):
        for name, request in server.requests().items():
            assert server.receive(name, devices[name].reply(request))
        server.advance()
    assert all(refused(devices[name], request) for name, request in server.requests().items())
    with pytest.raises(CohortTooSmall):
        server.advance()


def test_what_cannot_be_meant_is_refused_before_the_first_message() -> None:
    query, name = masked_query(N, 2), name_of(0)
    good: dict[str, Any] = {
        "query": query,
        "device_id": name,
        "directory": directory_of(N),
        "signing_key": signing_key(name),
        "vector": np.zeros(2, np.uint32),
        "ledger_head": "0" * 64,
        "journal": MemoryJournal(),
    }
    SumDevice(**good)
    for changes in (
        {"query": replace(query, transport="ideal")},
        {"vector": np.zeros(3, np.uint32)},
        {"vector": np.zeros(2, np.int64)},
        {"signing_key": signing_key("other")},
        {"device_id": "stranger"},
        {"ledger_head": "x"},
    ):
        with pytest.raises(ConfigError):
            SumDevice(**good | changes)
    with pytest.raises(PolicyRefused, match=r"directory\.other"):
        SumDevice(**good | {"directory": directory_of(6)})


def test_sizes_and_counts_do_not_depend_on_the_vector() -> None:
    """Transcripts of zeros, of ones and of noise have the same messages of the same sizes in the same order."""
    shapes = []
    for fill in (0, 1, None):
        cohort = Round(5, 40)
        for vector in cohort.vectors.values():
            vector[:] = vector if fill is None else fill
        cohort.run([[], [], [name_of(4)], [], []])
        shapes.append([(stage, name, way, len(frame)) for stage, name, way, frame in cohort.seen])
    assert shapes[0] == shapes[1] == shapes[2] and len(shapes[0]) > 40


def test_no_two_sums_share_a_key_a_mask_or_a_share() -> None:
    """The same device, vector and query twice: everything that should be fresh is."""
    first, second = Round(N, 2), Round(N, 2)
    for cohort in (first, second):
        finish(cohort)
    seen = [{frame for _, _, way, frame in cohort.seen if way == "up"} for cohort in (first, second)]
    assert not seen[0] & seen[1]
    vectors = [{m.vector.tobytes() for m in map(decode, some) if isinstance(m, Masked)} for some in seen]
    assert len(vectors[0]) == N and not vectors[0] & vectors[1]
    sealed = [part for some in seen for m in map(decode, some) if isinstance(m, Shares) for part in m.sealed]
    assert len({part[:12] for part in sealed}) == len(sealed) == 2 * N * (N - 1)


def test_no_error_leaves_a_device_and_a_failing_disk_ends_the_sum() -> None:
    class Broken(MemoryJournal):
        def store(self, event: bytes, step: str, data: bytes) -> None:
            raise OSError("the text of a person")

    cohort = Round(N, 2)
    device = cohort.device(VICTIM, journal=Broken())
    begin = cohort.server.requests()[VICTIM]
    answer = device.reply(begin)
    assert refused(device, begin, RefusalCode.STALE) and isinstance(decode(answer), Refusal)
    assert b"person" not in answer and issubclass(SumInvalid, ConfideError)
