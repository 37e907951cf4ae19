"""A run on a Ray cluster of two nodes: the same release as on one, and what dies is started again."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import simulation.flower
from privacy.errors import ConfigError
from simulation.cluster import ClusterPool
from simulation.config import load_config
from simulation.host import Before, Call, HostSettings, nothing
from simulation.progress import Progress
from simulation.run import opener, simulate

pytestmark = [  # Ray leaves its /dev/null open
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ONE_ROUND = ("rounds=1", "compare_without_noise=false")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Yield the address of two nodes of two processors, each with its own folder for temporary files, as machines."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="cf-") as place:
        ray = Cluster()
        for name in ("a", "b"):
            (Path(place) / name).mkdir()
            variables = {"TMPDIR": f"{place}/{name}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
            ray.add_node(num_cpus=2, include_dashboard=False, env_vars=variables)
        try:
            yield ray.address
        finally:
            ray.shutdown()


def released(folder: Path) -> bytes:
    return (folder / "release" / "global" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def alone(run: Any, tmp_path: Path) -> bytes:
    """Return the release of the same run in this process."""
    run(tmp_path / "alone", *ONE_ROUND, replay=True)
    return released(tmp_path / "alone")


class Watched(ClusterPool):
    """A pool that tells where its hosts were, and lets a test in at each exchange of frames."""

    seen: list[str]
    exchanges = 0
    at: Callable[[Watched, int, int], None] = staticmethod(lambda *_: None)

    def run(
        self, calls: Sequence[tuple[str, Call]], done: Callable[[str, Any], None], before: Before = nothing
    ) -> None:
        if calls and calls[0][1][0] == "relay":
            self.exchanges += 1
        heard: list[str] = []

        def told(user: str, result: Any) -> None:
            done(user, result)
            heard.append(user)
            type(self).at(self, self.exchanges, len(heard))

        type(self).seen = self.nodes()
        super().run(calls, told, before)


def relays() -> list[int]:
    """Return the processes in which Flower's workers relay."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"ClientAppActor" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


def killing(pool: Watched, exchange: int, heard: int) -> None:
    if (exchange, heard) == (4, 3) and not any(pool.restarts):
        os.kill(pool.processes()[1], signal.SIGKILL)


@pytest.mark.slow
def test_hosts_on_two_nodes_release_what_one_process_does_also_where_one_is_killed(
    run: Any, cluster: str, alone: bytes, tmp_path: Path
) -> None:
    config = run.config(*ONE_ROUND, f'cluster="{cluster}"', "workers=4")
    assert opener(config).func is ClusterPool  # type: ignore[attr-defined]
    pools: list[Watched] = []
    for name, at in (("whole", lambda *_: None), ("killed", killing)):

        def opened(settings: Sequence[HostSettings], at: Any = at) -> Watched:
            Watched.at = staticmethod(at)
            pools.append(Watched(settings, cluster))
            return pools[-1]

        simulate(config, tmp_path / name, Progress(quiet=True), replay=run.key, open_hosts=opened)
        assert released(tmp_path / name) == alone
        assert len(set(Watched.seen)) == 2 and len(Watched.seen) == 4, "two hosts on each node"
    assert [pool.restarts for pool in pools] == [[0] * 4, [0, 1, 0, 0]]


@pytest.mark.slow
def test_flower_on_two_nodes_releases_what_one_process_does_with_a_relay_killed(
    run: Any, cluster: str, alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, killed = simulation.flower._show, list[int]()

    def show(event: str, line: dict[str, Any], watch: Any) -> None:
        shown(event, line, watch)
        if event == "answered" and not killed:
            killed.append(relays()[0])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(simulation.flower, "_show", show)
    config = run.config(*ONE_ROUND, f'cluster="{cluster}"', "workers=2", "engine=flower")
    simulate(config, tmp_path / "flower", Progress(quiet=True), replay=run.key)
    assert killed and released(tmp_path / "flower") == alone


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fit", "answer"])
def test_flower_on_two_nodes_runs_the_people_of_a_killed_host_again(
    run: Any, cluster: str, alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Killed as training begins, or with some answers given: the others' are of the same release, and all take part."""
    pools, killed = list[ClusterPool](), list[int]()
    pattern = {"fit": ("stage", 0), "answer": ("answered", 3)}[stage]
    shown, seen = simulation.flower._show, list[str]()

    def show(event: str, line: dict[str, Any], watch: Any) -> None:
        shown(event, line, watch)
        seen.append(event)
        if not killed and event == pattern[0] and seen.count(event) >= pattern[1]:
            killed.append(watch.pool.processes()[1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(simulation.flower, "_show", show)
    config = run.config(*ONE_ROUND, f'cluster="{cluster}"', "workers=4", "engine=flower")

    def opened(settings: Sequence[HostSettings]) -> ClusterPool:
        pools.append(ClusterPool(settings, cluster))
        return pools[-1]

    report = simulate(config, tmp_path / "flower", Progress(quiet=True), replay=run.key, open_hosts=opened)
    assert killed and released(tmp_path / "flower") == alone
    assert [row["survivors"] for row in report["rounds"]] == [18], "nobody dropped out"


def test_no_cluster_is_said_in_one_line(run: Any, tmp_path: Path) -> None:
    config = load_config(None, run.settings(*ONE_ROUND, 'cluster="127.0.0.1:1"', "workers=2"))
    with pytest.raises(ConfigError, match="no Ray cluster at 127"):
        simulate(config, tmp_path / "none", Progress(quiet=True))
