"""Codes, admission, revocation, directories: what an operator does to a federation's folder, and what is refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from privacy.canonical import canonical_json, parse_canonical
from privacy.directory import open_directory, read_directory
from privacy.enrolment import open_enrolment, open_invitation
from privacy.errors import ConfideError, ConfigError, SignatureInvalid
from privacy.ledger import Ledger
from server import members
from server.certificates import days_left, new_server_certificate
from server.folder import OperatorFolder
from server.found import begin, bundle_sha256, floor, names_taken
from server.home import ServerHome, open_campaign
from tests.agents_by_hand import BASIS
from tests.operator_by_hand import enrolled_with, enrolment_of, operator_in


@pytest.fixture
def operator(tmp_path: Path) -> OperatorFolder:
    return operator_in(tmp_path / "f")


def admit(operator: OperatorFolder, name: str) -> members.Admitted:
    return members.admit(operator, enrolled_with(operator, name, members.invite(operator)))


def test_a_federation_is_founded_with_keys_for_its_operator_alone(operator: OperatorFolder) -> None:
    folder = operator.folder
    for name in ("root/root.key", "root/ca.key", "tls/server.key", "server/checkpoints/server.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    offered = open_invitation((folder / "invitation.json").read_bytes())
    assert offered.safety_number == operator.safety_number
    assert offered.opened_policy == operator.policy
    assert bundle_sha256(folder / "bundle") == offered.bundle_sha256 == bundle_sha256(), "the staged copy is the bundle"
    assert operator.directory is None


def test_the_servers_certificate_is_for_its_names_and_for_so_long(operator: OperatorFolder) -> None:
    tls = operator.folder / "tls"
    leaf = x509.load_pem_x509_certificate((tls / "server.crt").read_bytes())
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((tls / "ca.crt").read_bytes()))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert 395 <= days_left(tls / "server.crt") <= 397
    old = (tls / "server.crt").read_bytes()
    new_server_certificate(tls, operator.keys / "ca.key", tls / "ca.crt", ["example.org", "::1"], days=30)
    new = x509.load_pem_x509_certificate((tls / "server.crt").read_bytes())
    assert new.public_bytes(Encoding.PEM) != old and 29 <= days_left(tls / "server.crt") <= 30
    (operator.keys / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key is not here"):
        new_server_certificate(tls, operator.keys / "ca.key", tls / "ca.crt", ["example.org"])


def test_a_folder_that_holds_something_is_left_alone(operator: OperatorFolder) -> None:
    before = {path: path.read_bytes() for path in operator.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="not empty"):
        operator_in(operator.folder)
    assert before == {path: path.read_bytes() for path in operator.folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="holds no federation"):
        _ = OperatorFolder(operator.folder / "server").settings


def test_who_proves_a_code_is_admitted_and_each_admission_signs_the_next_directory(operator: OperatorFolder) -> None:
    for number, name in enumerate(("ann", "bob", "cyd"), 1):
        admit(operator, name)
        directory = operator.directory
        assert directory is not None and directory.serial == number and name in directory
    assert floor(operator) == (3, 2, 2)


def test_a_replayed_enrolment_is_refused(operator: OperatorFolder) -> None:
    file = enrolled_with(operator, "ann", members.invite(operator))
    members.admit(operator, file)
    members.invite(operator)
    before = (operator.home / "ledger" / "directory.json").read_bytes()
    with pytest.raises(ConfigError, match="used already"):
        members.admit(operator, file)
    assert (operator.home / "ledger" / "directory.json").read_bytes() == before


def test_a_code_admits_one_device_until_its_day(operator: OperatorFolder) -> None:
    code = members.invite(operator, days=1, clock=lambda: 1000.0)
    late = enrolled_with(operator, "ann", code)
    with pytest.raises(ConfigError, match="no code that is out"):
        members.admit(operator, late, clock=lambda: 1000.0 + 86_401)
    members.admit(operator, late, clock=lambda: 1000.0 + 86_399)
    with pytest.raises(ConfigError, match="no code that is out"):
        members.admit(operator, enrolled_with(operator, "bob", code), clock=lambda: 1001.0)
    with pytest.raises(ConfigError, match="no code that is out"):
        members.admit(operator, enrolled_with(operator, "cyd", "00000-00000-00000-00000"))
    assert stat.S_IMODE((operator.folder / "codes.json").stat().st_mode) == 0o600
    assert code.encode() not in (operator.folder / "codes.json").read_bytes()


def test_a_server_in_the_middle_cannot_put_its_own_key_in_the_place_of_a_devices(operator: OperatorFolder) -> None:
    code = members.invite(operator)
    file, mine = enrolled_with(operator, "ann", code), Ed25519PrivateKey.generate()
    proof = dict(parse_canonical(file))["proof"]  # type: ignore[arg-type]
    forged = enrolment_of(mine, "ann", operator.root_hex).signed(mine, "11111-11111-11111-11111")
    with_old_proof = canonical_json(dict(parse_canonical(forged)) | {"proof": proof})  # type: ignore[arg-type]
    for attempt in (forged, with_old_proof):
        with pytest.raises(ConfigError, match="no code that is out"):
            members.admit(operator, attempt)
    with pytest.raises(SignatureInvalid):
        members.admit(operator, file.replace(b'"ann"', b'"amm"'))
    members.admit(operator, file)


def test_a_number_that_was_read_out_must_be_the_enrolments(operator: OperatorFolder) -> None:
    file = enrolled_with(operator, "ann", members.invite(operator))
    with pytest.raises(ConfigError, match="not the one that was read out"):
        members.admit(operator, file, number="00000 " * 8)
    members.admit(operator, file, number=open_enrolment(file)[0].safety_number)


def test_a_name_or_key_is_taken_for_good(operator: OperatorFolder) -> None:
    key = Ed25519PrivateKey.generate()
    members.admit(operator, enrolled_with(operator, "ann", members.invite(operator), key))
    admit(operator, "bob")
    members.revoke(operator, "ann")
    for name, which in (("ann", None), ("eve", key)):
        with pytest.raises(ConfigError, match="already"):
            members.admit(operator, enrolled_with(operator, name, members.invite(operator), which))


def test_another_federations_enrolment_is_refused(operator: OperatorFolder, tmp_path: Path) -> None:
    other = operator_in(tmp_path / "other")
    with pytest.raises(ConfigError, match="another federation"):
        members.admit(operator, enrolled_with(other, "ann", members.invite(operator)))


def test_a_revoked_device_is_out_of_the_next_directory(operator: OperatorFolder) -> None:
    for name in ("ann", "bob", "cyd"):
        admit(operator, name)
    members.revoke(operator, "bob")
    directory = operator.directory
    assert directory is not None and sorted(directory) == ["ann", "cyd"] and directory.serial == 4
    for name in ("bob", "dan"):
        with pytest.raises(ConfigError, match="not in the directory"):
            members.revoke(operator, name)
    assert members.sign_again(operator).serial == 5
    members.revoke(operator, "ann")
    with pytest.raises(ConfigError, match="the only device"):
        members.revoke(operator, "cyd")


def test_nothing_is_signed_without_the_root_key(operator: OperatorFolder, tmp_path: Path) -> None:
    file = enrolled_with(operator, "ann", members.invite(operator))
    elsewhere = tmp_path / "stick"
    (operator.folder / "root" / "root.key").rename(tmp_path / "root.key")
    with pytest.raises(ConfigError, match="--keys"):
        members.admit(operator, file)
    assert members.members(operator) == [] and operator.directory is None
    elsewhere.mkdir()
    (tmp_path / "root.key").rename(elsewhere / "root.key")
    members.admit(OperatorFolder(operator.folder, elsewhere), file)
    (elsewhere / "root.key").write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="another federation's"):
        _ = OperatorFolder(operator.folder, elsewhere).root_key


def test_a_campaign_goes_on_the_federations_ledger(operator: OperatorFolder) -> None:
    with pytest.raises(ConfigError, match="nobody was admitted"):
        begin(operator, "one")
    for name in ("ann", "bob"):
        admit(operator, name)
    begin(operator, "one")
    assert ServerHome.load(operator.home).plan.campaign == "one"
    ledger = (operator.home / "ledger" / "federation.jsonl").read_bytes()
    (operator.home / "checkpoints" / "rounds").mkdir()
    (operator.home / "checkpoints" / "rounds" / "round-00000-0.lost").touch()
    begin(operator, "two")
    assert names_taken(operator) == {"one", "two"}
    assert (operator.home / "ledger" / "federation.jsonl").read_bytes() == ledger
    assert not (operator.home / "checkpoints" / "rounds").exists()
    assert (operator.home / "archive" / "one" / "rounds" / "round-00000-0.lost").exists()


def test_two_commands_do_not_change_a_folder_at_once(operator: OperatorFolder) -> None:
    with operator.alone(), pytest.raises(ConfideError, match="at work"), operator.alone():
        pass
    assert not operator.running()
    with operator.alone("serve"):
        assert operator.running()


def test_the_directory_is_signed_by_the_root_key_that_devices_pin(operator: OperatorFolder) -> None:
    admit(operator, "ann")
    file = (operator.home / "ledger" / "directory.json").read_bytes()
    offered = open_invitation((operator.folder / "invitation.json").read_bytes())
    assert "ann" in open_directory(file, offered.root)


def test_who_came_and_who_went_stands_in_the_ledger_once(operator: OperatorFolder) -> None:
    for name in ("ann", "bob"):
        admit(operator, name)
    home, key = begin(operator, "one"), ServerHome.load(operator.home).key
    path = operator.home / "ledger" / "federation.jsonl"
    admit(operator, "cyd")
    members.revoke(operator, "ann")
    with Ledger(path, key) as ledger:
        campaign = open_campaign(home.plan, operator.home / "rounds", ledger, BASIS, home.directory())
        assert campaign.directory == ["bob", "cyd"]
        open_campaign(home.plan, operator.home / "rounds", ledger, BASIS, home.directory())
        admit(operator, "dan")
        members.revoke(operator, "bob")
        campaign.renew(read_directory(home.directory()))
        assert campaign.directory == ["cyd", "dan"] == sorted(campaign.keys)
        query = campaign.ask().query
        assert query.directory_sha256 == operator.directory.sha256  # type: ignore[union-attr]
        notes: list[dict[str, Any]] = [
            dict(e.body) for e in ledger.entries() if e.kind == "POLICY" and "left" in e.body
        ]
    assert [note["left"] for note in notes] == [["ann"], ["bob"]]
    assert [sorted(note["devices"]) for note in notes] == [["cyd"], ["dan"]]
    members.revoke(operator, "dan")
    with Ledger(path, key) as ledger, pytest.raises(ConfigError, match="a cohort of 2 cannot be drawn from 1"):
        open_campaign(home.plan, operator.home / "rounds", ledger, BASIS, home.directory())
