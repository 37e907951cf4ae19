"""What Flower carries, logs and leaves behind: wire messages and nothing else; the same bits as without Flower.

One real Flower simulation for each transport, shared by all tests here: tiny model, 18 people with planted words, of
whom three fail on their devices with the planted words in the error.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.error import Error
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from safetensors.numpy import load_file

import simulation.flower
from privacy.session import Hello
from privacy.wire import Refusal, RefusalCode, decode, decode_request
from simulation.config import load_config
from simulation.host import HostSettings
from simulation.progress import Progress
from simulation.run import simulate
from tests.flower_messages import frames_of, instruction
from tests.simulation.conftest import FAST, PEOPLE, HostsHere, write_people
from tests.simulation.planted import forms_of, found
from tests.simulation.recorded_flower import RECORDS

PLANTED = ("Zebedee-Quillfeather-7731", "Ottoline Brackenbury's greenhouse key")
FAILING = {"u5x03": RuntimeError, "u5x08": OSError, "u5x13": ImportError}
LITTLE, MUCH = "u5x01", "u5x02"
TRANSPORTS = ("ideal", "off", "masked")


def plant(path: Path) -> Path:
    """Write the people: planted words in everybody's text; one has a single short document, one has very much."""
    import json

    records = [json.loads(line) for line in write_people(path, PEOPLE).read_text().splitlines()]
    kept = []
    for record in records:
        if record["user"] == LITTLE and record["split"] == "history":
            if record["i"]:
                continue
            record["text"] = f"{PLANTED[0]}."
        else:
            record["text"] = f"{PLANTED[record['i'] % 2]}. {record['text']}"
        if record["user"] == MUCH:
            record["text"] = record["text"] + f" And {PLANTED[0]} with {PLANTED[1]}." * 12
        kept.append(json.dumps(record))
    path.write_text("\n".join(kept) + "\n")
    return path


class FailingHosts(HostsHere):
    """Hosts of which three people's devices fail, with the planted words in what they raise."""

    def __init__(self, settings: Sequence[HostSettings]) -> None:
        super().__init__(settings)
        for work in self.works:
            learner = work.learner
            update = learner.update

            def failing(user: str, *rest: Any, update: Any = update, **named: Any) -> Any:
                if user in FAILING and user != "u5x08":
                    raise FAILING[user](f"{PLANTED[0]} {PLANTED[1]}")
                return update(user, *rest, **named)

            learner.update = failing  # type: ignore[method-assign]
            if "u5x08" in work.devices:
                work.devices["u5x08"].ledger.reserve = full  # type: ignore[method-assign]


def full(*_: object, **__: object) -> Any:
    raise OSError(28, f"No space left on device: {PLANTED[0]}", PLANTED[1])


@dataclass
class Ran:
    """A run over Flower: its folder, all that Flower carried, all logs; what is alive after it."""

    folder: Path
    carried: list[tuple[str, bytes]] = field(default_factory=list)  # way, bytes
    logs: dict[str, bytes] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    sockets_left: list[str] = field(default_factory=list)

    def messages(self) -> Iterator[tuple[str, Message]]:
        for way, data in self.carried:
            yield way, message_from_proto(ProtoMessage.FromString(data))


def marked_processes(mark: str) -> list[str]:
    """Return the command lines of all living processes that were started under the environment marker `mark`."""
    alive = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if mark.encode() in (process / "environ").read_bytes():
                    alive.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return alive


def run_over_flower(folder: Path, people: Path, model: Path, transport: str, patch: pytest.MonkeyPatch) -> Ran:
    """Run a campaign over Flower with an ear on everything."""
    mark, records, ray = uuid.uuid4().hex, folder / "records", Path(tempfile.mkdtemp(prefix="cf-ray-"))
    records.mkdir(parents=True)
    patch.setenv("CONFIDE_TEST_MARK", mark)
    patch.setenv(RECORDS, str(records))
    patch.setenv("RAY_TMPDIR", str(ray))
    popen = simulation.flower.subprocess.Popen  # type: ignore[attr-defined]

    def recorded(command: Sequence[str], **named: Any) -> Any:
        if "simulation.flower_process" in command:
            command = [w.replace("simulation.flower_process", "tests.simulation.recorded_flower") for w in command]
        return popen(command, **named)

    patch.setattr(simulation.flower.subprocess, "Popen", recorded)  # type: ignore[attr-defined]
    patch.setattr(tempfile, "tempdir", str(ray))  # where the sockets' folder is made
    ran = Ran(folder / "run")
    with everything_into(folder / "own.log"):
        config = load_config(None, settings_of(people, model, "engine=flower", transport))
        simulate(config, ran.folder, Progress(quiet=True), replay=key_in(folder), open_hosts=FailingHosts)
    until = time.monotonic() + 5
    while marked_processes(mark) and time.monotonic() < until:
        time.sleep(0.2)
    ran.left = marked_processes(mark)
    ran.sockets_left = [str(p) for p in ray.glob("confide-*")]
    ran.carried = [(path.suffix[1:], path.read_bytes()) for path in sorted(records.iterdir())]
    ran.logs = {"own.log": (folder / "own.log").read_bytes()}
    ran.logs |= {str(p): p.read_bytes() for p in ray.rglob("*") if p.is_file() and not p.is_symlink()}
    shutil.rmtree(ray, ignore_errors=True)
    return ran


