"""The line between a server inside Flower and its simulation: what it says when one end is gone."""

from __future__ import annotations

import os

import pytest

from privacy.errors import ConfideError
from server.link import VARIABLE, Link


@pytest.fixture
def ends() -> tuple[Link, Link]:
    ours, (reads, writes) = Link.pair()
    return ours, Link(reads, writes)


def test_lines_go_both_ways(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    ours.send({"home": "folder", "ß": "é"})
    assert str(theirs.home()) == "folder"
    theirs.send({"event": "done"})
    assert ours.receive() == {"event": "done"}
    theirs.close()
    assert list(ours.lines()) == []
    ours.close()


def test_whoever_speaks_or_listens_to_nobody_is_told_in_one_line(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs.close()
    for act in (lambda: ours.send({"a": 1}), ours.receive):
        with pytest.raises(ConfideError, match="has ended"):
            act()
    ours.close()
    with pytest.raises(ConfideError, match="has ended"):
        ours.send({"a": 1})
    with pytest.raises(ConfideError, match="has ended"):
        ours.receive()
    ours.close()


def test_what_is_no_line_is_one_clear_error(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs._out.write("[1]\nnot json\n")
    theirs._out.flush()
    with pytest.raises(ConfideError, match="not a line"):
        ours.receive()
    theirs.close()
    ours.close()


def test_a_simulation_that_failed_before_it_named_its_campaign_says_why(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    ours.send({"failed": "no such model"})
    with pytest.raises(ConfideError, match="no such model"):
        theirs.home()
    ours.close()
    theirs.close()


def test_the_line_is_inherited_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, (reads, writes) = Link.pair()
    monkeypatch.setenv(VARIABLE, f"{reads},{writes}")
    theirs = Link.inherited()
    assert theirs is not None and Link.inherited() is None and VARIABLE not in os.environ
    ours.send({"a": 1})
    assert theirs.receive() == {"a": 1}
    theirs.close()
    ours.close()


def test_many_lines_at_once_and_a_line_in_pieces_are_lines(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    theirs._out.write('{"a": 1}\n{"a": 2}\n{"a"')
    theirs._out.flush()
    lines = ours.lines()
    assert [next(lines), next(lines)] == [{"a": 1}, {"a": 2}]
    theirs._out.write(": 3}\n")
    theirs.close()
    assert list(lines) == [{"a": 3}]
    ours.close()


def test_a_helper_that_ends_ends_the_lines_after_what_was_said(ends: tuple[Link, Link]) -> None:
    ours, theirs = ends
    helper, held = os.pipe()  # as a sentinel is: readable where the process is gone
    theirs.send({"a": 1})
    os.close(held)
    assert list(ours.lines([helper])) == [{"a": 1}]
    for end in (ours, theirs):
        end.close()
    os.close(helper)
