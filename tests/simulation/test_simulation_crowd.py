"""People made when asked for: the same federation as if they were listed, and memory that does not grow with them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.errors import ConfideError, DataError
from privacy.ledger import public_key_of, read_ledger
from simulation.config import RunConfig
from simulation.crowd import Crowd, names_of
from simulation.datasets.synthetic import KINDS, Synthetic
from simulation.evaluate_run import devices_in
from simulation.host import Before, Call, HostPool, HostSettings, nothing
from simulation.population import load_people
from simulation.progress import Progress
from simulation.run import simulate

CROWD = ("people=synthetic:200", "cohort=16", "compare_without_noise=false", "evaluation.held_out=4")
ROUND = ("rounds=1", "adapter.samples=2")


def release_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    found: dict[str, np.ndarray[Any, Any]] = load_file(folder / "release" / "global" / "adapter_model.safetensors")
    return found


def same(one: Path, other: Path) -> bool:
    a, b = release_of(one), release_of(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# --- people ----------------------------------------------------------------------------------------------------------


def test_a_person_is_the_same_in_any_federation_and_order() -> None:
    few, many = Synthetic(100), Synthetic(10**6)
    assert [few.make(k) for k in (7, 3, 7)] == [many.make(k) for k in (7, 3, 7)]
    assert few.make(7) != Synthetic(100, seed=1).make(7) and few.sha256 != many.sha256
    assert {few.make(k).persona for k in range(100)} == set(KINDS)
    person = few.make(5)
    assert len(person.history) == 6 and len(person.test) == 2 and all(d.own_text for d in person.documents)


def test_names_are_in_order_and_found_again() -> None:
    crowd = Crowd.everybody(Synthetic(1000))
    out, kept = crowd.parted(np.arange(1000) % 3 == 0)
    for some in (crowd, out, kept, out[1::2]):
        names = names_of(some)
        assert list(names) == sorted(names) and len(names) == len(some)
        assert all(names.place(name) == i for i, name in enumerate(names))  # type: ignore[attr-defined]
    assert {*out.names} | {*kept.names} == {*crowd.names} and not {*out.names} & {*kept.names}
    assert "s0000000" in kept.names and "s0000000" not in out.names
    assert not any(name in crowd.names for name in ("s0001000", "s1", "x0000001", "s00000٠1", ""))
    assert len(pickle.dumps(Crowd.everybody(Synthetic(10**5)))) < 5 * 10**5, "a host is sent numbers, no text"


@pytest.mark.parametrize(
    "source", ["synthetic:0", "synthetic:-3", "synthetic:many", "synthetic:10000001", "synthetic:"]
)
def test_a_number_of_people_that_cannot_be_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="synthetic"):
        load_people(source, None)


def stream(path: Path, people: int = 30) -> Path:
    """Write people whose lines stand together, in no order of their names; some records name no split."""
    with path.open("w") as file:
        for k in np.random.default_rng(3).permutation(people):
            for d in Synthetic(people).make(int(k)).documents:
                split = {"split": d.split} if k % 2 else {}
                file.write(json.dumps({"user": f"u{k}", "i": d.order, "text": d.text.strip(), **split}) + "\n")
            file.write("\n" * int(k % 3 == 0))
    return path


def test_people_of_a_streamed_file_are_those_of_the_file_read_whole(tmp_path: Path) -> None:
    path = stream(tmp_path / "people.jsonl")
    whole = {p.user: p for p in load_people(str(path), None, min_test=1).people}
    read = load_people(f"stream:{path}", None)
    crowd = pickle.loads(pickle.dumps(read.people))  # as it travels to a host
    assert isinstance(crowd, Crowd) and list(crowd.names) == sorted(whole)
    assert {p.user: p for p in crowd} == whole and read.sha256 == load_people(str(path), None).sha256
    with path.open("r+b") as file:
        file.write(b"{}")
    with pytest.raises(DataError, match="was changed while it was in use"):
        [crowd[k] for k in range(len(crowd))]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"user": "u1", "text": "Again."}, "lines together"),
        ({"user": "new", "text": "Hm.", "group": "g1"}, "group"),
        ({"text": "Nobody's."}, "user"),
        ("{", "no such line"),
    ],
)
def test_a_file_that_cannot_be_streamed_is_refused_with_its_line(tmp_path: Path, line: Any, fault: str) -> None:
    path = stream(tmp_path / "people.jsonl")
    lines = path.read_text().count("\n")
    with path.open("a") as file:
        file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(DataError, match=rf"people.jsonl:{lines + 1}: .*{fault}"):
        load_people(f"stream:{path}", None)
    with pytest.raises(DataError, match="cannot be read"):
        load_people(f"stream:{tmp_path / 'none'}", None)


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_crowd_is_the_same_federation_as_the_same_people_listed(run: Any, tmp_path: Path) -> None:
    """Sums without noise, so that the two campaigns' names change no more than the order of a float sum."""
    listed = tmp_path / "people.jsonl"
    with listed.open("w") as file:
        for person in Crowd.everybody(Synthetic(40)):
            for d in person.documents:
                record = {"user": person.user, "i": d.order, "split": d.split, "text": d.text.strip()}
                file.write(json.dumps(record) + "\n")
    settings = ("cohort=16", "compare_without_noise=false", "privacy.transport=off", "rounds=2")
    run(tmp_path / "crowd", "people=synthetic:40", *settings)
    run(tmp_path / "listed", f'people="{listed}"', *settings)
    run(tmp_path / "others", "people=synthetic:40", *settings, "seed=1")
    crowd, alike, others = (
        np.concatenate([a.ravel() for _, a in sorted(release_of(tmp_path / name).items())])
        for name in ("crowd", "listed", "others")
    )
    assert np.linalg.norm(crowd - alike) < 1e-4 * np.linalg.norm(crowd) < np.linalg.norm(crowd - others)


