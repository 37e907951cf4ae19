"""Agents over vaults: text, dial and keys come out of the vault, and what its owner decides holds at the next query."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import confide
from client import vault_key
from client.agent_home import AgentHome, AgentSettings
from client.app import exchange
from client.budget import given, releases_hold, year_cap
from client.consent import consent
from client.dial import ALL, METRICS, PERSONAS, turn
from client.encoder import HashedEncoder
from client.forget import Wanted, forget
from client.importers import SHARED, add
from client.kept_answers import forget_answers
from client.listener import ask
from client.resident import Resident
from client.vault import Vault
from client.vault_key import Opener
from privacy.adapter import Basis, state_sha256
from privacy.directory import Directory, Member, signed_directory
from privacy.errors import ConfigError
from privacy.ledger import read_ledger
from privacy.policy import Policy, signed_policy
from privacy.query import Cohort, Limits, Query
from privacy.secagg.messages import Begin
from privacy.secagg.server import SumServer
from privacy.session import Accepted, Delivery, Start, Training, basis_item
from privacy.wire import Refusal, RefusalCode, decode

ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = ROOT_KEY.public_key().public_bytes_raw().hex()
OPENER = Opener(passphrase="x")
NAMES = ("d1", "d2")
PLANTED = "zebedee@example.org"
QUERY_LIMITS = Limits(64, 2)


@dataclass
class Federation:
    """Two people with a vault each, whose agents listen on real sockets."""

    residents: dict[str, Resident]
    policy: Policy
    directory: Directory
    basis: Basis

    def query(self, attempt: int = 0, purpose: str = "train.global") -> Query:
        basis = self.basis
        return Query(
            federation="local", campaign="c", round=0, attempt=attempt, purpose=purpose, slots=1,
            slot_dim=basis.layout.dim, clip_norm=Fraction(1, 10), noise_multiplier=Fraction(1), cohort=Cohort(2),
            transport="masked", release_sha256=state_sha256(basis.sha256, basis.layout, [basis.layout.zero_cores()]),
            basis_sha256=basis.sha256, policy_sha256=self.policy.sha256, directory_sha256=self.directory.sha256,
            ledger_head="a" * 64, objective="next-token", limits=QUERY_LIMITS, replayed_noise=False,
        )  # fmt: skip

    def send(self, name: str, frame: bytes) -> Any:
        return decode(exchange(self.folder(name) / "relay.sock", 0, 7, frame))

    def folder(self, name: str) -> Path:
        return self.residents[name].home.folder

    def deliver(self) -> None:
        start = Start("local", "c", 0, np.zeros((1, self.basis.layout.dim), np.float32)).signed(ROOT_KEY)
        for name in self.residents:
            self.send(name, Delivery((basis_item(self.basis.to_bytes()), start.item())).encode())

    def train(self, name: str, query: Query) -> Any:
        """Return the answer to a training query, after the training: two at once share this process's warnings."""
        accepted = self.send(name, Training(query.to_bytes()).encode())
        member = self.residents[name].member
        assert member is not None
        for job in [job for jobs in member._service._jobs.values() for job in jobs.values()]:
            assert job.done.wait(60)
        return accepted

    def stage(self, name: str, frame: bytes) -> bytes:
        """Return the answer to a stage, asked again while the device trains."""
        while True:
            answer = exchange(self.folder(name) / "relay.sock", 0, 7, frame)
            message = decode(answer)
            if not (isinstance(message, Refusal) and message.code == RefusalCode.BUSY):
                return answer

    def kinds(self, name: str) -> list[str]:
        return [entry.kind for entry in read_ledger(self.residents[name].home.ledger_file).entries]

    def trained_texts(self, name: str) -> str:
        member = self.residents[name].member
        assert member is not None
        return "\n".join(d.text for d in member._learner.documents[name])


def vault_at(folder: Path, notes: Path) -> Vault:
    vault = Vault.create(folder, OPENER)
    add(vault, notes)
    consent(vault, 1, SHARED, True)
    turn(vault, ALL)
    return vault


