"""A ledger shows every change to it, loses nothing to a crash, and refuses rather than undercount."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.account import FEDERATION, Unsent
from privacy.chain import GENESIS_PREV, read_chain, sign_entry
from privacy.checkpoint import Checkpoint, verify_checkpoint
from privacy.errors import LedgerError, SignatureInvalid, WireError
from privacy.files import SystemDisk
from privacy.ledger import Ledger, read_ledger
from privacy.query import Cohort, Limits, Query

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
ROOT = Path(__file__).resolve().parents[2]


def query(round_: int = 0, *, attempt: int = 0, noise: str = "1", transport: str = "ideal", slot_dim: int = 4) -> Query:
    return Query(
        federation="fed",
        campaign="spring",
        round=round_,
        attempt=attempt,
        purpose="train.global",
        slots=1,
        slot_dim=slot_dim,
        clip_norm=Fraction(1, 10),
        noise_multiplier=Fraction(noise),
        cohort=Cohort(10),
        transport=transport,
        release_sha256="1" * 64,
        basis_sha256="2" * 64,
        policy_sha256="3" * 64,
        ledger_head="4" * 64,
        objective="next-token",
        limits=Limits(512, 2),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device-1.jsonl"


def written(path: Path, rounds: int = 3) -> bytes:
    with Ledger(path, KEY, {"federation": "fed", "owner": "device-1"}) as ledger:
        for number in range(rounds):
            ledger.reserve(query(number), "device-1")
            ledger.commit(query(number).event_id("device-1"), answer_sha256="5" * 64)
    return path.read_bytes()


def test_what_is_written_is_read_by_another(path: Path) -> None:
    written(path)
    view = read_ledger(path)
    assert [entry.kind for entry in view.entries] == ["GENESIS"] + ["RESERVE", "COMMIT"] * 3
    assert view.account.spent_rho() == Fraction(3, 2)
    assert view.genesis["owner"] == "device-1"
    assert view.entries[0].prev == GENESIS_PREV
    assert [entry.seq for entry in view.entries] == list(range(7))
    assert b"epsilon" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0


def test_the_same_event_is_charged_once_also_after_reopening(path: Path) -> None:
    for _ in range(2):
        with Ledger(path, KEY) as ledger:
            first = ledger.reserve(query(), "device-1")
            assert ledger.reserve(query(), "device-1") == first
            assert ledger.spent_rho() == Fraction(1, 2)
    assert len(read_ledger(path).entries) == 2


def test_another_query_in_the_same_place_is_refused(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(), "device-1")
        head = ledger.head
        with pytest.raises(LedgerError, match="another query"):
            ledger.reserve(query(noise="2"), "device-1")
        assert ledger.head == head
        ledger.reserve(query(attempt=1, noise="2"), "device-1")
        assert ledger.spent_rho() == Fraction(1, 2) + Fraction(1, 8)


def test_the_same_event_under_another_head_or_policy_is_refused(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(), "device-1")
        for other in (replace(query(), ledger_head="9" * 64), replace(query(), policy_sha256="9" * 64)):
            assert other.event_id("device-1") == query().event_id("device-1")
            with pytest.raises(LedgerError, match="another ledger head or policy"):
                ledger.reserve(other, "device-1")
        assert ledger.spent_rho() == Fraction(1, 2)


def test_an_abort_gives_back_and_ends_the_event(path: Path) -> None:
    event = query().event_id("device-1")
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(), "device-1")
        ledger.abort(event, Unsent.NOT_ENCODED)
        assert ledger.spent_rho() == 0
        assert ledger.account.participations() == 0
        with pytest.raises(LedgerError, match="aborted"):
            ledger.reserve(query(), "device-1")
        with pytest.raises(LedgerError, match="aborted"):
            ledger.commit(event)


def test_commit_needs_a_reserve_and_comes_once(path: Path) -> None:
    event = query().event_id("device-1")
    with Ledger(path, KEY) as ledger:
        with pytest.raises(LedgerError, match="never reserved"):
            ledger.commit(event)
        ledger.reserve(query(), "device-1")
        ledger.commit(event, answer_sha256="a" * 64)
        ledger.commit(event, answer_sha256="a" * 64)
        with pytest.raises(LedgerError, match="committed"):
            ledger.commit(event, answer_sha256="b" * 64)
        with pytest.raises(LedgerError, match="committed"):
            ledger.abort(event, Unsent.NOT_STORED)
        assert len(ledger.entries()) == 3


def test_a_federation_charges_whom_it_invites(path: Path) -> None:
    with Ledger(path, KEY, {"owner": FEDERATION}) as ledger:
        ledger.reserve(query(0), FEDERATION, ["b", "a"])
        ledger.reserve(query(1, noise="2"), FEDERATION, ["a"])
        ledger.commit(query(0).event_id(FEDERATION), survivors=["a", "b"])
        assert [ledger.spent_rho(d) for d in ("a", "b", "c")] == [Fraction(5, 8), Fraction(1, 2), 0]
    with Ledger(path, KEY) as ledger:
        (open_round,) = ledger.account.pending()
        assert (open_round.query, open_round.invited) == (query(1, noise="2"), ("a",))


def test_the_claim_is_about_the_device_charged_most(path: Path) -> None:
    with Ledger(path, KEY, {"owner": FEDERATION}) as ledger:
        assert ledger.account.busiest() == ()
        ledger.reserve(query(0, noise="2"), FEDERATION, ["a", "b"])
        ledger.reserve(query(1), FEDERATION, ["b", "c"])
        ledger.reserve(query(2, noise="2"), FEDERATION, ["a"])
        assert ledger.account.busiest() == (query(0, noise="2"), query(1))
        ledger.reserve(query(3, transport="off"), FEDERATION, ["c"])  # no noise at all weighs more than any charge
        assert ledger.account.busiest() == (query(1), query(3, transport="off"))


def test_events_without_fresh_noise_are_counted_apart(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(0, transport="off"), "device-1")
        ledger.reserve(replace(query(1), replayed_noise=True), "device-1")
        ledger.reserve(query(2), "device-1")
        assert ledger.account.unprotected() == 2
        assert ledger.account.participations() == 3
        assert ledger.spent_rho() == Fraction(1, 2)


def test_what_no_entry_may_hold_is_refused_before_a_byte_is_written(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        before = path.read_bytes()
        with pytest.raises(LedgerError, match="unknown kind"):
            ledger.append("REFUND", {})
        with pytest.raises(WireError):
            ledger.append("EVAL", {"epsilon": 1.5})
        with pytest.raises(LedgerError, match="its own signature"):
            ledger.append("EVAL", {"a": 1, "sig": "0" * 128})
        with pytest.raises(LedgerError, match="at most"):
            ledger.append("EVAL", {"a": "x" * 2**22})
        with pytest.raises(LedgerError, match="cannot be read"):
            ledger.append("RESERVE", {"device": "device-1", "event": "0" * 64, "query": {}, "query_sha256": "0" * 64})
        assert path.read_bytes() == before


def test_a_reserve_must_agree_with_its_query(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(), "device-1")
        body = dict(ledger.entries()[1].body)
        for change in ({"event": "0" * 64}, {"query_sha256": "0" * 64}, {"device": "device-2"}, {"extra": 1}):
            with pytest.raises(LedgerError, match="cannot be read"):
                ledger.append("RESERVE", {**body, **change})


def line_of(data: bytes, offset: int) -> int:
    return data[:offset].count(b"\n") + 1


def test_every_changed_byte_is_located(path: Path) -> None:
    data = written(path, rounds=1)
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 8)
        for every_signature in (True, False):
            with pytest.raises(LedgerError, match=rf"^line {line_of(data, offset)}:"):
                read_chain(bytes(changed), KEY.public_key(), every_signature=every_signature)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_other_bytes_are_refused_or_torn(data: st.DataObject) -> None:
    lines = LINES
    pick = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=6))
    text = b"".join(lines[i] for i in pick) + data.draw(st.binary(max_size=20))
    try:
        chain = read_chain(text, KEY.public_key())
    except LedgerError:
        return
    assert pick[: len(chain.entries)] == list(range(len(chain.entries)))
    assert text[: chain.size] == b"".join(lines[: len(chain.entries)])
    assert chain.size + chain.torn_bytes == len(text)


def chain_lines(count: int, body: dict[str, object] | None = None) -> list[bytes]:
    lines, prev = [], GENESIS_PREV
    for seq in range(count):
        entry, line = sign_entry(KEY, seq=seq, prev=prev, ts_ms=seq, kind="EVAL", body=body or {"n": seq})
        lines.append(line)
        prev = entry.sha256
    return lines


LINES = chain_lines(5)


@pytest.mark.parametrize(
    ("order", "line"),
    [([0, 2, 3], 2), ([0, 2, 1, 3], 2), ([0, 1, 1, 2], 3), ([1, 2, 3], 1), ([0, 1, 2, 4], 4), ([0, 0, 1], 2)],
)
@pytest.mark.parametrize("every_signature", [True, False])
def test_removed_moved_and_repeated_entries_are_located(order: list[int], line: int, every_signature: bool) -> None:
    with pytest.raises(LedgerError, match=rf"^line {line}: does not follow"):
        read_chain(b"".join(LINES[i] for i in order), KEY.public_key(), every_signature=every_signature)


def test_an_entry_of_another_key_is_located() -> None:
    first = read_chain(LINES[0], KEY.public_key()).entries[0]
    for seq, prev in ((1, first.sha256), (1, GENESIS_PREV)):
        _, line = sign_entry(OTHER, seq=seq, prev=prev, ts_ms=9, kind="EVAL", body={})
        for tail in ([], LINES[1:]):
            with pytest.raises(LedgerError, match=r"^line 2: its signature"):
                read_chain(b"".join([LINES[0], line, *tail]), KEY.public_key())


def test_wrong_numbers_and_times_are_located() -> None:
    first = read_chain(LINES[1 - 1], KEY.public_key()).entries[0]
    for seq, ts, what in ((2, 5, "carries the number 2"), (1, -1, "its time is before")):
        _, line = sign_entry(KEY, seq=seq, prev=first.sha256, ts_ms=ts, kind="EVAL", body={})
        with pytest.raises(LedgerError, match=rf"^line 2: .*{what}"):
            read_chain(LINES[0] + line, KEY.public_key())


def test_a_clock_set_back_does_not_break_the_order(path: Path) -> None:
    times = iter([1000, 500, 2000])
    with Ledger(path, KEY, clock=lambda: next(times)) as ledger:
        ledger.append("EVAL", {})
        ledger.append("EVAL", {})
    assert [entry.ts_ms for entry in read_ledger(path).entries] == [1000, 1000, 2000]


def test_an_unfinished_last_line_is_cut_off_and_nothing_else(path: Path) -> None:
    data = written(path, rounds=2)
    last = data[:-1].rindex(b"\n") + 1
    for cut in (last + 1, last + 40, len(data) - 2):
        path.write_bytes(data[:cut])
        assert read_ledger(path).chain.torn_bytes == cut - last
        with Ledger(path, KEY) as ledger:
            assert len(ledger.entries()) == 4
        assert path.read_bytes() == data[:last]


def test_a_whole_entry_without_its_newline_still_counts(path: Path) -> None:
    data = written(path, rounds=2)
    path.write_bytes(data[:-1])
    assert len(read_ledger(path).entries) == 5
    with Ledger(path, KEY) as ledger:
        assert len(ledger.entries()) == 5
        ledger.append("EVAL", {})
    assert len(read_ledger(path).entries) == 6


def test_a_damaged_last_newline_is_not_taken_for_a_torn_write(path: Path) -> None:
    data = written(path, rounds=1)
    path.write_bytes(data[:-1] + b"\x0b")
    with pytest.raises(LedgerError, match=r"^line 3:"):
        Ledger(path, KEY)
    assert path.read_bytes() == data[:-1] + b"\x0b"


def test_another_key_or_another_genesis_is_refused(path: Path) -> None:
    written(path)
    with pytest.raises(LedgerError):
        Ledger(path, OTHER)
    with pytest.raises(LedgerError, match="another ledger: its owner"):
        Ledger(path, KEY, {"owner": "device-2"})
    with pytest.raises(LedgerError):
        read_ledger(path, OTHER.public_key())
    path.with_suffix(".pub").write_text("zz")
    with pytest.raises(LedgerError, match="public key"):
        read_ledger(path)


def test_a_ledger_without_genesis_or_with_two_is_refused(path: Path) -> None:
    path.with_suffix(".pub").write_text(KEY.public_key().public_bytes_raw().hex())
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="line 1"):
        read_ledger(path)
    path.write_bytes(b"".join(LINES))
    with pytest.raises(LedgerError, match="line 1: a ledger begins"):
        read_ledger(path)
    with Ledger(path.with_name("b.jsonl"), KEY) as ledger:
        ledger.append("GENESIS", {})
    with pytest.raises(LedgerError, match="line 2: a ledger begins"):
        read_ledger(path.with_name("b.jsonl"))


def test_a_second_writer_gets_one_clear_error(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        with pytest.raises(LedgerError, match="in use by another process"):
            Ledger(path, KEY)
        ledger.append("EVAL", {})
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("EVAL", {})


RACE = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from privacy.errors import LedgerError
from privacy.ledger import Ledger
sys.stdin.readline()
try:
    with Ledger(Path(sys.argv[1]), Ed25519PrivateKey.from_private_bytes(bytes(range(32)))) as ledger:
        print("held", flush=True)
        for number in range(5):
            ledger.append("EVAL", {"n": number})
        sys.stdin.readline()
except LedgerError as error:
    print(error, flush=True)
"""