class everything_into:  # noqa: N801 - reads as a statement
    """Send stdout, stderr and every log record of this process into a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("wb")
        sys.stdout.flush(), sys.stderr.flush()
        self._kept = os.dup(1), os.dup(2)
        os.dup2(self._file.fileno(), 1), os.dup2(self._file.fileno(), 2)
        self._handler = logging.FileHandler(str(self._path) + ".records")
        self._level = logging.getLogger().level
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().setLevel(logging.DEBUG)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._level)
        self._handler.close()
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(self._kept[0], 1), os.dup2(self._kept[1], 2)
        self._file.write(Path(str(self._path) + ".records").read_bytes())
        self._file.close()


def settings_of(people: Path, model: Path, engine: str, transport: str) -> list[str]:
    rounds = 2 if transport == "masked" else 1
    return [
        *(
            f'people="{people}"',
            f'model="{model}"',
            *FAST,
            "workers=1",
            f"rounds={rounds}",
            "compare_without_noise=false",
        ),
        *(engine, f"privacy.transport={transport}"),
    ]


def key_in(folder: Path) -> Path:
    path = folder / "noise.key"
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture(scope="module")
def planted_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("people") / "people.jsonl")


@pytest.fixture(scope="module")
def runs(
    cache: Path, planted_people: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Ran]:
    """Return what gives the run of a transport, made when it is first asked for."""
    made: dict[str, Ran] = {}

    def of(transport: str) -> Ran:
        if transport not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CONFIDE_CACHE", str(cache))
                folder = tmp_path_factory.mktemp(f"flower-{transport}")
                made[transport] = run_over_flower(folder, planted_people, tiny_model_dir, transport, patch)
        return made[transport]

    return of


@pytest.fixture(scope="module")
def ids_of(tiny_model_dir: Path) -> Callable[[str], Sequence[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tensors(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / "release").rglob("*.safetensors"))
    return {f"{f.relative_to(folder)}:{name}": t.tobytes() for f in files for name, t in load_file(f).items()}


# -- the search -----------------------------------------------------------------------------------------------------


def test_the_search_finds_every_form_wherever_it_stands(ids_of: Callable[[str], Sequence[int]]) -> None:
    """The positive control: each form alone inside a Flower message, and whole base64 and hex dumps of a text."""
    noise = random.Random(1).randbytes(997)  # bytes around it, no secret
    for text in PLANTED:
        for name, form in forms_of(text, ids_of).items():
            assert any(name in hit for hit in found(noise + form + noise, [text], ids_of)), name
            reply = Message(RecordDict({"x": ConfigRecord({"y": [noise + form]})}), reply_to=instruction([]))
            assert found(message_to_proto(reply).SerializeToString(), [text], ids_of), name
        for before in range(7):
            whole = b"x" * before + f"I keep {text} at home.".encode()
            assert any("base64" in hit for hit in found(base64.b64encode(whole), [text], ids_of))
            assert any("urlsafe" in hit for hit in found(base64.urlsafe_b64encode(whole), [text], ids_of))
            assert any("hex" in hit for hit in found(whole.hex().encode(), [text], ids_of))
        error = Message(Error(code=1, reason=f"RuntimeError: {text}"), reply_to=instruction([]))
        assert found(message_to_proto(error).SerializeToString(), [text], ids_of)
    assert found(noise, PLANTED, ids_of) == []


def test_the_words_were_there_to_be_found(
    planted_people: Path, runs: Callable[[str], Ran], ids_of: Callable[[str], Sequence[int]]
) -> None:
    """Everybody's text holds them, and the devices that fail did fail: their refusals were carried."""
    assert found(planted_people.read_bytes(), PLANTED, ids_of)
    up = [decode(f) for way, m in runs("masked").messages() if way == "up" for f in frames_of(m) if f]
    unable = {m.device_id for m in up if isinstance(m, Refusal) and m.code == RefusalCode.UNABLE}
    assert unable == set(FAILING)
    assert b"a training" in runs("masked").logs["own.log"] or b"query" in runs("masked").logs["own.log"]


