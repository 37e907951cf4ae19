"""A relay with a user of its own: what is set up, where, whose it is, and what is refused."""

from __future__ import annotations

import json
import os
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import relay_user
from client.agent_home import AgentHome
from client.join import join
from client.relay_user import RelayPlace, place_of, put_pins, remove, set_up, user_of
from client.take_part import relay_environment, supernode, take_part_as_relay
from privacy.enrolment import new_code, weights_sha256
from privacy.errors import ConfigError
from tests.operator_by_hand import ROOT_KEY, invitation_of

OTHER = "nobody"  # is on every machine
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentHome]:
    """Yield a home that has joined, without weights that anything would load; relays' folders lie beside it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setenv("CONFIDE_RELAY", str(tmp_path / "relays"))
    made = AgentHome(tmp_path / "device")
    join(made, invitation_of(model_sha256=weights_sha256(model)).signed(ROOT_KEY), new_code(), model)
    yield made


@pytest.fixture
def place(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> RelayPlace:
    """Return the place of a relay that runs as nobody; whether nobody can run Python here is no matter of this file."""
    monkeypatch.setattr(relay_user, "_require_python", lambda relay: None)
    return set_up(home, OTHER)


def mode(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mode & 0o7777, found.st_uid, found.st_gid


@as_root
def test_the_relays_folder_is_the_relays_and_the_seam_the_persons(home: AgentHome, place: RelayPlace) -> None:
    nobody = pwd.getpwnam(OTHER)
    assert (place.user, place.group) == (nobody.pw_uid, nobody.pw_gid)
    assert mode(place.folder) == (0o711, nobody.pw_uid, nobody.pw_gid)
    assert mode(place.folder / "supernode") == (0o600, nobody.pw_uid, nobody.pw_gid)
    assert mode(place.seam) == (0o2750, os.getuid(), nobody.pw_gid)
    assert {path.name for path in place.seam.iterdir()} == {"address", "authority.crt", "bundle.sha256"}
    assert {mode(path) for path in place.seam.iterdir()} == {(0o640, os.getuid(), nobody.pw_gid)}
    assert (place.seam / "address").read_text() == "example.org:9092"
    assert place_of(home.settings) == place and mode(home.folder / "agent.json")[1] == os.getuid()
    assert set_up(home, OTHER) == place, "again: the same"
    (home.folder / "bundle.sha256").write_text("f" * 64)
    put_pins(home, place)
    assert (place.seam / "bundle.sha256").read_text() == "f" * 64, "a newer invitation reaches the relay"
    remove(home)
    assert not place.folder.exists()
    with pytest.raises(ConfigError, match=r"is gone: `confide device relay-user`"):
        _ = place.user


@as_root
def test_its_environment_holds_nothing_of_the_persons(
    home: AgentHome, place: RelayPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONFIDE_PASSPHRASE", "AWS_SECRET", "HOME", "SSH_AUTH_SOCK", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "of the person")
    found = relay_environment(place)
    assert "of the person" not in json.dumps(found) and str(home.folder) not in json.dumps(found)
    assert found["CONFIDE_HOME"] == str(place.seam) and found["HOME"] == str(place.folder)
    first = Path(found["PATH"].partition(":")[0]) / "flwr-clientapp"
    assert first.stat().st_mode & 0o777 == 0o755 and "client.launcher" in first.read_text()
    command = supernode(place.seam, "example.org:9092", place.folder)
    assert str(place.folder / "supernode") in command and str(place.seam / "authority.crt") in command


@as_root
@pytest.mark.parametrize("name", ["root", "no/such:user"])
def test_root_and_who_cannot_be_a_user_are_refused(home: AgentHome, name: str) -> None:
    before = home.settings
    with pytest.raises(ConfigError) as refused:
        set_up(home, name)
    assert "\n" not in str(refused.value) and home.settings == before


@as_root
def test_a_user_who_cannot_run_this_python_is_refused(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(home.folder / "python"))  # a folder of the person's alone
    with pytest.raises(ConfigError, match=r"nobody cannot run .*install confide where every user can read it"):
        set_up(home, OTHER)
    assert home.settings.relay == "" and not (relay_user.places()).exists()
    assert user_of(OTHER).pw_name == OTHER


def test_who_is_not_root_is_told_what_to_do(home: AgentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="needs root, once: `sudo confide device relay-user`"):
        set_up(home)
    assert home.settings.relay == ""


def test_a_service_runs_the_relay_as_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match="another user's"):
        take_part_as_relay(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid or 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=r"another user's|no relay's folder"):
        take_part_as_relay(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before
