"""Who is refused at a real server, and in which words: a wrong certificate, a stranger, a replayed enrolment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.join import new_node_key
from client.take_part import node_environment, supernode
from privacy.errors import ConfideError
from server.certificates import days_left, new_authority
from tests.federation_by_command import Federation, made_basis, supernode_ends, until

pytestmark = pytest.mark.slow


@pytest.fixture
def federation(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Federation]:
    made = Federation(tmp_path, tiny_model_dir, made_basis(tmp_path, tiny_model_dir), devices=2)
    try:
        yield made
    finally:
        assert made.commands.end() == []


def last_words(folder: Path, address: str) -> str:
    """Return what a SuperNode of `folder` says in one line when the server does not take it."""
    return supernode_ends(supernode(folder, address), node_environment(folder), folder / "stranger.log")


def test_strangers_are_refused_in_one_line(federation: Federation) -> None:
    federation.start()
    joined = federation.enrol(1)
    folder, address = federation.home(1).folder, federation.address
    assert "not admitted yet" in last_words(folder, address), "enrolled, and admitted by nobody"

    pinned = (folder / "authority.crt").read_bytes()
    new_authority(folder / "other.key", folder / "authority.crt", "other")
    assert "not one of this federation's authority" in last_words(folder, address)
    (folder / "authority.crt").write_bytes(pinned)

    federation.admit(1, joined)
    with pytest.raises(ConfideError, match="used already"):
        federation.admit(1, joined)
    with pytest.raises(ConfideError, match="no code that is out"):
        federation.admit(2, federation.enrol(2, code=joined["code"]))

    mine, theirs = (folder / "supernode").read_bytes(), (folder / "supernode.pub").read_bytes()
    new_node_key(folder / "supernode")
    assert "not admitted yet, or revoked" in last_words(folder, address), "admitted under another key"
    (folder / "supernode").write_bytes(mine)
    (folder / "supernode.pub").write_bytes(theirs)

    with pytest.raises(ConfideError, match=r"1 devices are admitted, a round of this federation invites 2.*plan"):
        federation.commands.confide("server", "run", federation.server)

    federation.admit(2, federation.enrol(2))
    taken = federation.commands.confide("server", "revoke", federation.server, "device-2")
    assert taken["cut_off"] and taken["directory"] == 3
    assert "revoked" in last_words(federation.home(2).folder, address)


def test_a_new_certificate_serves_from_the_next_start_and_devices_need_nothing(federation: Federation) -> None:
    first = federation.start()
    federation.admit(1, federation.enrol(1))
    told = federation.commands.confide("server", "rotate", federation.server, "--certificates", "--directory")
    assert told["directory"] == 2 and days_left(federation.server / "tls" / "server.crt") == told["certificate_days"]
    first.terminate()
    assert first.wait(60) == 0
    federation.start()
    log = federation.home(1).folder / "logs" / "supernode.log"
    federation.take_part(1)
    until(lambda: log.exists() and b"SuperNode ID" in log.read_bytes(), "the device is connected again")
