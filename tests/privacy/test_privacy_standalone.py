"""The stand-alone reader agrees with the ledger's own, shares no code with it, and needs only one package."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.account import Unsent
from privacy.accounting import epsilon_gdp
from privacy.audit.standalone import epsilon, main
from privacy.ledger import Ledger
from privacy.query import Cohort, Limits, Query

SOURCE = Path(__file__).resolve().parents[2] / "privacy" / "audit" / "standalone.py"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def query(number: int, noise: str, transport: str = "ideal") -> Query:
    return Query(
        federation="fed",
        campaign="spring",
        round=number,
        attempt=0,
        purpose="train.global",
        slots=1,
        slot_dim=4,
        clip_norm=Fraction(1, 10),
        noise_multiplier=Fraction(noise),
        cohort=Cohort(10),
        transport=transport,
        release_sha256="1" * 64,
        basis_sha256="2" * 64,
        policy_sha256="3" * 64,
        ledger_head="4" * 64,
        objective="next-token",
        limits=Limits(512, 2),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Ledger(tmp_path / "a.jsonl", KEY) as ledger:
        for number, noise in enumerate(("1", "3/2", "2")):
            ledger.reserve(query(number, noise), "a")
        ledger.commit(query(0, "1").event_id("a"))
        ledger.abort(query(2, "2").event_id("a"), Unsent.NOT_STORED)
    return tmp_path / "a.jsonl"


def test_it_adds_up_to_the_same_by_itself_in_its_own_process(path: Path) -> None:
    run = subprocess.run([sys.executable, "-I", SOURCE, path], capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    rho = Fraction(1, 2) + Fraction(2, 9)
    assert (said["entries"], Fraction(said["rho"]), said["without_fresh_noise"]) == (6, rho, 0)
    for delta, figure in said["epsilon_per_user"].items():
        assert figure == pytest.approx(epsilon_gdp(rho, float(delta)), abs=1e-5)


@pytest.mark.parametrize("rho", ["0", "1/200", "1/2", "7/3", "50"])
def test_its_epsilon_is_the_exact_one(rho: str) -> None:
    for delta in (1e-5, 1e-6, 1e-9):
        assert epsilon(Fraction(rho), delta) == pytest.approx(epsilon_gdp(Fraction(rho), delta), rel=1e-6, abs=1e-9)


def test_it_finds_every_changed_byte(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = path.read_bytes()
    for offset in range(0, len(data) - 1, 3):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset % 8)
        path.write_bytes(changed)
        assert main([str(path)]) == 1
        assert f"line {data[:offset].count(10) + 1}:" in capsys.readouterr().err


def test_it_claims_nothing_without_noise_and_reads_nothing_of_another_key(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger(path, KEY) as ledger:
        ledger.reserve(query(9, "1", "off"), "a")
    assert main([str(path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["without_fresh_noise"] == 1
    assert set(said["epsilon_per_user"].values()) == {None}
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw().hex()
    assert main([str(path), other]) == 1
    assert main([]) == main([str(path), "zz"]) == main([str(path / "none")]) == 2


def test_it_imports_nothing_of_the_house() -> None:
    tree = ast.parse(SOURCE.read_text())
    modules = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert modules - set(sys.stdlib_module_names) == {"cryptography"}
