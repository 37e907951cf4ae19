"""What the tests of whole runs share: invented people, settings that take a second, hosts inside this process."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from simulation.config import RunConfig, load_config
from simulation.host import Before, Call, HostSettings, nothing
from simulation.progress import Progress
from simulation.report_schema import Report
from simulation.run import simulate

THINGS = ("bread", "river", "garden", "winter", "lamp", "train", "letter", "cat", "stone", "tea", "window", "boat")
DOINGS = ("like", "carry", "paint", "lost", "found", "keep", "forgot", "bought", "hear", "want")
PEOPLE = 18
FAST = (
    "engine=local",
    "privacy.transport=ideal",
    "rounds=2",
    "scrub=false",
    "adapter.layers=2",
    "adapter.rank=4",
    "adapter.samples=4",
    "adapter.sample_tokens=24",
    "local.own_tokens=120",
    "local.sampling_rate=1.0",
    "local.step=0.1",
    "local.clip=0.05",
    "own.people=0",
    "own.tokens=120",
    "own.epochs=1",
    "evaluation.test_tokens=120",
)


def write_people(path: Path, number: int, seed: int = 5) -> Path:
    """Write `number` invented people, each with favourite words of their own: 6 history and 2 test documents."""
    rng = random.Random(seed)  # words for a test, no secret
    with path.open("w") as file:
        for user in range(number):
            favourites = rng.sample(THINGS, 4)
            for i in range(8):
                words = [f"I {rng.choice(DOINGS)} the {rng.choice(favourites)}" for _ in range(rng.randint(2, 3))]
                record = {"user": f"u{seed}x{user:02d}", "i": i, "split": "test" if i >= 6 else "history"}
                file.write(json.dumps({**record, "text": " ".join(words) + "."}) + "\n")
    return path


class HostsHere:
    """Hosts without processes: the same work, in order, in this process. `log` holds every call and its result."""

    def __init__(self, settings: Sequence[HostSettings]) -> None:
        from simulation.work import HostWork

        self.works = [HostWork(one) for one in settings]
        self.homes = [(one.everybody, work) for work, one in zip(self.works, settings, strict=True)]
        self.log: list[tuple[str, str, tuple[Any, ...], Any]] = []

    def run(
        self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
    ) -> None:
        for user, (method, arguments) in calls:
            result = getattr(next(work for people, work in self.homes if user in people), method)(*arguments)
            self.log.append((user, method, arguments, result))
            done(user, result)

    def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(work, method)(*arguments) for work in self.works]

    @property
    def sentinels(self) -> Sequence[int]:
        return ()

    def life(self, user: str) -> int:
        return 0

    def listen(self, folder: Path) -> None:
        self.everywhere("listen", str(folder))

    def __enter__(self) -> HostsHere:
        return self

    def __exit__(self, *_: object) -> None:
        for work in self.works:
            work.devices.close()


class Run(Protocol):
    """Runs a federation of the tiny model in this process: `run(out, *settings, replay=..., hosts=...)`."""

    people: Path
    key: Path

    def config(self, *settings: str) -> RunConfig:
        """Return the fast configuration with `settings` on top."""

    def arguments(self, *settings: str) -> list[str]:
        """Return the same as arguments of the command line."""

    def __call__(
        self, out: Path, *settings: str, replay: bool = False, overwrite: bool = False, hosts: Any = None
    ) -> Report:
        """Run to the end and return the report; `hosts`, if given, gets the hosts that were used."""


class FastRun:
    def __init__(self, people: Path, model: Path, key: Path) -> None:
        self.people, self.model, self.key = people, model, key

    def settings(self, *settings: str) -> list[str]:
        return [f'people="{self.people}"', f'model="{self.model}"', *FAST, *settings]

    def config(self, *settings: str) -> RunConfig:
        return load_config(None, self.settings(*settings))

    def arguments(self, *settings: str) -> list[str]:
        return [word for setting in self.settings(*settings) for word in ("--set", setting)]

    def __call__(
        self, out: Path, *settings: str, replay: bool = False, overwrite: bool = False, hosts: Any = None
    ) -> Report:
        def open_hosts(given: Sequence[HostSettings]) -> HostsHere:
            here = HostsHere(given)
            if hosts is not None:
                hosts.append(here)
            return here

        config = self.config("workers=1", *settings)
        key = self.key if replay else None
        progress = Progress(quiet=True)
        return simulate(config, out, progress, overwrite=overwrite, replay=key, open_hosts=open_hosts)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of bases for these tests alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(
    cache: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Return what runs a fast federation of 18 invented people."""
    monkeypatch.setenv("CONFIDE_CACHE", str(cache))
    people = cache / "people.jsonl"
    if not people.exists():
        write_people(people, PEOPLE)
        (cache / "noise.key").write_bytes(bytes(range(32)))
    return FastRun(people, tiny_model_dir, cache / "noise.key")


@pytest.fixture
def hosts_here() -> type[HostsHere]:
    """Return the hosts without processes."""
    return HostsHere


@pytest.fixture(scope="session")
def strangers(cache: Path) -> Path:
    """Return a file of four people whom no run has seen."""
    return write_people(cache / "strangers.jsonl", 4, seed=11)


@pytest.fixture(scope="session")
def few(cache: Path) -> Path:
    """Return a file of eight people: too few for a query."""
    return write_people(cache / "few.jsonl", 8)
