"""Frozen private sums, made by a generator that does not import `privacy`: every byte of both sides, every abort."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import privacy.errors
from privacy.directory import Directory
from privacy.errors import PolicyRefused
from privacy.query import Query
from privacy.secagg.device import SumDevice
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.server import SumServer
from privacy.wire import Refusal, decode
from tests.privacy.test_privacy_docs import PROTOCOL_TEXT

VECTORS = Path(__file__).parents[1] / "vectors"
FILES = sorted((VECTORS / "secagg").glob("*.json"))


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def entropy_of(seed: bytes) -> Callable[[int], bytes]:
    counter = itertools.count()
    return lambda size: hashlib.shake_256(seed + next(counter).to_bytes(4, "little")).digest(size)


def parts_of(case: Any) -> tuple[Query, Directory, dict[str, Callable[[], SumDevice]]]:
    """Return query, directory and for each device what makes it, anew from its journal each time it is called."""
    query, directory = Query.from_bytes(case["query"].encode()), Directory.from_bytes(case["directory"].encode())
    made: dict[str, Callable[[], SumDevice]] = {}
    for facts in case["devices"]:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(facts["signing_key"]))
        entropy, journal = entropy_of(bytes.fromhex(facts["entropy_seed"])), MemoryJournal()
        vector = np.array(facts["vector"], dtype=np.uint32)
        settings = (query, facts["name"], directory, key, vector, facts["ledger_head"], journal, entropy)
        made[facts["name"]] = lambda settings=settings: SumDevice(*settings)  # type: ignore[misc]
    return query, directory, made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_devices_answer_byte_for_byte(path: Path) -> None:
    case = load(path)
    _, _, made = parts_of(case)
    if case["ends"].startswith("PolicyRefused"):
        with pytest.raises(PolicyRefused, match=re.escape(case["ends"].split()[1])):
            next(iter(made.values()))()
        return
    devices = {name: make() for name, make in made.items()}
    for number, step in enumerate(case["steps"]):
        if step["request"] == "restart":
            devices[step["device"]] = made[step["device"]]()
            continue
        assert devices[step["device"]].reply(bytes.fromhex(step["request"])).hex() == step["answer"], number


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_server_asks_byte_for_byte_and_ends_as_it_should(path: Path) -> None:
    case = load(path)
    if case["ends"] in ("refused", "PolicyRefused directory.other"):
        return  # what a false server asks is not what ours would
    query, directory, made = parts_of(case)
    server = SumServer(query, sorted(made), directory)
    false = {step["device"]: step["answer"] for step in case["false_answers"]}
    todo = list(case["steps"])
    ended = "finished"
    while not server.finished:
        asked = {name: frame.hex() for name, frame in server.requests().items()}
        now, todo = todo[: len(asked)], todo[len(asked) :]
        assert {step["device"]: step["request"] for step in now} == asked
        for step in now:
            answer = false.get(step["device"], step["answer"]) if server.stage == "unmask" else step["answer"]
            if step["lost"] == "no" or (server.stage == "unmask" and step["device"] in false):
                assert server.receive(step["device"], bytes.fromhex(answer))
        try:
            server.advance()
        except privacy.errors.ConfideError as error:
            ended = type(error).__name__
            break
    assert ended == case["ends"] and todo == []
    if ended == "finished":
        assert server.total.tolist() == case["total"]
        assert list(server.survivors) == case["survivors"]
        heads = {facts["name"]: facts["ledger_head"] for facts in case["devices"]}
        assert server.heads == {name: heads[name] for name in server.survivors}


def test_every_abort_of_the_protocol_has_its_file_and_ends_in_a_refusal_or_an_error() -> None:
    named = set(re.findall(r"`(abort-[a-z-]+)`", PROTOCOL_TEXT))
    stems = {path.stem for path in FILES}
    assert {stem for stem in stems if stem.startswith("abort-")} == named and len(named) >= 19
    assert {load(path)["name"] for path in FILES} == stems
    for path in FILES:
        case = load(path)
        if case["ends"] == "refused":
            last = decode(bytes.fromhex(case["steps"][-1]["answer"]))
            assert isinstance(last, Refusal), path.stem


def test_the_generator_does_not_import_what_it_tests() -> None:
    source = (VECTORS / "generate_secagg.py").read_text()
    assert "import privacy" not in source and "from privacy" not in source
