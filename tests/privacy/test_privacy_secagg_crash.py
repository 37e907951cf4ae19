"""A device killed at any flush: what left it is on the disk, and afterwards it says nothing new of that event."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from privacy.errors import LedgerError
from privacy.secagg.journal import ADVERTISED, MASKED, REVEALED, STEPS, FileJournal, Journal, MemoryJournal
from privacy.wire import Refusal, RefusalCode, decode
from tests.privacy.secagg_cohort import STAGES, Round, exact_sum, name_of

ROOT = Path(__file__).parents[2]
VICTIM = name_of(2)
FLUSHES = 6  # a file and its folder at each of the three steps
STEP_OF_STAGE = {"advertise": ADVERTISED, "mask": MASKED, "unmask": REVEALED}


def run_with_journal(folder: Path) -> None:
    """Run a whole sum of five in this process; one device keeps its journal in `folder` and prints what it answers."""
    cohort = Round(5, 2)
    cohort.devices[VICTIM] = cohort.device(VICTIM, journal=FileJournal(folder))
    for stage in STAGES:
        for name, request in cohort.server.requests().items():
            answer = cohort.devices[name].reply(request)
            if name == VICTIM:
                os.write(1, f"{stage} {request.hex()} {answer.hex()}\n".encode())
            cohort.server.receive(name, answer)
        cohort.server.advance()
    assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.vectors))


CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
real, count, at, after = os.fsync, [0], {at}, {after}
def fsync(descriptor):
    count[0] += 1
    if count[0] == at and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
    if count[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
from tests.privacy.test_privacy_secagg_crash import run_with_journal
run_with_journal(Path({folder!r}))
print("done", count[0], flush=True)
"""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, FLUSHES + 1))
def test_a_device_killed_at_every_flush(tmp_path: Path, at: int, after: bool) -> None:
    code = CHILD.format(root=str(ROOT), at=at, after=after, folder=str(tmp_path))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = [line.split() for line in child.stdout.splitlines()]
    again = Round(5, 2).device(VICTIM, journal=FileJournal(tmp_path))
    stored = FileJournal(tmp_path).load(again._event)
    assert len(left) == (0, 0, 2, 2, 4, 4)[at - 1], "nothing leaves before its step is flushed"
    for stage, request, answer in left:
        if stage in STEP_OF_STAGE:
            assert STEP_OF_STAGE[stage] in stored, "what left is on the disk"
        same = again.reply(bytes.fromhex(request))
        if stage in ("advertise", "mask"):
            assert same.hex() == answer, "sent again byte for byte, also after a restart"
        elif stored:
            assert is_refusal(same), "everything else of this event is refused"
    other = Round(5, 2, changes={"ledger_head": "d" * 64})
    restarted = other.device(VICTIM, journal=FileJournal(tmp_path))
    assert is_refusal(restarted.reply(other.server.requests()[VICTIM])) == bool(stored), "one event, whatever its ctx"


def is_refusal(frame: bytes) -> bool:
    message = decode(frame)
    return isinstance(message, Refusal) and message.code == RefusalCode.STALE


def test_without_a_kill_there_are_six_flushes_and_a_sum(tmp_path: Path) -> None:
    code = CHILD.format(root=str(ROOT), at=-1, after=False, folder=str(tmp_path))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert child.stdout.splitlines()[-1] == f"done {FLUSHES}"


def test_a_device_that_restarts_is_a_dropout_and_the_sum_goes_on() -> None:
    for stage in range(1, 5):
        cohort = Round(5, 2)
        journal = MemoryJournal()
        cohort.devices[VICTIM] = cohort.device(VICTIM, journal=journal)
        for _ in range(stage):
            cohort.run_stage()
        cohort.devices[VICTIM] = cohort.device(VICTIM, journal=journal)
        while not cohort.server.finished:
            cohort.run_stage()
        assert (VICTIM in cohort.server.survivors) == (stage > 2)
        assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.server.survivors))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_journal_writes_each_step_once(tmp_path: Path, kind: str) -> None:
    journal: Journal = MemoryJournal() if kind == "memory" else FileJournal(tmp_path / "new")
    event, other = hashlib.sha256(b"event").digest(), hashlib.sha256(b"other").digest()
    assert journal.load(event) == {}
    for step in STEPS:
        journal.store(event, step, step.encode())
        with pytest.raises(LedgerError):
            journal.store(event, step, step.encode())
    assert journal.load(event) == {step: step.encode() for step in STEPS}
    assert journal.load(other) == {}
    if isinstance(journal, FileJournal):
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o600}
        journal.forget_vector(event)
        assert set(journal.load(event)) == {ADVERTISED, REVEALED}


def test_a_full_disk_is_a_refusal_and_ends_the_sum(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cohort = Round(5, 2)
    device = cohort.device(VICTIM, journal=FileJournal(tmp_path / "file" / "below"))
    begin = cohort.server.requests()[VICTIM]
    first = decode(device.reply(begin))
    assert isinstance(first, Refusal)
    assert is_refusal(device.reply(begin))
