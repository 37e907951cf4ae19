"""The relay: what it imports, what it lets through, what it says when it fails; one person's messages through many."""

from __future__ import annotations

import ast
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error

import client.app
from client.app import pass_on
from client.listener import RelaySocket
from client.service import Pace, Worker
from privacy.answer import make_answer
from privacy.fixedpoint import from_ring
from privacy.secagg.messages import Masked
from privacy.secagg.server import SumServer
from privacy.session import Accepted, Greeting, Hello, Received
from privacy.wire import MAX_BYTES, decode
from tests.agents_by_hand import PLANTED, Crew
from tests.flower_messages import ROOT, Relays, carried, context_of, frames_of, instruction

SOURCE = Path(client.app.__file__)
GREETING = Greeting("7" * 64).encode()
HELLO = Hello("ann", 1, bytes(64)).encode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short name, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="confide-test-"))
    yield path
    shutil.rmtree(path)


class Agent:
    """An agent of one answer at a socket of its own. `heard` holds what came: place, node, frame."""

    def __init__(self, path: Path, answer: bytes = HELLO) -> None:
        self.path, self.answer, self.heard = path, answer, list[tuple[int, int, bytes]]()
        self.socket = RelaySocket(path, self._reply)

    def _reply(self, place: int, node: int, frame: bytes) -> bytes:
        self.heard.append((place, node, frame))
        return self.answer


@pytest.fixture
def agent(folder: Path) -> Iterator[Agent]:
    one = Agent(folder / "relay.sock")
    yield one
    one.socket.close()


def relayed(agent_path: Path, frames: object) -> Message:
    return pass_on(instruction(frames), context_of(9, confide_socket=str(agent_path)))


# -- what it is -----------------------------------------------------------------------------------------------------


def test_the_relay_is_small_and_imports_flower_and_the_wire_alone() -> None:
    text = SOURCE.read_text()
    assert len(text.splitlines()) < 100
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            names.add(node.module)
        elif isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"__import__", "importlib.import_module", "exec", "eval"}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in others if name.split(".")[0] != "flwr"} == {"privacy.wire"}


def test_a_process_that_relays_holds_no_model_no_agent_no_server_and_little_memory(folder: Path, agent: Agent) -> None:
    """Most memory ever resident after real messages; read from the kernel, not from Python's own count."""
    code = """
import json, os, sys
from tests.flower_messages import context_of, frames_of, instruction
from client.app import app
for _ in range(3):
    reply = app(instruction([bytes.fromhex(sys.argv[2])], "query.hello"), context_of(9, confide_socket=sys.argv[1]))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"frames": [f.hex() for f in frames_of(reply)], "modules": sorted(sys.modules),
                  "resident": int(status["VmHWM"].split()[0]) * 1024}))
"""
    command = [sys.executable, "-c", code, str(agent.path), GREETING.hex()]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=60, check=True)
    facts = json.loads(done.stdout)
    assert facts["frames"] == [HELLO.hex()]
    loaded = {name.split(".")[0] for name in facts["modules"]}
    assert not loaded & {"torch", "transformers", "tokenizers", "safetensors", "spacy", "server", "simulation"}
    ours = {name for name in facts["modules"] if name.split(".")[0] in {"client", "privacy"}}
    assert {name for name in ours if name.startswith("client")} == {"client", "client.app"}
    assert not ours & {"privacy.ledger", "privacy.noise", "privacy.secagg.device", "privacy.adapter"}
    assert facts["resident"] < 120 * 2**20


# -- what it lets through -------------------------------------------------------------------------------------------


def test_it_passes_a_request_in_and_a_message_out_with_place_and_node(agent: Agent) -> None:
    assert frames_of(relayed(agent.path, [b"", GREETING, b"", GREETING])) == [b"", HELLO, b"", HELLO]
    assert agent.heard == [(1, 9, GREETING), (3, 9, GREETING)]


@pytest.mark.parametrize(
    "frames",
    [
        [HELLO],
        [GREETING + b"x"],
        [GREETING[:-1]],
        [PLANTED.encode()],
        [bytes(9)],
        [],
        "text",
        ["text"],
        [1],
        7,
        b"bytes",
    ],
)
def test_what_is_no_request_never_reaches_the_agent(agent: Agent, frames: object) -> None:
    reply = relayed(agent.path, frames)
    assert set(frames_of(reply)) <= {b""}
    assert agent.heard == [] and PLANTED.encode() not in carried(reply)


