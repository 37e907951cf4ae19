"""A person's agent as a process of its own: what it makes, what it tells its person, what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import confide
from client.agent_home import AgentHome, AgentSettings
from client.app import exchange
from client.listener import ask
from client.own_text import own_documents
from client.resident import NONE, OWN, STOCK
from privacy.adapter import Basis, state_sha256
from privacy.canonical import sha256_hex
from privacy.directory import Directory, Member, signed_directory
from privacy.errors import ConfigError, DataError
from privacy.ledger import read_ledger
from privacy.policy import Policy, signed_policy
from privacy.query import Cohort, Limits, Query
from privacy.secagg.messages import Advertise, Begin
from privacy.session import Accepted, Delivery, Greeting, Hello, Received, Start, Training, basis_item
from privacy.wire import Refusal, RefusalCode, decode

ROOT = Path(confide.__file__).parent
COMMAND = [sys.executable, "-P", "-m", "client.resident", "--home"]
FEDERATION_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SECRET = "the heron at Lower Mill"


@pytest.fixture
def home(tmp_path: Path, tiny_model_dir: Path, tiny_basis: Basis) -> AgentHome:
    """Return a folder that joined a federation of two."""
    home = AgentHome(tmp_path / "h")
    settings = AgentSettings(
        "d1", str(tiny_model_dir), person="ada", layers=3, scrub=False, sampling_rate=1.0, hold_s=0, tick_s=0
    )
    home.save(settings)
    lines = [{"user": "ada", "text": f"I saw {SECRET} on day {i}."} for i in range(4)] + [
        {"user": "ben", "text": "No."}
    ]
    (home.folder / "people.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [*COMMAND, str(home.folder), "--enrol"], capture_output=True, text=True, check=True, env=env()
    )
    key = json.loads(done.stdout)["public_key"]
    members = [Member("d1", key, "here"), Member("d2", OTHER.public_key().public_bytes_raw().hex(), "here")]
    signer = FEDERATION_KEY.public_key().public_bytes_raw().hex()
    policy = Policy(
        "local", ("train.global",), Fraction(1), Fraction(1, 10), 2, Fraction(2, 3), 3, Fraction(3, 2),
        tiny_basis.layout.dim, Limits(64, 2), tiny_basis.sha256, signer,
    )  # fmt: skip
    (home.folder / "root.pub").write_text(signer)
    (home.folder / "policy.json").write_bytes(signed_policy(policy, FEDERATION_KEY))
    directory = Directory.of("local", members)
    (home.folder / "directory.json").write_bytes(signed_directory(directory, FEDERATION_KEY))
    return home


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


class Agent:
    """The agent's process over a folder."""

    def __init__(self, home: AgentHome) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [*COMMAND, str(home.folder)], env=env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == {"relay": "relay.sock", "person": "person.sock"}

    def send(self, frame: bytes) -> bytes:
        return exchange(self.home.folder / "relay.sock", 0, 7, frame)

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return errors


@pytest.fixture
def agent(home: AgentHome) -> Iterator[Agent]:
    agent = Agent(home)
    yield agent
    agent.process.kill()
    agent.process.communicate()


def query_and_items(home: AgentHome, basis: Basis, attempt: int = 0) -> tuple[Query, tuple[bytes, ...]]:
    import numpy as np

    slots = np.zeros((1, basis.layout.dim), np.float32)
    start = Start("local", "c", 0, slots).signed(FEDERATION_KEY)
    query = Query(
        federation="local", campaign="c", round=0, attempt=attempt, purpose="train.global", slots=1,
        slot_dim=basis.layout.dim, clip_norm=Fraction(1, 10), noise_multiplier=Fraction(1), cohort=Cohort(2),
        transport="masked", release_sha256=state_sha256(basis.sha256, basis.layout, [basis.layout.unflatten(slots[0])]),
        basis_sha256=basis.sha256, policy_sha256=home.policy.sha256, directory_sha256=home.directory.sha256,
        ledger_head="a" * 64, objective="next-token", limits=Limits(64, 2), replayed_noise=False,
    )  # fmt: skip
    return query, (basis_item(basis.to_bytes()), start.item())


def advertised(agent: Agent, query: Query) -> bytes:
    """Return the answer to the first stage of a sum, asked again while the device trains."""
    while True:
        frame = agent.send(Begin(query.sha256).encode())
        message = decode(frame)
        if not (isinstance(message, Refusal) and message.code == RefusalCode.BUSY):
            return frame
        time.sleep(0.1)


def test_keys_are_the_systems_and_only_this_user_reads_them(home: AgentHome) -> None:
    for name in ("device.key", "noise.key"):
        assert (home.folder / name).stat().st_mode & 0o777 == 0o600
    assert home.folder.stat().st_mode & 0o777 == 0o700
    assert home.noise_key != bytes(32) and home.noise_key != home.device_key.private_bytes_raw()


