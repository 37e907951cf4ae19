"""A ledger with every kind of entry: killed at every flush, on failing disks, damaged each way; two readers agree."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.account import FEDERATION, KINDS, NOTES, Unsent
from privacy.audit.standalone import entries, spent
from privacy.chain import GENESIS_PREV, read_chain, sign_entry
from privacy.checkpoint import Checkpoint, cosigned
from privacy.errors import LedgerError, PolicyRefused
from privacy.files import Disk, SystemDisk
from privacy.history import Figures, History, Visit
from privacy.ledger import Ledger, read_ledger
from privacy.meter import YEAR_MS
from privacy.policy import Policy, signed_policy
from privacy.query import Cohort, Limits, Query

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ROOT_KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
SERVER = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
ROOT = Path(__file__).resolve().parents[2]
HALF = Fraction(1, 2)
NOW = 1_764_000_000_000
GENESIS = {"federation": "fed", "owner": "d", "root_key": ROOT_KEY.public_key().public_bytes_raw().hex()}
POLICY = Policy(
    federation="fed",
    purposes=("train.global",),
    min_noise_multiplier=Fraction(1, 2),
    max_clip_norm=Fraction(1),
    min_invited=10,
    min_survivor_fraction=Fraction(2, 3),
    max_participations=50,
    budget_rho=Fraction(5),
    max_dim=100,
    limits=Limits(512, 8),
    basis_sha256="2" * 64,
    release_signer="e" * 64,
    yearly_rho=Fraction(3),
)
WITNESSED = replace(POLICY, serial=1, witness_key=WITNESS.public_key().public_bytes_raw().hex())


def query(round_: int, policy: Policy = POLICY, noise: str = "1") -> Query:
    return Query(
        federation="fed",
        campaign="spring",
        round=round_,
        attempt=0,
        purpose="train.global",
        slots=1,
        slot_dim=4,
        clip_norm=Fraction(1, 10),
        noise_multiplier=Fraction(noise),
        cohort=Cohort(10),
        transport="ideal",
        release_sha256="1" * 64,
        basis_sha256="2" * 64,
        policy_sha256=policy.sha256,
        ledger_head="4" * 64,
        objective="next-token",
        limits=Limits(512, 2),
    )


def note(size: int, seconds: int | None = None) -> bytes:
    found = Checkpoint("fed/federation", size, f"{size:064x}").signed(SERVER)
    return found if seconds is None else cosigned(found, WITNESS, seconds)


def history(rho: Fraction, head: str = "f" * 64) -> bytes:
    figures = Figures(int(2 * rho), 0, rho, 6 * rho)
    return History("fed", "d", (Visit(head, figures),), figures).signed(WITNESS)


def live(ledger: Ledger, say: object = None) -> None:
    """Write every kind of entry in a device's life, idempotently; before noise would be drawn, `say` its round."""
    ledger.grant(signed_policy(POLICY, ROOT_KEY)) if ledger.account.policy is None else None
    if ledger.account.seen is None:
        ledger.see(note(3), SERVER.public_key())
    for number in range(2):
        ledger.reserve(query(number), "d")
        if callable(say):
            say(number)
        ledger.commit(query(number).event_id("d"))
    ledger.adopt(history(Fraction(1)), [WITNESS.public_key()])
    ledger.append("RECORD_DP", {"note": "x"})
    aborted = query(2).event_id("d")
    if aborted.hex() not in ledger.account.reservations:
        ledger.reserve(query(2), "d")
        ledger.abort(aborted, Unsent.NOT_TRAINED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.jsonl"


def whole(path: Path) -> bytes:
    """Return a ledger with every kind that is judged, the signed time and the change of policy among them."""
    with Ledger(path, KEY, GENESIS, clock=lambda: NOW) as ledger:
        live(ledger)
        if ledger.account.policy == POLICY:
            ledger.grant(signed_policy(WITNESSED, ROOT_KEY))
        ledger.append("SEEN", {"note": note(5, NOW // 1000).decode()})
        ledger.reserve(query(7, WITNESSED), "d")
        ledger.append("SEEN", {"note": note(6, (NOW + YEAR_MS) // 1000 + 1).decode()})
        ledger.reserve(query(8, WITNESSED), "d")
        fork = Checkpoint("fed/federation", 6, "a" * 64).signed(SERVER)
        ledger.append("FORK", {"first": note(6).decode(), "second": fork.decode()})
    return path.read_bytes()


def test_two_readers_that_share_no_line_agree_on_every_kind(path: Path) -> None:
    data = whole(path)
    view = read_ledger(path)
    assert {entry.kind for entry in view.entries} == KINDS - NOTES | {"RECORD_DP"}
    assert spent(entries(data, KEY.public_key())) == (view.account.spent_rho(), view.account.unprotected())
    assert view.account.spent_rho() == 4 * HALF + 1  # four answers, and what was adopted; the aborted one is nothing


# -- killed ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from privacy.files import SystemDisk
from tests.privacy.test_privacy_ledger_life import GENESIS, KEY, live
from privacy.ledger import Ledger

class DeadlyDisk(SystemDisk):
    left = int(sys.argv[2])
    def step(self):
        type(self).left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def write(self, descriptor, data):
        self.step()
        return super().write(descriptor, data[:1500])
    def fsync(self, descriptor):
        self.step()
        super().fsync(descriptor)
        self.step()
    def fsync_folder(self, folder):
        self.step()
        super().fsync_folder(folder)
    def truncate(self, descriptor, size):
        self.step()
        super().truncate(descriptor, size)

with Ledger(Path(sys.argv[1]), KEY, GENESIS, disk=DeadlyDisk()) as ledger:
    live(ledger, lambda number: print("noise", number, flush=True))
    print("adopted", flush=True)
"""


def killed_at(step: int, path: Path) -> bool:
    """Run the life until SIGKILL comes from inside its `step`-th disk operation; return whether it reached its end."""
    command = [sys.executable, "-c", KILLED, str(path), str(step)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    rounds = set(run.stdout.splitlines()) - {"adopted"}
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    with Ledger(path, KEY, GENESIS) as ledger:  # the restart
        assert ledger.spent_rho() >= len(rounds) * HALF + ("adopted" in run.stdout) * Fraction(1)
        data = path.read_bytes()
        assert spent(entries(data, KEY.public_key()))[0] == ledger.spent_rho()
    return run.returncode == 0


def test_killed_at_some_flushes_no_charge_is_lost(path: Path) -> None:
    for step in (4, 9, 13, 18, 24):  # in turn within one ledger, each from where the last one died
        killed_at(step, path)
    assert killed_at(10_000, path)
    assert read_ledger(path).account.spent_rho() >= 2


@pytest.mark.slow
def test_killed_at_every_flush_no_charge_is_lost(path: Path) -> None:
    ends = []
    for step in range(80):
        own = path.with_name(f"kill-{step}.jsonl")
        ends.append(killed_at(step, own))
        assert killed_at(10_000, own)
        aborted = read_ledger(own).account.reservations[query(2).event_id("d").hex()]
        assert read_ledger(own).account.spent_rho() == 2 + aborted.counts * HALF  # whose process died is not given back
        if ends[-1] and ends[-2:] == [True, True]:
            break
    assert ends.count(True) >= 1 and ends == sorted(ends)


# -- failing disks ---------------------------------------------------------------------------------------------------


class FailsAt(SystemDisk):
    """A disk whose n-th write or fsync fails, after half of the bytes."""

    def __init__(self, operation: str, at: int, code: int) -> None:
        self.operation, self.left, self.code = operation, at, code

    def _step(self, operation: str) -> bool:
        self.left -= operation == self.operation
        return operation == self.operation and self.left < 0

    def write(self, descriptor: int, data: bytes) -> int:
        if self._step("write"):
            super().write(descriptor, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        if self._step("fsync"):
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(descriptor)


def drawn_on(disk: Disk, path: Path) -> int:
    """Live on `disk` until it fails; return how many noises would have been drawn."""
    drawn: list[object] = []
    with pytest.raises(LedgerError, match="cannot write to the disk"), Ledger(path, KEY, GENESIS, disk=disk) as ledger:
        live(ledger, drawn.append)
    return len(drawn)


@pytest.mark.parametrize(("operation", "code"), [("write", errno.ENOSPC), ("write", errno.EIO), ("fsync", errno.EIO)])
def test_a_disk_that_fails_at_any_entry_stops_the_work_before_noise(path: Path, operation: str, code: int) -> None:
    for at in range(1, 11):
        own = path.with_name(f"fail-{at}.jsonl")
        drawn = drawn_on(FailsAt(operation, at, code), own)
        with Ledger(own, KEY, GENESIS) as ledger:
            assert ledger.spent_rho() >= drawn * HALF
            live(ledger)
            assert ledger.spent_rho() >= 2


RACE = """
import sys
from pathlib import Path
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from tests.privacy.test_privacy_ledger_life import GENESIS, KEY, query
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 25):
    while True:
        try:
            with Ledger(Path(sys.argv[1]), KEY, GENESIS) as ledger:
                ledger.reserve(query(number), "d")
            break
        except LedgerError as error:
            assert "in use" in str(error), error
"""


def test_processes_that_race_for_one_ledger_lose_no_charge(path: Path) -> None:
    commands = [[sys.executable, "-c", RACE, str(path), str(start)] for start in (0, 100)]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for command in commands]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert read_ledger(path).account.participations() == 50


# -- damaged ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("life")
    return folder / "damaged.jsonl", whole(folder / "d.jsonl")


def refused(place: Path, data: bytes) -> bool:
    """Return whether both readers refuse `data`; they must agree."""
    place.write_bytes(data)
    try:
        read_ledger(place, KEY.public_key())
        first = False
    except LedgerError:
        first = True
    try:
        spent(entries(data, KEY.public_key()))
        second = False
    except ValueError:
        second = True
    assert first == second, "the two readers disagree"
    return first


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_readers_refuse_every_damage_and_agree(good: tuple[Path, bytes], data: st.DataObject) -> None:
    place, ledger = good
    lines = ledger.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["flip", "delete", "repeat", "swap", "insert"]))
    at = data.draw(st.integers(0, len(lines) - 2))
    if kind == "flip":
        offset = data.draw(st.integers(0, len(ledger) - 2))
        other = ledger[offset] ^ (1 << data.draw(st.integers(0, 7)))
        damaged = ledger[:offset] + bytes([other]) + ledger[offset + 1 :]
    elif kind == "delete":
        damaged = b"".join([*lines[:at], *lines[at + 1 :]])
    elif kind == "repeat":
        damaged = b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    elif kind == "swap":
        damaged = b"".join([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])
    else:
        _, line = sign_entry(KEY, seq=at, prev=GENESIS_PREV, ts_ms=NOW, kind="EVAL", body={})
        damaged = b"".join([*lines[:at], line, *lines[at:]])
    assert refused(place, damaged)


def resigned(ledger: bytes, edit: dict[int, tuple[str, dict[str, object]]]) -> bytes:
    """Return the whole ledger written again by its owner, with other entries at some places."""
    lines, prev = [], GENESIS_PREV
    for number, entry in enumerate(read_chain(ledger, KEY.public_key()).entries):
        kind, body = edit.get(number, (entry.kind, dict(entry.body)))
        made, line = sign_entry(KEY, seq=number, prev=prev, ts_ms=entry.ts_ms, kind=kind, body=body)
        lines.append(line)
        prev = made.sha256
    return b"".join(lines)


def test_an_owner_who_signs_what_no_entry_may_say_is_refused_by_both(good: tuple[Path, bytes]) -> None:
    place, ledger = good
    found = read_chain(ledger, KEY.public_key()).entries
    at = {entry.kind: entry.seq for entry in found}
    bodies = {entry.kind: dict(entry.body) for entry in found}
    assert not refused(place, resigned(ledger, {}))
    more = replace(WITNESSED, budget_rho=Fraction(500), yearly_rho=Fraction(500))
    small = replace(WITNESSED, yearly_rho=Fraction(9, 4))
    for kind, edit in {
        "ABORT": {**bodies["ABORT"], "reason": "arrived too late"},
        "COMMIT": {**bodies["COMMIT"], "event": "0" * 64},
        "GRANT": json.loads(signed_policy(more, SERVER)),
        "ADOPT": {**bodies["ADOPT"], "signature": "0" * 128},
        "SEEN": {"note": note(1).decode()},
    }.items():
        assert refused(place, resigned(ledger, {at[kind]: (kind, edit)})), kind
    assert refused(place, resigned(ledger, {at["GRANT"]: ("GRANT", json.loads(signed_policy(small, ROOT_KEY)))})), (
        "past the year"
    )
    assert refused(place, resigned(ledger, {at["GRANT"]: ("GRANT", json.loads(signed_policy(POLICY, ROOT_KEY)))})), (
        "an old serial"
    )


def test_past_its_budget_no_ledger_goes_however_it_is_asked(path: Path) -> None:
    with Ledger(path, KEY, GENESIS, clock=lambda: NOW) as ledger:
        ledger.grant(signed_policy(POLICY, ROOT_KEY))
        taken = 0
        for number in range(60):
            try:
                ledger.reserve(query(number, noise=("1", "2", "3/2")[number % 3]), "d")
                taken += 1
            except PolicyRefused:
                continue
        assert ledger.spent_rho() <= 3 and taken >= 6


def test_a_federation_may_hold_the_policy_without_being_bound_by_one_devices_budget(path: Path) -> None:
    genesis = {**GENESIS, "owner": FEDERATION}
    with Ledger(path, KEY, genesis) as ledger:
        ledger.grant(signed_policy(POLICY, ROOT_KEY))
        for number in range(9):
            ledger.reserve(query(number), FEDERATION, [f"d{number}"])
        assert ledger.spent_rho() == 9 * HALF
