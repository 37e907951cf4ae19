"""A campaign with personas, in one process, to its release; what is said of the release, and copies of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

import confide
from client.agent import open_devices
from client.deliveries import Deliveries
from client.service import AgentService, Lazy, Pace
from privacy.accounting import rho_of
from privacy.enrolment import open_invitation
from privacy.errors import ConfideError, ConfigError, ReleaseInvalid
from privacy.ledger import read_ledger
from privacy.query import Query
from server import members
from server.folder import OperatorFolder
from server.found import begin, policy_of
from server.home import ServerHome
from server.publish import publish
from server.released import described, lines, taken_out
from server.rounds import Deadlines, Done, Watch
from tests.agents_by_hand import LAYOUT, Learner, signing_key
from tests.operator_by_hand import enrolled_with, operator_in, settings_of

NAMES = ("ann", "bob", "cid", "dee")


class Courier:
    """Brings frames to devices in this process."""

    def __init__(self, service: AgentService, deliveries: Deliveries, users: Sequence[str]) -> None:
        self.service, self.deliveries, self.users = service, deliveries, list(users)

    def greet(self, offered: Sequence[str], invited: Sequence[str]) -> Mapping[str, int]:
        return dict.fromkeys(self.users, self.deliveries.held(offered))

    def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
        for device, frame in frames.items():
            done(device, self.service.reply(self.users.index(device), 9, frame))


def noise_key(user: str) -> bytes:
    return hashlib.sha256(b"noise of " + user.encode()).digest()


class Named(Learner):
    """A learner whose people count themselves to personas."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        super().__init__()
        self.slots = slots

    def declared(self, user: str) -> int | None:
        return self.slots.get(user)


def played(operator: OperatorFolder, folder: Path, campaign: str, learner: Learner | None = None) -> None:
    """Run a campaign of the operator's folder to its release, with a device by hand for each name."""
    directory, policy = operator.directory, operator.policy
    assert directory is not None
    keys = {name: signing_key(name) for name in NAMES}
    home = replace(begin(operator, campaign), deadlines=Deadlines(stage=5.0, training=2.0, again=0.01, greeting=0.1))
    devices = open_devices(
        folder / "ledgers", policy, list(NAMES), keys, noise_key, learner or Learner(), folder / "answers", directory
    )
    deliveries = Deliveries(policy, directory=home.directory())
    courier = Courier(AgentService(list(devices.values()), deliveries, Lazy(), Pace()), deliveries, NAMES)
    try:
        with home.rounds(lambda _: courier, Watch()) as rounds:
            rounds.run()
            publish(rounds.campaign, home.basis, home.release, home.key, home.folder / "release")
    finally:
        for device in devices.values():
            device.ledger.close()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> OperatorFolder:
    """Return a federation of four that ran a campaign with two personas."""
    folder = tmp_path_factory.mktemp("released")
    made = operator_in(folder / "f", cohort=4, rounds=2, personas=2, noise_multiplier="1/100")
    for name in NAMES:
        members.admit(made, enrolled_with(made, name, members.invite(made), signing_key(name)), vetted=True)
    played(made, folder, "spring")
    return made


def test_every_second_round_of_a_campaign_trains_the_personas(operator: OperatorFolder) -> None:
    paths = sorted((operator.home / "checkpoints" / "rounds").glob("*.query"))
    asked = [Query.from_bytes(path.read_bytes()) for path in paths]
    assert [query.purpose for query in asked] == ["train.global", "train.persona"]
    assert [query.slots for query in asked] == [1, 2] and asked[1].dim == 2 * (LAYOUT.dim + 1)
    account = read_ledger(operator.home / "ledger" / "federation.jsonl").account
    assert {name: account.spent_rho(name) for name in NAMES} == dict.fromkeys(NAMES, 2 * rho_of(Fraction(1, 100)))


def test_a_policy_grants_personas_only_where_there_are_some(operator: OperatorFolder) -> None:
    with_them = operator.policy
    without = policy_of(replace(operator.settings, personas=0), with_them.release_signer)
    assert with_them.purposes == ("train.global", "train.persona") and without.purposes == ("train.global",)
    assert with_them.max_dim == 2 * (LAYOUT.dim + 1) and without.max_dim == LAYOUT.dim
    assert with_them.budget_rho == without.budget_rho, "a round with personas costs what a round costs"


@pytest.mark.parametrize(
    "wrong",
    [
        {"personas": 1},
        {"personas": -1},
        {"personas": 2, "rounds": 1},
        {"personas": 2, "rounds": 2, "declared": ("one: alone",)},
        {"personas": 2, "rounds": 2, "declared": ("one: a", "One: b")},
        {"personas": 3, "rounds": 2, "declared": ("one: a", "two: b")},
    ],
)
def test_personas_that_cannot_be_trained_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="persona"):
        operator_in(tmp_path / "f", **wrong)