def test_an_agent_answers_is_killed_and_comes_back_without_forgetting_what_it_spent(
    home: AgentHome, agent: Agent, tiny_basis: Basis
) -> None:
    query, items = query_and_items(home, tiny_basis)
    hello = decode(agent.send(Greeting("c" * 64, tuple(sha256_hex(item) for item in items)).encode()))
    assert isinstance(hello, Hello) and hello.held == 0
    hello.verify(home.device_key.public_key(), 7, "c" * 64)
    assert isinstance(decode(agent.send(Delivery(items).encode())), Received)
    assert isinstance(decode(agent.send(Training(query.to_bytes()).encode())), Accepted)
    assert isinstance(decode(advertised(agent, query)), Advertise)
    status = ask(home.folder, {"do": "status"})
    assert (status["accepted"], status["answered"], status["rho"], status["basis"]) == (1, 0, "1/2", True)
    assert status["launcher"] == STOCK, "this test is no launcher of ours"
    agent.end(signal.SIGKILL)

    again = Agent(home)
    try:
        status = ask(home.folder, {"do": "status"})
        assert (status["accepted"], status["basis"], status["launcher"]) == (1, True, NONE)
        assert status["rho"] == "1/2" and 5 < status["epsilon"] < 6
        late = decode(again.send(Begin(query.sha256).encode()))
        assert isinstance(late, Refusal) and late.code == RefusalCode.STALE, "out of the sum that it was killed in"
        again.send(Delivery(items[1:]).encode())
        again.send(Training(query.to_bytes()).encode())
        late = decode(advertised(again, query))
        assert isinstance(late, Refusal) and late.code == RefusalCode.STALE, "also when it is asked to train again"
        other, _ = query_and_items(home, tiny_basis, attempt=1)
        assert isinstance(decode(again.send(Training(other.to_bytes()).encode())), Accepted)
        assert isinstance(decode(advertised(again, other)), Advertise)
        errors = again.end(signal.SIGTERM)
        assert again.process.returncode == 0 and SECRET not in errors
    finally:
        again.process.kill()
        again.process.communicate()
    view = read_ledger(home.ledger_file)
    assert [r.query.attempt for r in view.account.charged()] == [0, 1]
    assert not (home.folder / "relay.sock").exists()
    left = b"".join(file.read_bytes() for file in (home.folder / "answers").iterdir()) + home.ledger_file.read_bytes()
    assert SECRET.encode() not in left


def test_one_folder_has_one_agent(home: AgentHome, agent: Agent) -> None:
    done = subprocess.run([*COMMAND, str(home.folder)], capture_output=True, text=True, check=False, env=env())
    assert done.returncode == 1 and done.stderr.strip().endswith("another agent runs in this folder")
    assert ask(home.folder, {"do": "anything"}) == {"error": "unknown request"}


def test_the_persons_socket_wants_the_token(home: AgentHome, agent: Agent) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.connect(os.fspath(home.folder / "person.sock"))
        stranger.sendall(b"confide-person/1\n" + bytes(32) + b"\x02\x00\x00\x00{}")
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_a_ledger_without_its_keys_is_another_device(home: AgentHome, agent: Agent) -> None:
    agent.end(signal.SIGTERM)
    (home.folder / "noise.key").unlink()
    done = subprocess.run([*COMMAND, str(home.folder)], capture_output=True, text=True, check=False, env=env())
    assert done.returncode == 1 and "noise.key is gone" in done.stderr and "Traceback" not in done.stderr


def test_a_key_that_the_directory_does_not_name_is_refused_before_the_model_loads(home: AgentHome) -> None:
    members = [Member("d1", OTHER.public_key().public_bytes_raw().hex(), "here")]
    (home.folder / "directory.json").write_bytes(signed_directory(Directory.of("local", members), FEDERATION_KEY))
    done = subprocess.run([*COMMAND, str(home.folder)], capture_output=True, text=True, check=False, env=env())
    assert done.returncode == 1 and "under another key" in done.stderr


def test_a_policy_of_another_root_key_is_refused(home: AgentHome) -> None:
    (home.folder / "policy.json").write_bytes(signed_policy(home.policy, OTHER))
    done = subprocess.run([*COMMAND, str(home.folder)], capture_output=True, text=True, check=False, env=env())
    assert done.returncode == 1 and "does not verify" in done.stderr


def test_the_words_of_the_status_differ() -> None:
    assert "rights" in STOCK and "never" in OWN and len({STOCK, OWN, NONE}) == 3
    assert isinstance(FEDERATION_KEY.public_key(), Ed25519PublicKey)


@pytest.mark.parametrize(
    "values",
    [{}, {"device": "d"}, {"device": "a b", "model": "m"}, {"device": "d", "model": "m", "more": 1},
     {"device": "d", "model": "m", "layers": 0}, {"device": "d", "model": "m", "scrub": 1},
     {"device": "d", "model": "m", "hold_s": -1}, {"device": "d", "model": "m", "layers": "3"}],
)  # fmt: skip
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    (tmp_path / "agent.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        _ = AgentHome(tmp_path).settings


def test_only_the_persons_own_lines_and_files_are_read(tmp_path: Path) -> None:
    rows = [{"user": "ada", "text": "Mine."}, {"user": "ben", "text": "His."}, {"text": "Mine too."}]
    rows.append({"user": "ada", "text": "Held out.", "split": "test"})
    (tmp_path / "people.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "note.txt").write_text("A note.")
    (tmp_path / "text" / "image.png").write_bytes(b"\x89")
    assert [d.own_text.strip() for d in own_documents(tmp_path, "ada")] == ["Mine.", "Mine too.", "A note."]
    (tmp_path / "people.jsonl").write_text('{"user": "ada", "text": "unfinished')
    with pytest.raises(DataError, match=r"people\.jsonl:1") as failed:
        own_documents(tmp_path, "ada")
    assert "unfinished" not in str(failed.value)
