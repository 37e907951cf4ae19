"""When Flower is asked for a run's status: at its end, and where nothing is heard of it; a clock by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.events import EventLog
from server.folder import OperatorFolder
from server.running import finished, reason
from tests.operator_by_hand import operator_in

BEGUN = 0.0


@pytest.fixture
def operator(tmp_path: Path) -> OperatorFolder:
    return operator_in(tmp_path / "f")


def waited(operator: OperatorFolder, notes: dict[int, str], over_at: float) -> tuple[str, list[float], float]:
    """Return the status, when it was asked for, and when the run was known to be over; `notes` are events by second."""
    log, now, asked = EventLog(operator.home, "c"), [0.0], list[float]()

    def status() -> str:
        asked.append(now[0])
        return "finished:completed" if now[0] >= over_at else "running"

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if int(now[0]) in notes:
            log.note(notes[int(now[0])], reason="a line")

    return finished(operator, status, BEGUN, lambda: now[0], sleep), asked, now[0]


def test_while_events_come_flower_is_not_asked(operator: OperatorFolder) -> None:
    notes = dict.fromkeys(range(1, 500, 25), "stage") | {500: "released"}
    assert waited(operator, notes, 502.0) == ("finished:completed", [500.0, 501.0, 502.0], 502.0)


def test_a_run_that_died_without_a_word_is_found(operator: OperatorFolder) -> None:
    status, asked, _ = waited(operator, {1: "begun"}, 100.0)
    assert status == "finished:completed" and len(asked) == 3 and asked[0] == 32.0 and 100.0 <= asked[-1] <= 250.0


def test_only_what_was_noted_since_the_run_began_counts(operator: OperatorFolder) -> None:
    EventLog(operator.home, "c").note("failed", reason="an earlier run")
    now = datetime.now(UTC).timestamp()
    assert reason(operator, BEGUN) == "an earlier run" and reason(operator, now + 1) == ""