def test_two_processes_race_and_one_is_refused(path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(path)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.stdout.readline().strip() for process in both if process.stdout)
    for process in both:
        process.communicate("done\n", timeout=30)
    assert said == ["device-1.jsonl is in use by another process; wait for it or stop it", "held"]
    assert len(read_ledger(path).entries) == 6


class FailingDisk(SystemDisk):
    """Fails at the n-th operation from when it is armed, after writing the first half of the bytes."""

    def __init__(self, operation: str, code: int) -> None:
        self.operation, self.code, self.armed = operation, code, False

    def write(self, descriptor: int, data: bytes) -> int:
        if self.armed and self.operation == "write":
            super().write(descriptor, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        if self.armed and self.operation == "fsync":
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(descriptor)


@pytest.mark.parametrize(("operation", "code"), [("write", errno.ENOSPC), ("write", errno.EIO), ("fsync", errno.EIO)])
def test_a_failing_disk_stops_everything_until_reopened(path: Path, operation: str, code: int) -> None:
    disk = FailingDisk(operation, code)
    with Ledger(path, KEY, disk=disk) as ledger:
        ledger.reserve(query(0), "device-1")
        disk.armed = True
        with pytest.raises(LedgerError, match="cannot write to the disk"):
            ledger.reserve(query(1), "device-1")
        disk.armed = False
        with pytest.raises(LedgerError, match="open the ledger again"):
            ledger.reserve(query(1), "device-1")  # above all: not a charge that never reached the disk
        with pytest.raises(LedgerError, match="open the ledger again"):
            ledger.commit(query(0).event_id("device-1"))
    with Ledger(path, KEY) as ledger:
        assert ledger.reserve(query(1), "device-1").counts
        assert ledger.spent_rho() == 1
    assert len(read_ledger(path).entries) == 3


def test_a_file_at_its_size_limit_is_refused(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(0), "device-1")
        size = path.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            with pytest.raises(LedgerError, match="cannot write to the disk"):
                ledger.reserve(query(1), "device-1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Ledger(path, KEY) as ledger:
        assert ledger.spent_rho() == Fraction(1, 2)
    assert path.stat().st_size == size


KILLED = """
import os, signal, sys
from pathlib import Path
from privacy.files import SystemDisk
sys.path.insert(0, "tests/privacy")
from test_privacy_ledger import KEY, query
from privacy.ledger import Ledger

class DeadlyDisk(SystemDisk):
    left = int(sys.argv[2])
    def step(self):
        type(self).left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def write(self, descriptor, data):
        self.step()
        return super().write(descriptor, data[:400])
    def fsync(self, descriptor):
        self.step()
        super().fsync(descriptor)
    def fsync_folder(self, folder):
        self.step()
        super().fsync_folder(folder)
    def truncate(self, descriptor, size):
        self.step()
        super().truncate(descriptor, size)

with Ledger(Path(sys.argv[1]), KEY, disk=DeadlyDisk()) as ledger:
    for number in range(2):
        ledger.reserve(query(number), "device-1")
        print("noise", number, flush=True)
        ledger.commit(query(number).event_id("device-1"))
print("end", flush=True)
"""


def killed_at(step: int, path: Path) -> bool:
    """Run the writer until it is killed at its `step`-th disk operation; return whether it reached its end instead."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(step)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    drawn = run.stdout.count("noise")
    if run.returncode == 0:
        return True
    assert run.returncode == -signal.SIGKILL, run.stderr
    with Ledger(path, KEY) as ledger:  # the restart: whatever noise was drawn is charged, and work goes on
        assert ledger.spent_rho() >= Fraction(drawn, 2)
        assert ledger.account.participations() <= 2
    return False


def test_kill_at_some_writes_never_undercounts(path: Path) -> None:
    for step in (0, 5, 6, 8, 12):
        assert not killed_at(step, path.with_name(f"kill-{step}.jsonl"))
    for step in (1, 7):  # killed again and again on one file, then left alone
        killed_at(step, path)
    assert killed_at(1000, path)
    assert read_ledger(path).account.spent_rho() == 1


@pytest.mark.slow
def test_kill_at_every_write_never_undercounts(path: Path) -> None:
    ends = [killed_at(step, path.with_name(f"kill-{step}.jsonl")) for step in range(45)]
    assert ends.count(True) > 0
    assert ends == sorted(ends)
    for step in range(12):
        killed_at(step, path)
    assert killed_at(1000, path)
    assert read_ledger(path).account.spent_rho() == 1


def test_an_append_takes_less_than_20_ms(path: Path) -> None:
    with Ledger(path, KEY) as ledger:
        times = []
        for number in range(20):
            start = time.perf_counter()
            ledger.reserve(query(number), "device-1")
            times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 0.020, f"median {sorted(times)[10]:.4f} s"


@pytest.mark.slow
def test_a_hundred_thousand_entries_verify_in_about_a_second() -> None:
    data = b"".join(chain_lines(100_000, {"event": "0" * 64, "answer_sha256": "1" * 64}))
    start = time.process_time()
    chain = read_chain(data, KEY.public_key(), every_signature=False)
    assert len(chain.entries) == 100_000
    assert time.process_time() - start < 3.0  # 1.1 s on a free core; the margin is for a shared one


def test_checkpoints_show_rollback_and_rewriting(path: Path) -> None:
    written(path, rounds=2)
    view = read_ledger(path)
    note = Checkpoint.of("fed/device-1", view.chain).signed(KEY)
    seen = verify_checkpoint(note, KEY.public_key())
    assert seen.is_kept_by(view.chain)
    lines = path.read_bytes().splitlines(keepends=True)
    assert not seen.is_kept_by(read_chain(b"".join(lines[:-1]), KEY.public_key()))
    rewritten = path.with_name("again.jsonl")
    with Ledger(rewritten, KEY, clock=lambda: 1) as ledger:
        for number in range(9):
            ledger.append("EVAL", {"n": number})
    assert not seen.is_kept_by(read_ledger(rewritten).chain)
    with Ledger(path, KEY) as ledger:
        ledger.append("EVAL", {})
    assert seen.is_kept_by(read_ledger(path).chain)


def test_checkpoints_that_are_not_signed_so_are_refused() -> None:
    note = Checkpoint("fed/device-1", 5, "a" * 64).signed(KEY)
    witnessed = note + "— witness.example AAAA\n".encode()
    assert verify_checkpoint(witnessed, KEY.public_key()).size == 5
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(note, OTHER.public_key())
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(note.replace(b"\n5\n", b"\n6\n"), KEY.public_key())
    for offset in range(len(note)):
        changed = bytearray(note)
        changed[offset] ^= 1
        with pytest.raises((LedgerError, SignatureInvalid)):
            verify_checkpoint(bytes(changed), KEY.public_key())


@pytest.fixture(autouse=True)
def _no_file_left_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
