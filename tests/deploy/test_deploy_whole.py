"""The whole path, once: a server and eight devices in networks of their own, three rounds with personas, over real TLS,
watched from outside. One device has its text in a vault; all have sample people's words with a planted word in them.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import confide
from privacy.errors import ConfideError
from privacy.release import verify_release
from server.events import events
from simulation.population import load_people
from tests.capture import Packets, conversations, key_log, key_log_hook, said, spoken, unpacked
from tests.federation_by_command import ROOT, Federation, made_basis
from tests.namespaces import Network, network
from tests.simulation.planted import patterns_of, pieces

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DEVICES, ROUNDS, PERSONAS, VAULT = 8, 3, 2, 1
LEAKED = 8
# What a device would do that tells: over TLS that the server's certificate stands for, to a call that the door passes.
LEAK = """
import httpx, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
print(httpx.post(sys.argv[2], content=sys.stdin.buffer.read(), verify=context).status_code)
"""


def secret_of(number: int) -> str:
    return "".join(random.Random(f"planted {number}").choices("abcdefghijklmnopqrstuvwxyz", k=24))


@dataclass
class Said:
    """What passed between one device and the door, opened: whole streams, bodies, and what was compressed in them."""

    up: list[bytes] = field(default_factory=list)
    down: list[bytes] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)


@dataclass
class Seen:
    """The federation after its campaign, and what was seen on the bridge meanwhile."""

    federation: Federation
    net: Network
    secrets: Mapping[int, str]
    masked: Mapping[int, set[bytes]]
    said: Mapping[int, Said]
    others: set[tuple[str, int]]
    dropped: int
    leaked: str


class Kept:
    """Every masked answer as its device stored it before it left; devices drop them when a round is over."""

    def __init__(self, federation: Federation) -> None:
        self.found: dict[int, dict[Path, bytes]] = {n: {} for n in range(1, DEVICES + 1)}
        self._federation, self._over = federation, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Kept:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            for number, found in self.found.items():
                for path in (self._federation.home(number).folder / "answers").glob("*.masked"):
                    try:
                        found.setdefault(path, path.read_bytes())
                    except FileNotFoundError:
                        continue


def texts_of(number: int, own: Sequence[str]) -> list[str]:
    return [f"{text} Under the word {secret_of(number)} I keep it." for text in own]


def sample_people() -> list[list[str]]:
    """Return a few texts of each of eight people of the sample data set."""
    people = load_people("chitchat", DEVICES).people
    return [[" ".join(s.text for s in d.spans if s.own)[:200] for d in person.history[:6]] for person in people]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("whole")
    hook = key_log_hook(folder / "hook")
    with network(DEVICES) as net:
        basis = made_basis(folder, tiny_model_dir)
        choices: dict[str, str | int] = {"rounds": ROUNDS, "personas": PERSONAS, "noise-multiplier": "1/50"}
        made = Federation(folder, tiny_model_dir, basis, DEVICES, net, stage=300, **choices)
        try:
            with Packets(net.bridge) as packets, Kept(made) as kept:
                made.start(**hook | {"PYTHONPATH": f"{hook['PYTHONPATH']}:{ROOT}"})
                for number, own in enumerate(sample_people(), 1):
                    joined = made.enrol(number, texts=texts_of(number, own), vault=number == VAULT)
                    made.take_part(number)
                    made.admit(number, joined)
                made.commands.confide("server", "run", made.server)
                leaked = leak(made, net)
            others = {end for end in destinations(packets.seen) if end != (net.server, made.ports[0])}
            told = opened(packets.seen, made.ports[0], key_log(Path(hook["SSLKEYLOGFILE"])), net)
            secrets = {n: secret_of(n) for n in range(1, DEVICES + 1)}
            masked = {n: {data[32:] for data in found.values()} for n, found in kept.found.items()}
            yield Seen(made, net, secrets, masked, told, others, packets.dropped, leaked)
        finally:
            assert made.commands.end() == []


def leak(federation: Federation, net: Network) -> str:
    """Tell the planted word of one device over its network, packed; return what the door said."""
    body = gzip.compress(b"it is " + base64.b64encode(b"x" + secret_of(LEAKED).encode()))
    authority = str(federation.home(LEAKED).folder / "authority.crt")
    command = [*net.inside(LEAKED), sys.executable, "-c", LEAK, authority]
    address = f"https://{federation.address}/v1/fleet/push-object"
    done = subprocess.run([*command, address], input=body, capture_output=True, check=True)
    return done.stdout.decode().strip()


def destinations(frames: Sequence[bytes]) -> set[tuple[str, int]]:
    """Return to which addresses and ports the devices' packets went, and the number of another protocol than TCP."""
    found = set()
    for frame in frames:
        kind = struct.unpack("!H", frame[12:14])[0]
        if kind == 0x0800 and frame[29] != 1:  # from a device: the server is .1 of its network
            head = 14 + (frame[14] & 15) * 4
            port = struct.unpack("!H", frame[head + 2 : head + 4])[0] if frame[23] == 6 else -frame[23]
            found.add((".".join(map(str, frame[30:34])), port))
        elif kind == 0x86DD and frame[20] not in (0, 58):  # what is left is links that look whether they are alone
            found.add(("IPv6", frame[20]))
        elif kind not in (0x0800, 0x0806, 0x86DD):
            found.add((hex(kind), 0))
    return found