@pytest.fixture
def federation(
    tmp_path: Path, tiny_model_dir: Path, tiny_basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Federation]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    homes = {}
    for name in NAMES:
        notes = tmp_path / f"{name}-notes"
        notes.mkdir()
        for i in range(12):
            (notes / f"{i}.txt").write_text(f"On day {i} the heron stood at the mill. Write to {PLANTED} about it.")
        homes[name] = AgentHome(tmp_path / name, vault_at(tmp_path / name, notes))
        settings = AgentSettings(name, str(tiny_model_dir), layers=3, sampling_rate=1.0, hold_s=0, tick_s=0)
        homes[name].save(settings)
    members = [Member(n, h.device_key.public_key().public_bytes_raw().hex(), "here") for n, h in homes.items()]
    directory = Directory.of("local", members)
    policy = Policy(
        "local", ("measure.adapters", "train.global"), Fraction(1), Fraction(1, 10), 2, Fraction(2, 3), 6, Fraction(3),
        tiny_basis.layout.dim, QUERY_LIMITS, tiny_basis.sha256, SIGNER,
    )  # fmt: skip
    for home in homes.values():
        (home.folder / "root.pub").write_text(SIGNER)
        (home.folder / "policy.json").write_bytes(signed_policy(policy, ROOT_KEY))
        (home.folder / "directory.json").write_bytes(signed_directory(directory, ROOT_KEY))
    made = Federation({n: Resident(h, HashedEncoder(64)) for n, h in homes.items()}, policy, directory, tiny_basis)
    made.deliver()
    yield made
    for resident in made.residents.values():
        resident.close()
        assert resident.home.vault is not None
        resident.home.vault.close()


def owner(federation: Federation, name: str, act: Callable[[Vault], object]) -> None:
    """Do what the owner's command does: in a connection of its own to the vault that the agent has open."""
    with Vault.open(federation.folder(name), OPENER) as vault:
        act(vault)


def test_two_devices_answer_a_masked_query_out_of_their_vaults(federation: Federation) -> None:
    query = federation.query()
    assert all(isinstance(federation.train(name, query), Accepted) for name in NAMES)
    server = SumServer(query, list(NAMES), federation.directory)
    while not server.finished:
        for name, frame in server.requests().items():
            assert server.receive(name, federation.stage(name, frame)), server.stage
        server.advance()
    assert np.abs(server.total).max() > 0
    for name in NAMES:
        assert federation.kinds(name) == ["GENESIS", "GRANT", "POLICY", "RESERVE", "COMMIT"]
        texts = federation.trained_texts(name)
        assert "heron" in texts and PLANTED not in texts and "<EMAIL_ADDRESS_1>" in texts
        left = b"".join(p.read_bytes() for p in federation.folder(name).rglob("*") if p.is_file())
        assert PLANTED.encode() not in left and b"heron" not in left, "in the clear stands nothing but what may leave"
        assert not (federation.folder(name) / "noise.key").exists()


def test_the_owners_dial_holds_at_the_next_query_and_costs_nothing(federation: Federation) -> None:
    owner(federation, "d1", lambda vault: turn(vault, METRICS))
    refused = federation.train("d1", federation.query())
    assert isinstance(refused, Refusal) and refused.code == RefusalCode.PURPOSE
    assert "RESERVE" not in federation.kinds("d1") and ask(federation.folder("d1"), {"do": "status"})["accepted"] == 0
    assert federation.kinds("d1").count("POLICY") == 2, "the signed ledger knows of the turn"
    assert isinstance(federation.train("d2", federation.query()), Accepted), "each device has a dial of its own"
    owner(federation, "d1", lambda vault: turn(vault, ALL))
    assert isinstance(federation.train("d1", federation.query()), Accepted)
    federation.stage("d1", Begin(federation.query().sha256).encode())
    assert federation.kinds("d1").count("RESERVE") == 1 and federation.kinds("d1").count("POLICY") == 3


def test_a_consent_taken_back_is_out_of_the_next_training(federation: Federation) -> None:
    owner(federation, "d1", lambda vault: consent(vault, 1, SHARED, False))
    query = federation.query()
    assert isinstance(federation.train("d1", query), Accepted), "whether anything is shared is not for the server"
    federation.stage("d1", Begin(query.sha256).encode())
    assert federation.trained_texts("d1") == "" and "heron" in federation.trained_texts("d2")


