"""What goes wrong in a real federation, one fault after the other: after each the exact sum or a clean abort, the books
right, and nobody's hand needed."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from client.take_part import node_environment, supernode
from privacy.errors import ConfideError
from server.events import events
from server.folder import OperatorFolder
from server.superlink import NAME, SuperLink
from tests.federation_by_command import Federation, made_basis, supernode_ends, until

pytestmark = pytest.mark.slow
STAGES = ("advertise", "shares", "mask", "confirm", "unmask")
DEVICES = 4  # three shares are needed of four: one may be lost


@pytest.fixture
def federation(tmp_path: Path, tiny_model_dir: Path, request: pytest.FixtureRequest) -> Iterator[Federation]:
    choices = getattr(request, "param", {})
    basis = made_basis(tmp_path, tiny_model_dir)
    made = Federation(tmp_path, tiny_model_dir, basis, devices=DEVICES, **choices)
    try:
        made.start()
        for number in range(1, DEVICES + 1):
            joined = made.enrol(number)
            made.take_part(number)
            made.admit(number, joined)
        yield made
    finally:
        assert made.commands.end() == []


def stage_begun(federation: Federation, number: int, stage: str) -> bool:
    seen = events(federation.server / "server")
    return any(e["event"] == "stage" and (e["round"], e["stage"]) == (number, stage) for e in seen)


def begun_or_over(federation: Federation, run: subprocess.Popen[bytes], number: int, stage: str) -> bool:
    return stage_begun(federation, number, stage) or run.poll() is not None


def summed_or_over(federation: Federation, run: subprocess.Popen[bytes], number: int) -> bool:
    return bool(federation.sums(number)) or run.poll() is not None


@pytest.mark.parametrize("federation", [{"rounds": len(STAGES)}], indirect=True)
def test_a_device_is_killed_in_each_of_the_five_messages(federation: Federation) -> None:
    run = federation.commands.background("run", "server", "run", federation.server)
    first = federation.home(1).folder
    for number, stage in enumerate(STAGES):
        until(partial(begun_or_over, federation, run, number, stage), f"{stage} of {number}")
        assert run.poll() is None, (federation.commands.folder / "run.err").read_text()
        federation.commands.kill("client.resident", first)
        until(partial(summed_or_over, federation, run, number), f"the sum of round {number}")
        assert len(federation.sums(number)) == 1
        federation.check_books()
    until(lambda: run.poll() is not None, "the campaign is over")
    assert run.returncode == 0, (federation.commands.folder / "run.err").read_text()
    answers = [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"]
    assert len(answers) == len(STAGES) and set(answers) <= {3, 4}
    assert answers[:3] == [3, 3, 3], "who died before its masked vector came is in no sum"


@pytest.mark.parametrize("federation", [{"rounds": 2}], indirect=True)
def test_the_server_is_killed_and_started_again(federation: Federation) -> None:
    run = federation.commands.background("run", "server", "run", federation.server)
    until(lambda: stage_begun(federation, 0, "mask"), "a stage of the first round")
    federation.process.kill()
    federation.process.wait()
    federation.commands.kill("flower-superlink")
    until(lambda: run.poll() is not None, "the run notices")
    assert run.returncode != 0
    federation.check_books()
    federation.start()
    told = federation.commands.confide("server", "run", federation.server)
    assert told["campaign"] == "campaign-1", "it went on with the same one"
    assert len(federation.sums(0)) == len(federation.sums(1)) == 1
    federation.check_books()


@pytest.mark.parametrize("federation", [{"rounds": 1}], indirect=True)
def test_a_device_whose_disk_is_full_is_out_and_comes_back(federation: Federation) -> None:
    [agent] = federation.commands.running("client.resident", federation.home(1).folder)
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    federation.commands.confide("server", "run", federation.server)
    assert [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"] == [3]
    federation.check_books()
    resource.prlimit(agent, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    federation.commands.confide("server", "run", federation.server)
    assert [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"] == [3, 4]


@pytest.mark.parametrize("federation", [{"rounds": 1, "stage": 30}], indirect=True)
def test_a_hostile_bundle_never_runs(federation: Federation) -> None:
    hostile, marker = federation.commands.folder / "hostile", federation.commands.folder / "it-ran"
    shutil.copytree(federation.server / "bundle", hostile)
    app = hostile / "client" / "app.py"
    app.write_text(app.read_text() + f"\nfrom pathlib import Path\nPath({str(marker)!r}).write_text('it ran')\n")
    tampered = federation.server / "bundle" / "client" / "app.py"
    before = tampered.read_bytes()
    tampered.write_bytes(before + b"\n")
    with pytest.raises(ConfideError, match="not what devices pinned"):
        federation.commands.confide("server", "run", federation.server)
    tampered.write_bytes(before)

    link = SuperLink(OperatorFolder(federation.server))
    from server.found import begin

    begin(link.operator, "hostile")
    run_id = link.flwr("run", str(hostile), NAME, "--format", "json").partition('"run-id": "')[2].partition('"')[0]
    until(lambda: link.run_status(run_id).startswith("finished"), "the hostile run is over", pause_s=5.0)
    log = b"".join((home.folder / "logs" / "supernode.log").read_bytes() for home in federation.homes)
    assert b"not the one pinned" in log
    assert not marker.exists(), "nothing of it ran on a device"
    assert not federation.sums(0)
    federation.check_books()


def test_a_device_whose_clock_is_off_is_refused_in_one_line(federation: Federation, tmp_path: Path) -> None:
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    (shifted / "sitecustomize.py").write_text(
        "import datetime\nimport flwr.supercore.date as d\n_now = d.now\n"
        "d.now = lambda: _now() + datetime.timedelta(hours=2)\n"
    )
    folder = federation.home(1).folder
    environment = node_environment(folder)
    environment["PYTHONPATH"] = f"{shifted}:{environment['PYTHONPATH']}"
    for pid in federation.commands.running("flower-supernode", folder):
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=False)
    told = supernode_ends(supernode(folder, federation.address), environment, tmp_path / "shifted.log")
    assert "a clock is minutes off" in told
