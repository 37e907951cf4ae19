"""One SuperLink, two devices over TLS, all by the commands; a device is killed in the middle of a round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.release import verify_release
from tests.federation_by_command import Federation, made_basis, until

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, tiny_model_dir, made_basis(tmp_path, tiny_model_dir), devices=2)
    try:
        yield made
    finally:
        assert made.commands.end() == []


def test_two_devices_and_one_is_killed_in_a_round(federation: Federation) -> None:
    federation.start()
    for number in (1, 2):
        joined = federation.enrol(number)
        federation.take_part(number)
        assert federation.admit(number, joined)["registered"]
    run = federation.commands.background("run", "server", "run", federation.server)
    first = federation.home(1)

    until(lambda: federation.sums(0) or run.poll() is not None, "the sum of round 0")
    until(lambda: federation.came_to(first, 1, "advertised") or run.poll() is not None, "a stage of round 1")
    assert not federation.sums(1), "the round was over before anything could be killed in it"
    federation.commands.kill("client.resident", first.folder)

    until(lambda: run.poll() is not None, "the campaign is over")
    assert run.returncode == 0, (federation.commands.folder / "run.err").read_text()
    assert len(federation.sums(1)) == 1 and federation.lost(1) >= 1, "out of the sum it was killed in, in for the next"
    federation.check_books()
    key = Ed25519PrivateKey.from_private_bytes(
        (federation.server / "server" / "checkpoints" / "server.key").read_bytes()
    )
    release = verify_release(federation.server / "server" / "release", key.public_key())
    assert release.facts.round == 2
    told = federation.commands.confide("server", "status", federation.server)
    assert told["campaign"]["released"] and told["devices"] == 2 and told["runs"]
    for home in federation.homes:
        assert home.held_directory is not None and home.held_directory.serial == 2
        federation.commands.confide("audit", "ledger", home.ledger_file)
        assert not list((home.folder / "flower").rglob("*.py")), "nothing of the server's bundle lies on a device"