def test_the_ledger_names_a_device_before_its_first_question_and_nobody_else_has_one(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "run", *CROWD, "rounds=2", "dropout=0.2")
    path = tmp_path / "run" / "ledger" / "federation.jsonl"
    view = read_ledger(path, public_key_of(path))
    known: set[str] = set()
    asked: set[str] = set()
    for entry in view.entries:
        known |= devices_in([entry])
        if entry.kind == "RESERVE":
            invited = {str(name) for name in entry.body["invited"]}  # type: ignore[union-attr]
            assert len(invited) == 16 and invited <= known
            asked |= invited
    assert known == asked == {p.stem for p in (tmp_path / "run" / "ledger" / "devices").glob("*.jsonl")}
    assert 16 < len(asked) <= 32, "two rounds of others, of two hundred"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["what"]["people"] == 196 and report["what"]["people_scored"] == 4


def test_neither_text_nor_devices_that_make_room_for_others_change_a_bit(
    run: Any, tmp_path: Path, hosts_here: type[Any]
) -> None:
    """With room for one person's text and one open device everybody is prepared and opened again and again."""

    class Narrow(hosts_here):  # type: ignore[misc]
        most = 0

        def run(
            self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
        ) -> None:
            for work in self.works:
                work.learner.most_bytes, work.devices.most, work._tests.most_bytes = 1, 1, 1
            super().run(calls, done, before)
            Narrow.most = max(Narrow.most, *(len(work.learner._sizes) for work in self.works))
            assert all(len(work.devices._open) <= 1 and len(work._tests._kept) <= 1 for work in self.works)

    config = run.config("workers=1", "rounds=2", "compare_without_noise=false")
    for name, hosts in (("wide", hosts_here), ("narrow", Narrow)):
        simulate(config, tmp_path / name, Progress(quiet=True), replay=run.key, open_hosts=hosts)
    assert same(tmp_path / "wide", tmp_path / "narrow") and Narrow.most == 1