def test_declared_personas_are_trained_by_those_who_count_themselves_to_them(tmp_path: Path) -> None:
    told = ("nurse: cares for people", "teacher: gives lessons")
    made = operator_in(tmp_path / "f", cohort=4, rounds=2, personas=2, declared=told, noise_multiplier="1/100")
    for name in NAMES:
        members.admit(made, enrolled_with(made, name, members.invite(made), signing_key(name)), vetted=True)
    played(made, tmp_path, "spring", Named({"ann": 1, "bob": 1, "cid": 1}))
    facts = described(OperatorFolder(made.folder))
    assert list(facts["personas"]) == ["persona-1"], "nobody counts to the first, and nothing of it is published"
    persona = facts["personas"]["persona-1"]
    assert persona["description"] == told[1] and float(persona["noisy_count"]) == pytest.approx(3, abs=0.5)
    assert open_invitation((made.folder / "invitation.json").read_bytes()).personas == told
    asked = sorted((made.home / "checkpoints" / "rounds").glob("*.query"))[1]
    assert Query.from_bytes(asked.read_bytes()).choice == "declared"


def test_a_federation_of_before_there_were_declared_personas_is_read(tmp_path: Path) -> None:
    made = operator_in(tmp_path / "f")
    values = settings_of(made)
    assert values.pop("declared") == []
    (made.folder / "federation.json").write_text(json.dumps(values))
    assert OperatorFolder(made.folder).settings == made.settings


def test_what_a_release_holds_is_said_after_it_was_verified(operator: OperatorFolder) -> None:
    facts = described(operator)
    assert facts["campaign"] == "spring" and facts["rounds"] == 2 and facts["private"]
    assert facts["adapters"] == ["composed-0", "global", "persona-0"], "all four were of one persona"
    assert float(facts["personas"]["persona-0"]["noisy_count"]) == pytest.approx(4, abs=0.5)
    text = "\n".join(lines(facts))
    assert "spring" in text and not any(name in text for name in NAMES)


def test_a_copy_is_the_release_and_an_adapter_alone_is_a_plain_peft_folder(
    operator: OperatorFolder, tmp_path: Path
) -> None:
    whole = taken_out(operator, "", tmp_path / "new" / "whole")
    there = operator.home / "release"
    files = sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert all((whole / path).read_bytes() == (there / path).read_bytes() for path in files)
    alone = taken_out(operator, "spring", tmp_path / "alone", "global")
    assert sorted(path.name for path in alone.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((alone / "adapter_config.json").read_bytes())["peft_type"] == "LORA"
    assert all(name.startswith("base_model.model.") for name in load_file(alone / "adapter_model.safetensors"))


def test_nothing_is_copied_over_or_of_what_is_not_there(operator: OperatorFolder, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there already"):
        taken_out(operator, "", tmp_path / "there")
    with pytest.raises(ReleaseInvalid, match="no 'persona-9'"):
        taken_out(operator, "", tmp_path / "x", "persona-9")
    with pytest.raises(ConfigError, match="no release of 'autumn'; there is: spring"):
        described(operator, "autumn")
    assert not (tmp_path / "x").exists()


def test_a_changed_release_and_one_that_the_ledger_does_not_know_are_refused(
    operator: OperatorFolder, tmp_path: Path
) -> None:
    path = operator.home / "release" / "global" / "core.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ReleaseInvalid):
        described(operator)
    with pytest.raises(ReleaseInvalid):
        taken_out(operator, "", tmp_path / "copy")
    path.write_bytes(before)
    assert not (tmp_path / "copy").exists()
    policy = operator.folder / "policy.json"
    signed = policy.read_bytes()
    policy.write_bytes(signed.replace(b"train.persona", b"train.personb"))
    with pytest.raises(ConfideError):
        described(operator)
    policy.write_bytes(signed)
    assert described(operator)["campaign"] == "spring"


def test_an_earlier_release_is_found_by_its_campaign(operator: OperatorFolder) -> None:
    first = described(operator)["sha256"]
    begin(operator, "summer")
    assert ServerHome.load(operator.home).plan.campaign == "summer"
    assert described(operator)["sha256"] == described(operator, "spring")["sha256"] == first


def test_the_command_says_one_line_where_nothing_was_released(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = operator_in(tmp_path / "f")
    assert confide.run(confide.confide, ["server", "release", str(made.folder)]) == 2
    assert "nothing was released yet" in capsys.readouterr().err
    assert isinstance(made.root_key, Ed25519PrivateKey)
