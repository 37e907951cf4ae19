"""A device looks at the federation's own ledger with each question, and refuses one that forgets or has two pasts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent import Device
from privacy.account import FEDERATION
from privacy.ledger import Ledger, read_ledger
from privacy.noise import device_noise_key
from privacy.query import Query
from privacy.session import history_item, read_history
from privacy.wire import Refusal, RefusalCode, decode
from tests.client.test_client_agent import POLICY, QUERY, RELEASE, FakeLearner

KEY = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
GRANTED = replace(POLICY, release_signer=KEY.public_key().public_bytes_raw().hex(), max_participations=9)


def question(number: int, attempt: int = 0) -> Query:
    return replace(
        QUERY, policy_sha256=GRANTED.sha256, round=number, attempt=attempt, noise_multiplier=QUERY.clip_norm * 20
    )


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "answers").mkdir()
    with Ledger(tmp_path / "ann.jsonl", key, {"federation": "test", "owner": "ann"}) as book:
        noise = device_noise_key(bytes(32), "ann")
        yield Device("ann", tmp_path / "answers", GRANTED, book, key, noise, FakeLearner())


def federation(path: Path) -> Ledger:
    return Ledger(path, KEY, {"federation": "test", "owner": "federation"})


def refused(device: Device, ledger: Ledger, number: int, attempt: int = 0) -> str | None:
    """Ask as the server does: RESERVE, show the ledger, ask; return the refusal's code, None if the device accepts."""
    query = question(number, attempt)
    ledger.reserve(query, FEDERATION, ["ann"])
    item = history_item(*ledger.shown(query))
    answer = device.refusal(query.to_bytes(), RELEASE, read_history(item))
    message = decode(answer) if answer is not None else None
    assert message is None or isinstance(message, Refusal)
    return message.code if message is not None else None


def test_a_ledger_that_grows_is_followed_also_past_rounds_that_the_device_did_not_see(
    device: Device, tmp_path: Path
) -> None:
    with federation(tmp_path / "f.jsonl") as ledger:
        assert refused(device, ledger, 0) is None
        for number in (1, 2, 3):  # asked of others
            ledger.reserve(question(number), FEDERATION, ["ben"])
        assert refused(device, ledger, 4) is None
        assert refused(device, ledger, 4) is None, "the same question shows the same state"
    seen = [entry for entry in read_ledger(tmp_path / "ann.jsonl").entries if entry.kind == "SEEN"]
    assert len(seen) == 2


def test_a_ledger_that_was_rolled_back_gets_a_refusal(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    with federation(path) as ledger:
        assert refused(device, ledger, 0) is None
        backup = path.read_bytes()
        assert refused(device, ledger, 1) is None
    path.write_bytes(backup)
    with federation(path) as ledger:
        assert refused(device, ledger, 1, attempt=1) == RefusalCode.HISTORY


def test_another_past_of_the_same_length_is_kept_as_evidence_and_ends_it(device: Device, tmp_path: Path) -> None:
    with federation(tmp_path / "f.jsonl") as ledger, federation(tmp_path / "g.jsonl") as other:
        assert refused(device, ledger, 0) is None
        assert refused(device, other, 0, attempt=1) == RefusalCode.HISTORY
        assert refused(device, ledger, 1) == RefusalCode.HISTORY
    kinds = [entry.kind for entry in read_ledger(tmp_path / "ann.jsonl").entries]
    assert "FORK" in kinds and "RESERVE" not in kinds


def test_a_ledger_of_somebody_else_is_refused(device: Device, tmp_path: Path) -> None:
    stranger = Ed25519PrivateKey.generate()
    with Ledger(tmp_path / "f.jsonl", stranger, {"federation": "test", "owner": "federation"}) as ledger:
        assert refused(device, ledger, 0) is not None
    assert device.ledger.account.seen is None