@pytest.mark.parametrize(
    "record", [RecordDict(), RecordDict({"confide": ConfigRecord()}), RecordDict({"x": ConfigRecord()})]
)
def test_a_message_of_another_form_is_answered_with_no_frame(agent: Agent, record: RecordDict) -> None:
    message = instruction([])
    message.content = record
    assert frames_of(pass_on(message, context_of(9, confide_socket=str(agent.path)))) == []


def test_an_error_message_of_the_server_is_answered_with_no_frame(agent: Agent) -> None:
    message = Message(Error(code=3, reason="x"), reply_to=instruction([]))
    assert frames_of(pass_on(message, context_of(9, confide_socket=str(agent.path)))) == []


@pytest.mark.parametrize(
    "answer",
    [PLANTED.encode(), HELLO + PLANTED.encode(), HELLO[:-1], GREETING, b"confide\x01\x02" + PLANTED.encode(), bytes(3)],
)
def test_what_the_agent_sends_that_is_no_message_becomes_an_empty_frame(agent: Agent, answer: bytes) -> None:
    agent.answer = answer
    reply = relayed(agent.path, [GREETING])
    assert frames_of(reply) == [b""] and PLANTED.encode() not in carried(reply)


@pytest.mark.parametrize(
    "raw", [b"", b"\x05", struct.pack("<I", 9) + HELLO[:4], struct.pack("<I", MAX_BYTES + 1), b"\xff" * 4]
)
def test_an_agent_that_hangs_up_or_announces_too_much_becomes_an_empty_frame(folder: Path, raw: bytes) -> None:
    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(2**16)
            connection.sendall(raw)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(os.fspath(folder / "raw.sock"))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        assert frames_of(relayed(folder / "raw.sock", [GREETING])) == [b""]
        thread.join()


# -- what it says when it fails -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *((client.app, name) for name in ("answer_of", "decode_request", "agent_of", "exchange", "decode", "Path")),
        *((socket, "socket"), (struct, "pack"), (struct, "unpack"), (os, "fspath")),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError, OSError, MemoryError, RecursionError, UnicodeError])