# -- what Flower carries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_that_was_planted_is_in_anything_that_flower_carries_or_logs(
    runs: Callable[[str], Ran], ids_of: Callable[[str], Sequence[int]], transport: str
) -> None:
    ran = runs(transport)
    ways = [way for way, _ in ran.carried]
    assert ways.count("up") >= 18 * 3 and ways.count("down") >= ways.count("up") > 0
    assert [hit for _, data in ran.carried for hit in found(data, PLANTED, ids_of)] == []
    assert any("raylet" in name for name in ran.logs) and len(ran.logs) > 5
    assert {name: hits for name, data in ran.logs.items() if (hits := found(data, PLANTED, ids_of))} == {}
    assert (ran.folder / "checkpoints" / "flower.log").stat().st_size > 0
    held = [p for p in ran.folder.rglob("*") if p.is_file()]
    assert len(held) > 10
    own = {"report.json", "report.html"}  # what the researcher of a simulation sees, no server has it
    in_files = {str(p): h for p in held if p.name not in own and (h := found(p.read_bytes(), PLANTED, ids_of))}
    assert in_files == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_message_is_of_a_wire_type_and_nothing_beside_it(runs: Callable[[str], Ran], transport: str) -> None:
    for way, message in runs(transport).messages():
        assert not message.has_error()
        assert set(message.content) == {"confide"}
        assert set(message.content.config_records["confide"]) == {"frames"}
        read: Callable[[bytes], Any] = decode_request if way == "down" else decode
        for frame in frames_of(message):
            assert read(frame).encode() == frame


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_sizes_of_messages_do_not_tell_how_much_text_a_person_has(
    runs: Callable[[str], Ran], transport: str
) -> None:
    """Of each kind the sizes that one device sent, and was sent, are those of every other device that did not fail."""
    sizes: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    devices: dict[int, str] = {}
    for way, message in runs(transport).messages():
        node = message.metadata.src_node_id if way == "up" else message.metadata.dst_node_id
        for frame in frames_of(message):
            read: Any = decode(frame) if way == "up" else decode_request(frame)
            if isinstance(read, Hello):
                devices[node] = read.device_id
            sizes[type(read).__name__][node].add(len(frame))
    assert {LITTLE, MUCH} <= set(devices.values())
    kinds = {"Greeting", "Hello", "Training", "Accepted", "Delivery", "Received", "Begin"}
    kinds |= {"Masked", "Unmask", "UnmaskRequest", "Shares"} if transport == "masked" else {"Answer"}
    assert kinds <= set(sizes)
    for kind, of_nodes in sizes.items():
        answered = {devices[node]: found for node, found in of_nodes.items() if devices[node] not in FAILING}
        if kind not in ("Refusal", "Delivery", "Received"):  # what a host has is delivered to it once
            assert {LITTLE, MUCH} <= set(answered), kind
        assert len(set(map(frozenset, answered.values()))) <= 1, (kind, answered)


# -- the same as without Flower -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_release_over_flower_is_bit_for_bit_that_of_the_local_engine(
    runs: Callable[[str], Ran],
    planted_people: Path,
    tiny_model_dir: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
) -> None:
    monkeypatch.setenv("CONFIDE_CACHE", str(cache))
    config = load_config(None, settings_of(planted_people, tiny_model_dir, "engine=local", transport))
    simulate(config, tmp_path / "run", Progress(quiet=True), replay=key_in(tmp_path), open_hosts=FailingHosts)
    local, flower = tensors(tmp_path / "run"), tensors(runs(transport).folder)
    assert local == flower and len(local) > 0
    assert any(any(bits) for bits in local.values()), "something was learned"


# -- nothing stays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_after_a_run_no_process_and_no_socket_of_it_is_left(runs: Callable[[str], Ran], transport: str) -> None:
    assert runs(transport).left == []
    assert runs(transport).sockets_left == []