def test_a_crowds_run_that_was_cut_off_goes_on_to_the_same_release(
    run: Any, tmp_path: Path, hosts_here: type[Any]
) -> None:
    """Cut off in the second round: who took part in the first is neither asked again nor left out of the report."""

    class CutOff(hosts_here):  # type: ignore[misc]
        asked = 0

        def run(self, calls: Any, done: Any, before: Before = nothing) -> None:
            CutOff.asked += bool(calls) and calls[0][1][0] == "relay"
            if CutOff.asked == 8:
                calls = calls[:5]
            super().run(calls, done, before)
            if CutOff.asked == 8:
                raise ConfideError("the machine went down")

    config = run.config("workers=1", *CROWD, "rounds=2")
    with pytest.raises(ConfideError, match="went down"):
        simulate(config, tmp_path / "cut", Progress(quiet=True), replay=run.key, open_hosts=CutOff)
    assert len(list((tmp_path / "cut" / "checkpoints" / "rounds").glob("*.sum"))) == 1
    for name in ("cut", "whole"):
        simulate(config, tmp_path / name, Progress(quiet=True), replay=run.key, open_hosts=hosts_here)
    assert same(tmp_path / "cut", tmp_path / "whole")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("cut", "whole")]
    assert reports[0]["what"]["training_tokens"] == reports[1]["what"]["training_tokens"] > 0


def peak_of(run: Any, folder: Path, people: int) -> int:
    tracemalloc.start()
    try:
        run(folder, *CROWD, *ROUND, f"people=synthetic:{people}")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_people(run: Any, tmp_path: Path) -> None:
    """A hundred times the people: a few numbers each while they are drawn, no object, no name, no key."""
    run(tmp_path / "first", *CROWD, *ROUND)  # what is loaded once
    few, many = (peak_of(run, tmp_path / f"p{people}", people) for people in (200, 20_000))
    assert many - few < 60 * 20_000, f"{(many - few) / 19_800:.0f} bytes a person"


# --- a worker that is killed -----------------------------------------------------------------------------------------


class Killing(HostPool):
    """A pool one of whose workers is killed inside the exchange of that number, after three answers."""

    stage = 0

    def _pace(self, w: int, seconds: float) -> None:
        """Let two calls travel together, so that the worker dies between some of its people's calls."""
        self._at_once[w] = 2

    def run(
        self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
    ) -> None:
        if calls and calls[0][1][0] == "relay":
            self.exchanges = getattr(self, "exchanges", 0) + 1
        heard: list[str] = []

        def told(user: str, result: Any) -> None:
            done(user, result)
            heard.append(user)
            if self.exchanges == self.stage and len(heard) == 3 and not any(self.restarts):
                os.kill(self._processes[0].pid or 0, signal.SIGKILL)

        super().run(calls, told if hasattr(self, "exchanges") else done, before)


def killed_at(number: int) -> Callable[[Sequence[HostSettings]], HostPool]:
    def opened(settings: Sequence[HostSettings]) -> HostPool:
        pool = Killing(settings)
        pool.stage = number
        return pool

    return opened


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [1, 2, 3, 4], ids=["greeting", "release", "fit", "answer"])
def test_a_killed_workers_people_are_run_again_to_the_same_release(run: Any, tmp_path: Path, exchange: int) -> None:
    config: RunConfig = run.config("workers=2", "rounds=1", "compare_without_noise=false")
    pools: list[HostPool] = []

    def opened(settings: Sequence[HostSettings]) -> HostPool:
        pools.append(killed_at(exchange)(settings))
        return pools[-1]

    simulate(config, tmp_path / "killed", Progress(quiet=True), replay=run.key, open_hosts=opened)
    assert pools[0].restarts == [1, 0]
    run(tmp_path / "whole", "rounds=1", "compare_without_noise=false", replay=True)
    assert same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_dies_again_and_again_ends_the_run(run: Any, tmp_path: Path) -> None:
    class Dying(HostPool):
        def _next(self, w: int, *rest: Any) -> None:
            os.kill(self._processes[w].pid or 0, signal.SIGKILL)
            self._processes[w].join(30)
            super()._next(w, *rest)

    config: RunConfig = run.config("workers=1", "rounds=1", "compare_without_noise=false")
    with pytest.raises(ConfideError, match="a worker process ended"):
        simulate(config, tmp_path / "dying", Progress(quiet=True), open_hosts=Dying)