def test_whatever_part_fails_no_text_is_in_the_reply(
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    error: type[Exception],
    caplog: Any,
    capfd: Any,
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error(PLANTED)

    message, context = instruction([GREETING, GREETING]), context_of(9, confide_socket=str(agent.path))
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        reply = pass_on(message, context)
    assert not reply.has_error()
    assert frames_of(reply) == [b"", b""]
    assert PLANTED.encode() not in carried(reply)
    assert PLANTED not in caplog.text + "".join(capfd.readouterr())


def test_the_search_for_text_in_a_reply_finds_it_where_flower_puts_it() -> None:
    """The positive control: an exception that does leave a ClientApp is what Flower would carry."""
    message = Message(Error(code=1, reason=f"<class 'RuntimeError'>:<'{PLANTED}'>"), reply_to=instruction([]))
    assert PLANTED.encode() in carried(message)


@pytest.mark.parametrize("lacking", ["no socket", "a file", "a folder", "nothing configured"])
def test_no_agent_is_an_empty_frame(folder: Path, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.delenv("CONFIDE_SOCKET", raising=False)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(folder / "none"))
    (folder / "file").write_text("x")
    path = {"no socket": folder / "x", "a file": folder / "file", "a folder": folder}.get(lacking)
    config = {} if path is None else {"confide_socket": str(path)}
    assert frames_of(pass_on(instruction([GREETING]), context_of(9, **config))) == [b""]


# -- where the agent is ---------------------------------------------------------------------------------------------


def test_nothing_that_the_server_writes_names_the_socket(
    folder: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's message and run configuration name a trap in every way; the node's own word is followed."""
    trap = Agent(folder / "trap.sock")
    for name in ("confide-socket", "CONFIDE_SOCKET", "CONFIDE_SOCKETS", "confide_socket", "socket"):
        message = instruction([GREETING])
        message.content = RecordDict(
            {
                "confide": ConfigRecord({"frames": [GREETING], name: str(trap.path)}),
                name: ConfigRecord({name: str(trap.path)}),
            }
        )
        context = context_of(9, confide_socket=str(agent.path))
        context.run_config = {name: str(trap.path)}
        context.state = RecordDict({"confide": ConfigRecord({name: str(trap.path)})})
        assert frames_of(pass_on(message, context)) == [HELLO]
        monkeypatch.setenv("CONFIDE_SOCKET", str(agent.path))
        context.node_config = {}
        assert frames_of(pass_on(message, context)) == [HELLO]
        monkeypatch.delenv("CONFIDE_SOCKET")
        monkeypatch.setenv("CONFIDE_SOCKETS", str(folder / "none"))
        assert frames_of(pass_on(message, context)) == [b""]
    assert trap.heard == []
    trap.socket.close()


def test_in_a_simulation_every_person_of_a_node_is_found_on_their_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = [Agent(folder / f"{w}.sock") for w in range(2)]
    monkeypatch.delenv("CONFIDE_SOCKET", raising=False)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(folder))
    for node in range(3):  # people 0..6 on 3 nodes: node p relays for p, p + 3, p + 6
        people = range(node, 7, 3)
        reply = pass_on(instruction([GREETING] * len(people)), context_of(node, partition_id=node, num_partitions=3))
        assert frames_of(reply) == [HELLO] * len(people)
    reached = {(w, place) for w, host in enumerate(hosts) for place, _, _ in host.heard}
    assert reached == {(j % 2, j // 2) for j in range(7)}
    for host in hosts:
        host.socket.close()


@pytest.mark.skipif(os.getuid() != 0, reason="another user id needs root")
def test_a_folder_of_another_user_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Agent(folder / "0.sock")
    monkeypatch.delenv("CONFIDE_SOCKET", raising=False)
    monkeypatch.setenv("CONFIDE_SOCKETS", str(folder))
    os.chown(folder, 12345, 12345)
    assert frames_of(pass_on(instruction([GREETING]), context_of(0, partition_id=0, num_partitions=1))) == [b""]
    assert host.heard == []
    host.socket.close()


# -- one person through many relays ---------------------------------------------------------------------------------


def test_every_message_of_one_person_through_a_relay_process_of_its_own_and_the_sum_is_exact(
    tmp_path: Path, folder: Path
) -> None:
    lock = threading.RLock()
    crew = Crew(tmp_path, 4, "masked", Pace(patience_s=20.0), Worker(lock))
    agent = RelaySocket(folder / "relay.sock", crew.service.reply)
    config: dict[str, str | int] = {"confide-socket": str(agent.path)}
    relays, kinds = Relays(), list[str]()

    def ask(place: int, kind: str, frame: bytes) -> bytes:
        """The first person's frames go through a new process each, those of the others straight to the agent."""
        if place != 0:
            return crew.service.reply(place, 9, frame)
        kinds.append(kind)
        return frames_of(relays(instruction([frame], kind), 9, config))[0]

    nonce = "5" * 64
    for place, user in enumerate(crew.users):
        hello = decode(ask(place, "query.hello", Greeting(nonce, crew.offered).encode()))
        assert isinstance(hello, Hello) and hello.held == (0 if place == 0 else 3)
        hello.verify(crew.keys[user].public_key(), 9, nonce)
        assert isinstance(decode(ask(place, "train.release", crew.delivery)), Received)
        assert isinstance(decode(ask(place, "train.fit", crew.training)), Accepted)
    machine = SumServer(crew.query, crew.users, crew.directory)
    seen: list[bytes] = []
    while not machine.finished:
        stage = machine.stage
        for name, frame in machine.requests().items():
            answer = ask(crew.users.index(name), f"train.{stage}", frame)
            seen.append(answer)
            assert machine.receive(name, answer), (stage, name, decode(answer))
        machine.advance()
    assert len(set(relays.processes)) == 8
    assert kinds == ["query.hello", "train.release", "train.fit"] + [
        f"train.{stage}" for stage in ("advertise", "shares", "mask", "confirm", "unmask")
    ]
    vectors = [
        make_answer(crew.learner.update(user, {}, crew.query, 0), crew.query, user, crew.noise_key(user)).vector
        for user in crew.users
    ]
    assert np.array_equal(machine.total, from_ring(np.sum(vectors, axis=0, dtype=np.uint32)))
    masked = [message.vector for message in map(decode, seen) if isinstance(message, Masked)]
    assert len(masked) == 4 and not any(np.array_equal(m, v) for m in masked for v in vectors)
    agent.close()
    crew.close()
    relays.close()
