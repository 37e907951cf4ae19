"""Invitations, enrolments, codes and safety numbers: what is signed or compared, and each way to forge it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import canonical_json
from privacy.directory import Directory, Member, newer_directory, open_directory, read_directory, signed_directory
from privacy.enrolment import (
    ALPHABET,
    Enrolment,
    Invitation,
    code_key,
    federation_number,
    is_node_key,
    new_code,
    open_enrolment,
    open_invitation,
    proof_of,
    same_number,
    split_address,
    weights_sha256,
)
from privacy.errors import ConfideError, ConfigError, SignatureInvalid, WireError
from tests.operator_by_hand import ROOT_KEY, enrolment_of, invitation_of

DEVICE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CODE = "K7Q2M-3F8WX-00ABC-9ZZZZ"


@pytest.fixture(scope="module")
def invitation() -> Invitation:
    return invitation_of()


@pytest.fixture(scope="module")
def enrolment() -> Enrolment:
    return enrolment_of(DEVICE)


def test_an_invitation_comes_back_as_it_was_signed(invitation: Invitation) -> None:
    assert open_invitation(invitation.signed(ROOT_KEY)) == invitation


def test_declared_personas_are_signed_and_a_file_without_them_is_as_before(invitation: Invitation) -> None:
    file = json.loads(invitation.signed(ROOT_KEY))
    assert "personas" not in file["invitation"]
    declaring = replace(invitation, personas=("nurse: cares for people", "teacher"))
    assert open_invitation(declaring.signed(ROOT_KEY)) == declaring
    told = json.loads(declaring.signed(ROOT_KEY))
    for personas in (["nurse: cares for people", "spy"], ["teacher", "nurse: cares for people"], []):
        told["invitation"]["personas"] = personas
        with pytest.raises(SignatureInvalid, match="invitation"):
            open_invitation(canonical_json(told))
    for wrong in ("nurse", None, {"nurse": 1}):
        told["invitation"]["personas"] = wrong
        with pytest.raises(WireError, match="no list"):
            open_invitation(canonical_json(told))
    del told["invitation"]["personas"]
    with pytest.raises(SignatureInvalid, match="invitation"):
        open_invitation(canonical_json(told))


@pytest.mark.parametrize("field", ["address", "bundle_sha256", "model", "model_sha256", "layers", "hold_s"])
def test_an_invitation_with_one_field_changed_does_not_verify(invitation: Invitation, field: str) -> None:
    file = json.loads(invitation.signed(ROOT_KEY))
    old = file["invitation"][field]
    file["invitation"][field] = old + 1 if isinstance(old, int) else (old[:-1] + ("1" if old[-1] != "1" else "2"))
    with pytest.raises(SignatureInvalid, match="invitation"):
        open_invitation(canonical_json(file))


def test_another_root_key_signs_no_invitation_and_its_own_has_another_number(invitation: Invitation) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    with pytest.raises(SignatureInvalid):
        open_invitation(invitation.signed(other))
    ours = federation_number(invitation.federation, invitation.root_key)
    theirs = federation_number(invitation.federation, other.public_key().public_bytes_raw().hex())
    assert ours == invitation.safety_number != theirs


@pytest.mark.parametrize(
    "change",
    [
        {"address": "nowhere"},
        {"address": "a b:1"},
        {"layers": 0},
        {"hold_s": -1},
        {"model": ""},
        {"authority": "no certificate"},
        {"federation": "another"},
        {"bundle_sha256": "00"},
        {"personas": ("one: alone",)},
        {"personas": ("one: a", " ONE : b")},
        {"personas": ("one: a", ": no name")},
        {"personas": ("one: a", "two: b" + "x" * 200)},
        {"personas": ("one: a", "two:\nb")},
        {"personas": ("one: a", 2)},
    ],
)
def test_what_cannot_be_meant_is_no_invitation(invitation: Invitation, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="invitation"):
        replace(invitation, **change)


def test_an_invitation_of_another_protocol_or_size_is_refused(invitation: Invitation) -> None:
    file = json.loads(invitation.signed(ROOT_KEY))
    file["invitation"]["protocol"] = "confide-invitation/2"
    with pytest.raises(WireError, match="another protocol"):
        open_invitation(canonical_json(file))
    for data in (b"", b"{}", b"x" * 70000, b'{"invitation": 1}'):
        with pytest.raises(WireError):
            open_invitation(data)


def test_an_enrolment_is_its_devices_own_and_proves_the_code(enrolment: Enrolment) -> None:
    found, proof = open_enrolment(enrolment.signed(DEVICE, CODE))
    assert found == enrolment
    assert proof == proof_of(code_key(CODE), enrolment.to_bytes())
    assert proof != proof_of(code_key(new_code()), enrolment.to_bytes())


@pytest.mark.parametrize("field", sorted(Enrolment.__dataclass_fields__))
def test_an_enrolment_with_one_field_changed_does_not_verify(enrolment: Enrolment, field: str) -> None:
    other = enrolment_of(Ed25519PrivateKey.from_private_bytes(bytes(32)), name="other")
    changed = asdict(enrolment)
    changed[field] = asdict(other)[field] if asdict(other)[field] != changed[field] else f"{changed[field][:-1]}0"
    assert changed != asdict(enrolment)
    file = json.loads(enrolment.signed(DEVICE, CODE)) | {"enrolment": changed}
    with pytest.raises(SignatureInvalid, match="enrolment"):
        open_enrolment(canonical_json(file))


def test_the_safety_number_of_a_device_covers_both_keys_and_its_name(enrolment: Enrolment) -> None:
    other = enrolment_of(Ed25519PrivateKey.from_private_bytes(bytes(32)), name="other")
    numbers = {enrolment.safety_number}
    numbers |= {
        replace(enrolment, **{f: getattr(other, f)}).safety_number for f in ("device", "public_key", "node_key")
    }
    assert len(numbers) == 4
    assert replace(enrolment, nonce="0" * 64).safety_number == enrolment.safety_number, "of keys, not of a file"
    groups = enrolment.safety_number.split()
    assert len(groups) == 8 and all(len(group) == 5 and group.isdigit() for group in groups)


def test_codes_are_read_however_they_are_typed() -> None:
    assert code_key("k7q2m 3f8wx ooabc 9zzzz") == code_key(CODE)
    for wrong in ("", "K7Q2M", CODE + "A", CODE.replace("K", "U"), CODE.replace("K", "é")):
        with pytest.raises(ConfigError, match="20 letters"):
            code_key(wrong)


def test_codes_are_fresh_and_of_the_alphabet() -> None:
    codes = {new_code() for _ in range(200)}
    assert len(codes) == 200
    assert set("".join(codes)) == set(ALPHABET) | {"-"}, "200 codes of 20 letters leave out one of 32 once in 1e54"


def test_numbers_are_the_same_whatever_stands_between_the_digits(invitation: Invitation) -> None:
    number = invitation.safety_number
    assert same_number(number.replace(" ", "-"), number) and same_number(number.replace(" ", ""), number)
    assert not same_number("", number) and not same_number(number[:-1], number)


@given(st.text(max_size=40))
def test_no_text_breaks_the_reader_of_an_address(text: str) -> None:
    try:
        host, port = split_address(text)
    except ConfideError:
        return
    assert host and 0 < port < 65536


def test_only_the_curve_of_flower_is_a_key_of_a_supernode(enrolment: Enrolment) -> None:
    assert is_node_key(enrolment.node_key)
    for other in ("", "ssh-ed25519 AAAA", enrolment.node_key + "\n" + enrolment.node_key, "é"):
        assert not is_node_key(other)


def test_the_hash_of_weights_is_over_all_files_in_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights"):
        weights_sha256(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    first = weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(tmp_path) == first
    (tmp_path / "b.safetensors").write_bytes(b"3")
    assert weights_sha256(tmp_path) != first


def directory(serial: int, *names: str, federation: str = "trial") -> Directory:
    keys = {name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"-")) for name in names}
    members = [Member(name, key.public_key().public_bytes_raw().hex(), "home") for name, key in keys.items()]
    return Directory.of(federation, members, serial)


def test_a_directory_without_a_number_is_written_as_before() -> None:
    bare, numbered = directory(0, "ann", "bob"), directory(3, "ann", "bob")
    assert b"serial" not in bare.to_bytes() and b'"serial":3' in numbered.to_bytes()
    assert Directory.from_bytes(numbered.to_bytes()) == numbered != bare
    with pytest.raises(WireError, match="serial of 0"):
        Directory.from_bytes(bare.to_bytes().replace(b'/1"', b'/1","serial":0'))
    for wrong in (-1, 2**32, True, "1"):
        with pytest.raises(ConfigError, match="serial"):
            directory(wrong, "ann")  # type: ignore[arg-type]


def test_a_newer_directory_of_the_root_key_is_taken_and_nothing_else() -> None:
    root, held = ROOT_KEY.public_key(), directory(2, "ann", "bob")
    newer = directory(3, "ann")
    assert newer_directory(signed_directory(newer, ROOT_KEY), root, held) == newer
    assert newer_directory(signed_directory(held, ROOT_KEY), root, held) == held, "the same one again"
    assert newer_directory(signed_directory(newer, ROOT_KEY), root, None) == newer
    for other in (directory(1, "ann", "bob"), directory(2, "ann"), directory(0, "ann", "bob")):
        with pytest.raises(ConfigError, match="not newer"):
            newer_directory(signed_directory(other, ROOT_KEY), root, held)
    with pytest.raises(ConfigError, match="another federation"):
        newer_directory(signed_directory(directory(9, "ann", federation="other"), ROOT_KEY), root, held)
    with pytest.raises(SignatureInvalid):
        newer_directory(signed_directory(newer, DEVICE), root, held)


def test_the_server_reads_its_own_directory_without_the_signature() -> None:
    file = signed_directory(directory(4, "ann"), ROOT_KEY)
    assert read_directory(file) == open_directory(file, ROOT_KEY.public_key())
    with pytest.raises(WireError):
        read_directory(b"{}")
