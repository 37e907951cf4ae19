"""Declared personas on a person's own device: told by the invitation, kept in the vault, read at the next question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import confide
from client import vault_key
from client.agent_home import AgentHome
from client.consent import consent
from client.dial import ALL, turn
from client.importers import SHARED, add
from client.join import count_to, join, leave
from client.membership import Membership
from client.model import LanguageModel
from client.vault import Vault
from client.vault_key import Opener
from privacy.adapter import Basis, state_sha256
from privacy.enrolment import weights_sha256
from privacy.errors import ConfigError
from privacy.objective import DECLARED
from privacy.policy import Policy, signed_policy
from privacy.query import Cohort, Limits, Query
from tests.operator_by_hand import ROOT_KEY, invitation_of

TOLD = ("nurse: cares for people", "Teacher: gives lessons")
LIMITS = Limits(64, 2)
CODE = "K7Q2M-3F8WX-00ABC-9ZZZZ"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "x")


def policy(basis: Basis) -> Policy:
    numbers = 2 * (basis.layout.dim + 1)
    signer = ROOT_KEY.public_key().public_bytes_raw().hex()
    return Policy(
        "trial", ("train.persona",), Fraction(1), Fraction(1, 10), 2, Fraction(2, 3), 6, Fraction(3), numbers, LIMITS,
        basis.sha256, signer,
    )  # fmt: skip


def joined(folder: Path, model: Path, basis: Basis, **changes: Any) -> AgentHome:
    """Return the home of a device with a vault that has joined a federation; it shares its notes."""
    notes = folder.parent / "notes"
    notes.mkdir()
    for i in range(6):
        (notes / f"{i}.txt").write_text(f"On day {i} the heron stood at the mill, and nobody looked.")
    vault = Vault.create(folder, Opener(passphrase="x"))
    add(vault, notes)
    consent(vault, 1, SHARED, True)
    turn(vault, ALL)
    home = AgentHome(folder, vault)
    signed = signed_policy(policy(basis), ROOT_KEY).decode()
    values = {"model_sha256": weights_sha256(model), "layers": 3, "policy": signed, "personas": TOLD} | changes
    join(home, invitation_of(**values).signed(ROOT_KEY), CODE, model, "ann")
    return home


@pytest.fixture
def home(tmp_path: Path, tiny_model_dir: Path, tiny_basis: Basis) -> Iterator[AgentHome]:
    made = joined(tmp_path / "home", tiny_model_dir, tiny_basis)
    assert made.vault is not None
    with closing(made.vault):
        yield made


def device(*words: str) -> Any:
    """Return the JSON of `confide device …`, or the one line of its failure."""
    result = CliRunner().invoke(confide.confide, ["device", *words, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return confide.error_line(result.exception)[0]
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_device_answers_in_the_slot_that_its_owner_named_and_zeros_for_none(
    home: AgentHome, tiny_basis: Basis, tiny_model_dir: Path
) -> None:
    """The agent's own vector, before clip and noise; the owner decides in another connection to the vault."""
    layout = tiny_basis.layout
    rows = np.zeros((2, layout.dim), np.float32)
    query = Query(
        federation="trial", campaign="c", round=0, attempt=0, purpose="train.persona", slots=2, slot_dim=layout.dim,
        clip_norm=Fraction(1, 10), noise_multiplier=Fraction(1), cohort=Cohort(2), transport="masked",
        release_sha256=state_sha256(tiny_basis.sha256, layout, [layout.zero_cores()] * 2),
        basis_sha256=tiny_basis.sha256, policy_sha256=home.policy.sha256, directory_sha256="1" * 64,
        ledger_head="a" * 64, objective="next-token", choice=DECLARED, limits=LIMITS, replayed_noise=False,
    )  # fmt: skip
    model = LanguageModel.load(tiny_model_dir, top_layers=3)
    member = Membership(home, model, threading.RLock())
    member._take_basis(tiny_basis)

    def answered() -> NDArray[np.float64]:
        vector = member.device._local_update(query, query.event_id("ann"), rows)
        return np.column_stack([vector[: 2 * layout.dim].reshape(2, -1), vector[2 * layout.dim :]])  # and the weights

    try:
        assert not answered().any(), "nobody said anything: zeros, after the same work"
        for name, slot in (("teacher", 1), (" NURSE ", 0)):
            assert device("persona", name)["persona"] == TOLD[slot].partition(":")[0]
            vector = answered()
            assert np.abs(vector[slot, :-1]).max() > 0 and vector[slot, -1] > 0 and not vector[1 - slot].any()
        assert device("persona", "--none")["persona"] is None
        assert not answered().any()
    finally:
        member.close()


def test_a_persona_lies_in_the_vault_alone_and_leaving_forgets_it(home: AgentHome) -> None:
    assert device("persona") == {"personas": list(TOLD), "persona": None}
    device("persona", "Teacher")
    left = b"".join(p.read_bytes() for p in home.folder.rglob("*") if p.is_file() and p.name != "invitation.json")
    assert b"eacher" not in left, "the vault is encrypted, and nothing else says it"
    assert "there are: nurse, Teacher" in device("persona", "pirate")
    assert device("persona")["persona"] == "Teacher", "a mistake changes nothing"
    assert "not both" in device("persona", "nurse", "--none")
    leave(home)
    assert home.vault is not None and home.vault.setting("agent.persona") == ""
    assert "joined no federation" in device("persona", "nurse")


def test_a_federation_that_declares_none_asks_nobody(tmp_path: Path, tiny_model_dir: Path, tiny_basis: Basis) -> None:
    home = joined(tmp_path / "home", tiny_model_dir, tiny_basis, personas=())
    assert home.vault is not None
    with closing(home.vault):
        assert device("persona") == {"personas": [], "persona": None}
        assert "declares no personas" in device("persona", "nurse")


def test_a_device_without_a_vault_has_no_place_for_a_persona(tmp_path: Path, tiny_model_dir: Path) -> None:
    home = AgentHome(tmp_path / "plain")
    values = {"model_sha256": weights_sha256(tiny_model_dir), "personas": TOLD}
    join(home, invitation_of(**values).signed(ROOT_KEY), CODE, tiny_model_dir, "ann")
    with pytest.raises(ConfigError, match="kept in a vault"):
        count_to(home, "nurse")
