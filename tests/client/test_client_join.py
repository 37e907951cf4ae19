"""Joining and leaving: what a device pins and makes, what it refuses, and the programs it keeps up."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.agent_home import AgentHome
from client.federation_cli import compared
from client.join import PINNED, join, joined_invitation, leave, renew
from client.take_part import Kept, node_environment, supernode
from client.vault import Vault
from client.vault_key import Opener
from privacy.directory import Directory, Member, signed_directory
from privacy.enrolment import code_key, new_code, open_enrolment, proof_of, weights_sha256
from privacy.errors import ConfideError, ConfigError, SignatureInvalid
from privacy.policy import signed_policy
from tests.operator_by_hand import ROOT_KEY, invitation_of, policy_of

CODE = "K7Q2M-3F8WX-00ABC-9ZZZZ"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def invitation(model: Path) -> bytes:
    return invitation_of(model_sha256=weights_sha256(model)).signed(ROOT_KEY)


@pytest.fixture
def home(tmp_path: Path) -> AgentHome:
    return AgentHome(tmp_path / "home")


def files(home: AgentHome) -> set[str]:
    return {path.name for path in home.folder.iterdir()} if home.folder.exists() else set()


def test_a_device_pins_what_the_invitation_says_and_enrols_under_its_own_keys(
    home: AgentHome, invitation: bytes, model: Path
) -> None:
    enrolment = join(home, invitation, CODE, model, "ann", "home")
    found, proof = open_enrolment((home.folder / "enrolment.json").read_bytes())
    assert found == enrolment and found.device == home.settings.device == "ann"
    assert found.public_key == home.device_key.public_key().public_bytes_raw().hex()
    assert proof == proof_of(code_key(CODE), found.to_bytes())
    assert home.policy == policy_of() and home.settings.layers == 2 and home.settings.hold_s == 1.0
    assert home.held_directory is None, "a round brings it"
    for name in ("supernode", "device.key", "noise.key"):
        assert stat.S_IMODE((home.folder / name).stat().st_mode) == 0o600
    load_ssh_private_key((home.folder / "supernode").read_bytes(), None)
    secret = home.device_key.private_bytes_raw().hex().encode()
    assert secret not in (home.folder / "enrolment.json").read_bytes()
    assert joined_invitation(home).safety_number == invitation_of().safety_number


def test_joining_again_enrols_anew_under_the_same_keys(home: AgentHome, invitation: bytes, model: Path) -> None:
    first = join(home, invitation, CODE, model)
    again = join(home, invitation, new_code(), model)
    assert first.device.startswith("device-") and again.device == first.device
    assert (again.public_key, again.node_key) == (first.public_key, first.node_key)
    assert again.nonce != first.nonce and again.safety_number == first.safety_number
    with pytest.raises(ConfigError, match="joined as"):
        join(home, invitation, CODE, model, "another")


def test_nothing_is_written_for_what_is_refused(home: AgentHome, invitation: bytes, model: Path) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    forged = invitation.replace(b'"layers":2', b'"layers":3')
    for file, code, error in (
        (forged, CODE, SignatureInvalid),
        (invitation, "short", ConfigError),
        (invitation_of().signed(ROOT_KEY), CODE, ConfigError),  # another model's weights
        (invitation_of().signed(other), CODE, SignatureInvalid),
        (b"{}", CODE, ConfideError),
    ):
        with pytest.raises(error):
            join(home, file, code, model)
        assert files(home) == set()


def test_a_second_federation_is_refused_until_the_first_is_left(
    home: AgentHome, invitation: bytes, model: Path
) -> None:
    join(home, invitation, CODE, model)
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    root = key.public_key().public_bytes_raw().hex()
    policy = signed_policy(policy_of(), key).decode()
    other = invitation_of(root_key=root, policy=policy, model_sha256=weights_sha256(model)).signed(key)
    with pytest.raises(ConfigError, match="another federation's root key"):
        join(home, other, CODE, model)
    kept = home.device_key.private_bytes_raw()
    leave(home)
    assert not files(home) & set(PINNED) and not home.joined
    with pytest.raises(ConfigError, match="joined no federation"):
        leave(home)
    join(home, other, CODE, model)
    assert home.device_key.private_bytes_raw() == kept, "leaving a federation is no loss of keys"


def test_a_newer_invitation_of_the_same_root_key_is_taken_and_an_older_is_not(
    home: AgentHome, invitation: bytes, model: Path
) -> None:
    join(home, invitation, CODE, model)
    digest = weights_sha256(model)
    newer = invitation_of(
        model_sha256=digest, address="elsewhere:1", policy=signed_policy(policy_of(serial=2), ROOT_KEY).decode()
    )
    assert renew(home, newer.signed(ROOT_KEY)).address == "elsewhere:1"
    assert home.policy.serial == 2
    with pytest.raises(ConfigError, match="older"):
        renew(home, invitation)
    assert joined_invitation(home) == newer


def test_a_directory_is_kept_and_an_older_one_does_not_come_back(
    home: AgentHome, invitation: bytes, model: Path
) -> None:
    mine = join(home, invitation, CODE, model, "ann")

    def directory(serial: int, *more: str, federation: str = "trial") -> bytes:
        members = [Member("ann", mine.public_key, "home")]
        members += [Member(name, name.encode().hex().ljust(64, "0"), "home") for name in more]
        return signed_directory(Directory.of(federation, members, serial), ROOT_KEY)

    assert home.take_directory(directory(3, "bob")).serial == 3
    for wrong in (directory(2, "bob"), directory(3), directory(0), directory(9, federation="other")):
        with pytest.raises(ConfideError):
            home.take_directory(wrong)
    assert home.directory.serial == 3 and "bob" in home.directory
    assert home.take_directory(directory(4)).serial == 4 and "bob" not in home.directory


def test_a_number_that_differs_ends_the_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    number = invitation_of().safety_number
    compared("trial", number, number.replace(" ", ""))
    with pytest.raises(ConfigError, match="not the one you were told: do not join"):
        compared("trial", number, "12345")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match="no terminal"):
        compared("trial", number, "")


def test_the_supernode_finds_our_launcher_first_and_no_passphrase(
    home: AgentHome, invitation: bytes, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "open sesame")
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    join(home, invitation, CODE, model)
    environment = node_environment(home.folder)
    assert "open sesame" not in json.dumps(environment)
    assert environment["FLWR_HOME"] == str(home.folder / "flower")
    first = environment["PATH"].split(os.pathsep)[0]
    done = subprocess.run(
        [f"{first}/flwr-clientapp", "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert "client.launcher" in (Path(first) / "flwr-clientapp").read_text() and "pinned" in done.stdout
    command = supernode(home.folder, "fed.example.org:9092")
    assert command[command.index("--root-certificates") + 1] == str(home.folder / "authority.crt")
    assert command[command.index("--host") + 1] == "127.0.0.1" and "--insecure" not in command


def test_a_program_that_ends_is_started_again_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.take_part.AGAIN_S", (0.05, 0.1))
    grandchild = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    code = f"{grandchild}; print('started', flush=True); time.sleep(600)"
    kept = Kept([sys.executable, "-c", code], dict(os.environ), tmp_path / "it.log")

    def alive() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z" and int(fields[3]) == leader:
                found.append(int(path.parent.name))
        return found

    def gone() -> bool:
        end = time.monotonic() + 60.0
        while alive() and time.monotonic() < end:
            time.sleep(0.02)
        return not alive()

    def wait_for(starts: int) -> None:
        end = time.monotonic() + 120.0
        while (tmp_path / "it.log").read_bytes().count(b"started") < starts if (tmp_path / "it.log").exists() else True:
            assert time.monotonic() < end
            time.sleep(0.02)

    wait_for(1)
    assert kept.process is not None
    leader = kept.process.pid
    os.kill(leader, signal.SIGKILL)
    wait_for(2)
    assert gone(), "what it had started went with it"
    leader = kept.process.pid
    kept.stop()
    assert gone() and kept.starts == 2


def test_a_device_with_a_vault_keeps_its_keys_there(tmp_path: Path, invitation: bytes, model: Path) -> None:
    with closing(Vault.create(tmp_path / "home", Opener(passphrase="x"))) as vault:
        home = AgentHome(vault.folder, vault)
        enrolment = join(home, invitation, CODE, model, "ann")
        assert home.device_key.public_key().public_bytes_raw().hex() == enrolment.public_key
        assert not (home.folder / "device.key").exists() and not (home.folder / "noise.key").exists()
        assert set(json.loads((home.folder / "agent.json").read_text())) & {"person", "scrub", "dial"} == set()
        assert home.settings.device == "ann"


def test_a_program_that_cannot_be_started_is_told_of_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None that may be run, as for a relay's user who cannot read this Python: no thread ends, and it may come yet."""
    monkeypatch.setattr("client.take_part.AGAIN_S", (0.02, 0.05))
    program = tmp_path / "program"
    told: list[str] = []
    program.write_text("#!/bin/sh\necho there; sleep 600\n")
    kept = Kept([str(program)], dict(os.environ), tmp_path / "it.log", told.append)
    try:
        time.sleep(0.5)
        assert kept.starts == 0 and told == [f"{program} cannot be started: Permission denied"]
        program.chmod(0o755)
        end = time.monotonic() + 60.0
        while not (tmp_path / "it.log").read_bytes().startswith(b"there"):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(told) == 1
    finally:
        kept.stop()