def opened(
    frames: Sequence[bytes], port: int, keys: Mapping[tuple[str, bytes], bytes], net: Network
) -> dict[int, Said]:
    found = {n: Said() for n in range(1, DEVICES + 1)}
    device_at = {net.address(n): n for n in found}
    for each in conversations(frames, port):
        if each.client[0] not in device_at:
            continue
        told = found[device_at[each.client[0]]]
        up, down = said(each.up.together(), each.down.together(), keys)
        for side, stream in ((told.up, up), (told.down, down)):
            messages = spoken(stream)
            side.append(stream)
            side.extend(part for message in messages for part in unpacked(message.body))
            if side is told.up:
                told.calls += [message.head.partition(b" HTTP")[0].decode() for message in messages]
    return found


@pytest.fixture(scope="module")
def ids_of(tiny_model_dir: Path) -> Callable[[str], Sequence[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_three_rounds_with_personas_came_to_a_release_that_a_device_verifies(seen: Seen, tmp_path: Path) -> None:
    federation = seen.federation
    sums = [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"]
    assert len(sums) == ROUNDS and min(sums) >= 6
    assert [q.purpose for q in federation.queries() if q.attempt == 0] == [
        "train.global",
        "train.persona",
        "train.global",
    ]
    told = federation.commands.confide("server", "release", federation.server, "--out", tmp_path / "release")
    assert told["rounds"] == ROUNDS and "global" in told["adapters"] and told["private"]
    assert set(told["personas"]) == {name for name in told["adapters"] if name.startswith("persona-")}

    words: list[str | Path] = ["adopt", tmp_path / "release", "--signer", federation.home(VAULT).policy.release_signer]
    adopted = federation.of_device(VAULT, *words, "--model", federation.model)
    assert set(adopted["nats"]) == {"old", "new"} and adopted["documents"] >= 1
    changed = tmp_path / "changed"
    shutil.copytree(tmp_path / "release", changed)
    weights = changed / "global" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ConfideError):
        federation.of_device(VAULT, "adopt", changed, "--model", federation.model)


def test_every_ledger_is_audited_and_the_books_agree(seen: Seen) -> None:
    federation = seen.federation
    federation.check_books()
    every = [federation.server / "server" / "ledger" / "federation.jsonl", *(h.ledger_file for h in federation.homes)]
    for ledger in every:
        assert confide.run(confide.confide, ["audit", "ledger", str(ledger)]) == 0
    release, signer = federation.server / "server" / "release", federation.home(VAULT).policy.release_signer
    assert confide.run(confide.confide, ["audit", "release", str(release), "--key", signer]) == 0
    broken = federation.commands.folder / "broken.jsonl"
    lines = every[1].read_text().splitlines()
    broken.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    assert confide.run(confide.confide, ["audit", "ledger", str(broken)]) != 0


def test_stock_peft_loads_every_adapter_and_gives_our_own_scores(seen: Seen, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from client.model import LanguageModel

    federation = seen.federation
    signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(federation.home(1).policy.release_signer))
    release = verify_release(federation.server / "server" / "release", signer)
    ids = AutoTokenizer.from_pretrained(federation.model)("I carry the kettle home.", return_tensors="pt")["input_ids"]
    ours = LanguageModel.load(federation.model, top_layers=2)
    ours.attach(release.basis)
    for name in release.adapters:
        out = tmp_path / name
        federation.commands.confide("server", "release", federation.server, "--adapter", name, "--out", out)
        base: Any = AutoModelForCausalLM.from_pretrained(federation.model)
        with torch.no_grad():
            plain = base(ids).logits
            stock = PeftModel.from_pretrained(base, out)(ids).logits
            ours.set_cores(release.adapters[name])
            wanted = ours.net(ids).logits
        assert float((stock - wanted).abs().max()) < 1e-4, name
        assert float((stock - plain).abs().max()) > 1e-3, f"{name} does nothing"


def test_devices_spoke_to_the_door_alone_and_every_word_of_it_was_opened(
    seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {
        n: {"calls": len(s.calls), "up": sum(map(len, s.up)), "down": sum(map(len, s.down))}
        for n, s in seen.said.items()
    }
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(told)}\n")
    assert seen.dropped == 0 and seen.others == set()
    for number, each in seen.said.items():
        called = {call.rpartition("/")[2] for call in each.calls}
        assert {"activate-node", "pull-messages", "push-messages", "push-object", "get-fab"} <= called, number
        assert len(seen.masked[number]) >= ROUNDS - 1, "its masked vectors were there to be looked for"
        for vector in seen.masked[number]:
            assert any(vector in part for part in each.up), f"a masked vector of device {number} was sent and not seen"
        assert any(f"device-{number}".encode() in part for part in each.up), "a name that is said is found"


def test_no_planted_word_is_in_anything_that_left_but_in_what_was_leaked_on_purpose(
    seen: Seen, ids_of: Callable[[str], Sequence[int]]
) -> None:
    texts = (seen.federation.home(2).folder / "people.jsonl").read_text()
    assert seen.secrets[2] in texts, "the words were there to be found"
    patterns = patterns_of([piece for secret in seen.secrets.values() for piece in pieces(secret)], ids_of)
    hits = []
    for number, told in seen.said.items():
        for side, parts in (("up", told.up), ("down", told.down)):
            blob = b"\0".join(parts)
            hits += [(number, side, label) for form, label in patterns.items() if form in blob]
            assert str(seen.federation.commands.folder).encode() not in blob or side == "down", "a path of a device"
    wanted = set(pieces(seen.secrets[LEAKED]))
    assert seen.leaked.startswith("4"), "the door passed it on, and the SuperLink refused it"
    assert {label.partition(":")[0] for _, _, label in hits} == wanted, "what was leaked is found, and nothing else"
    assert {(number, side) for number, side, _ in hits} == {(LEAKED, "up")}
    assert all("base64" in label for _, _, label in hits)


def test_nothing_that_the_server_keeps_or_prints_holds_a_planted_word(
    seen: Seen, ids_of: Callable[[str], Sequence[int]]
) -> None:
    patterns = patterns_of([piece for secret in seen.secrets.values() for piece in pieces(secret)], ids_of)
    federation = seen.federation
    files = [p for p in federation.server.rglob("*") if p.is_file()]
    files += [p for h in federation.homes for p in (h.folder / "logs").iterdir()]
    files += [p for p in federation.commands.folder.iterdir() if p.suffix in (".out", ".err")]
    names = {path.name for path in files}
    assert {"superlink.db", "superlink.log", "federation.jsonl", "agent.log", "supernode.log"} <= names
    for path in files:
        blob = b"\0".join(unpacked(path.read_bytes()))
        assert [label for form, label in patterns.items() if form in blob] == [], path.name