def test_one_model_answers_the_owner_between_trainings(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    resident, folder = federation.residents["d1"], federation.folder("d1")
    assert resident.person is not None and resident.member is not None
    assert resident.person._model is resident.member._model
    query = federation.query()
    federation.train("d1", query)
    told = ask(folder, {"do": "ask", "question": "Where did the heron stand?", "most_tokens": 3}, 60)
    assert told["sources"] and told["tokens"] <= 3
    assert not isinstance(decode(federation.stage("d1", Begin(query.sha256).encode())), Refusal)
    assert ask(folder, {"do": "ask", "question": ""}) == {"error": "a question is a text of at most 20000 characters"}
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    monkeypatch.delenv("CONFIDE_PASSPHRASE", raising=False)
    done = CliRunner().invoke(confide.confide, ["device", "ask", "Where?", "--most-tokens", "2", "--json"])
    assert json.loads(done.stdout)["tokens"] <= 2, "the command asks the agent, and needs no passphrase then"


def test_forgetting_reaches_a_running_agent_and_what_it_stored(federation: Federation) -> None:
    query, folder = federation.query(), federation.folder("d1")
    federation.train("d1", query)
    federation.stage("d1", Begin(query.sha256).encode())
    assert any(path.stat().st_size for path in (folder / "answers").iterdir())
    ask(folder, {"do": "ask", "question": "heron", "most_tokens": 1}, 60)
    member = federation.residents["d1"].member
    assert member is not None and member._learner._cached
    with Vault.open(folder, OPENER) as vault:
        numbers = tuple(n for (n,) in vault.select("SELECT id FROM document WHERE key != '3.txt'"))
        made = forget(vault, Wanted(documents=numbers), releases_hold(given(folder)))
    assert "1 answers went to local" in made.releases and "at most epsilon 5." in made.releases
    assert ask(folder, {"do": "forgot"}) == {"forgot": True}
    assert "day 3" in federation.trained_texts("d1") and "day 4" not in federation.trained_texts("d1")
    assert not member._learner._cached, "activations of what is gone went with it"
    stored = list((folder / "answers").iterdir())
    assert stored and not any(path.stat().st_size for path in stored)
    late = decode(federation.stage("d1", Begin(query.sha256).encode()))
    assert isinstance(late, Refusal) and late.code == RefusalCode.STALE
    told = ask(folder, {"do": "ask", "question": "heron", "most_tokens": 1}, 60)
    assert {s["title"] for s in told["sources"]} == {"3"}
    other = federation.query(attempt=1)
    assert isinstance(federation.train("d1", other), Accepted), "and it answers on, from what is left"


def test_an_emptied_answer_is_not_made_again(federation: Federation) -> None:
    """Made again, of other text, it would be a second answer for one charge."""
    query = federation.query()
    federation.train("d2", query)
    federation.stage("d2", Begin(query.sha256).encode())
    member = federation.residents["d2"].member
    assert member is not None
    assert forget_answers(federation.folder("d2")) > 0 == forget_answers(federation.folder("d2"))
    member._service.forget_jobs()
    assert isinstance(federation.train("d2", query), Accepted)
    late = decode(federation.stage("d2", Begin(query.sha256).encode()))
    assert isinstance(late, Refusal) and late.code == RefusalCode.STALE


def test_what_the_vault_says_is_said_nowhere_else(federation: Federation) -> None:
    home = federation.residents["d1"].home
    kept = json.loads((home.folder / "agent.json").read_text())
    assert not {"dial", "scrub", "person"} & set(kept)
    for name, value in (("dial", "all"), ("scrub", False)):
        (home.folder / "agent.json").write_text(json.dumps({**kept, name: value}))
        with pytest.raises(ConfigError, match=f"{name} is for the vault to say"):
            _ = home.settings
    (home.folder / "agent.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="lies in the vault"):
        _ = AgentHome(home.folder).noise_key


def test_a_key_without_its_ledger_is_moved_and_a_ledger_without_its_key_is_refused(tmp_path: Path) -> None:
    old = AgentHome(tmp_path)
    old.save(AgentSettings("d1", "m"))
    key = old.noise_key
    with Vault.create(tmp_path, OPENER) as vault:
        (tmp_path / "agent.json").write_text(json.dumps({"device": "d1", "model": "m"}))
        home = AgentHome(tmp_path, vault)
        assert home.noise_key == key and not (tmp_path / "noise.key").exists()
        home.ledger_file.parent.mkdir()
        home.ledger_file.touch()
        with pytest.raises(ConfigError, match="another device"):
            _ = home.device_key


def test_a_device_alone_has_an_agent_too(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "ferry.txt").write_text("The ferry leaves at dawn.")
    vault = vault_at(tmp_path / "home", tmp_path / "n")
    vault.set_setting("model", str(tiny_model_dir))
    ended = threading.Event()
    resident = Resident(AgentHome(tmp_path / "home", vault), HashedEncoder(64), ended)
    try:
        assert ask(tmp_path / "home", {"do": "status"}) == {"federation": None}
        told = ask(tmp_path / "home", {"do": "ask", "question": "ferry?", "most_tokens": 2}, 60)
        assert told["sources"][0]["title"] == "ferry" and not (tmp_path / "home" / "relay.sock").exists()
        assert ask(tmp_path / "home", {"do": "end"}) == {"ends": True} and ended.is_set()
    finally:
        resident.close()
        vault.close()


def test_what_a_year_may_cost_is_the_least_of_the_caps(federation: Federation) -> None:
    policy = federation.policy
    assert year_cap(policy, "alone") == 0.0 == year_cap(None, ALL)
    assert year_cap(policy, METRICS) == year_cap(policy, PERSONAS) == year_cap(policy, ALL) > 0
    yearly = replace(policy, yearly_rho=Fraction(1, 2))
    assert 0 < year_cap(yearly, ALL) < year_cap(policy, ALL)
    few = replace(policy, max_participations=1)
    assert year_cap(few, ALL) == pytest.approx(year_cap(yearly, ALL)), "one answer at noise 1 is rho 1/2"
    assert year_cap(replace(policy, purposes=("train.global",)), METRICS) == 0.0
