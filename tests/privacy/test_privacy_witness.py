"""A witness lets a ledger grow and nothing else, keeps proof of a fork, and its cosignature is asked for by name."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import click.testing
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

from privacy.audit.cli import audit
from privacy.audit.html import adversaries, audit_page
from privacy.audit.replay import audit_run
from privacy.audit.standalone import main as standalone
from privacy.audit.verdict import Outcome
from privacy.audit.witness import Memory, is_entry_fork, witness, witness_key
from privacy.checkpoint import cosigned, is_fork, verify_checkpoint, verify_cosignature
from privacy.errors import ConfigError, LedgerError, SignatureInvalid
from privacy.history import open_history
from privacy.ledger import Ledger, read_ledger
from privacy.query import Sampling
from tests.privacy.audited_run import DEVICES, FED_KEY, INVITED, Sample, device_key, policy, query

WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
NOW = 1_764_000_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sample().make(tmp_path_factory.mktemp("witness") / "run")


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def grown(path: Path, entries: int = 1) -> None:
    with Ledger(path, FED_KEY) as ledger:
        for number in range(entries):
            ledger.append("EVAL", {"n": number})
        ledger.write_checkpoint()


def problems(path: Path, state: Path) -> list[str]:
    return [finding.detail for finding in witness(path, state, WITNESS, NOW).violated]


def federation(run: Path) -> Path:
    return run / "ledger" / "federation.jsonl"


def test_a_run_is_remembered_and_countersigned_and_may_grow(run: Path, state: Path) -> None:
    first = witness(run, state, WITNESS, NOW)
    assert first.holds and first.facts["ledgers"] == 1 + len(DEVICES) and first.facts["cosigned"] == 1
    note = (run / "ledger" / "federation.checkpoint").read_bytes()
    seen, seconds = verify_cosignature(note, WITNESS.public_key())
    assert (seen.size, seconds) == (len(read_ledger(federation(run)).entries), NOW)
    assert verify_checkpoint(note, FED_KEY.public_key()) == seen
    assert (state / "meadow--federation.checkpoint").read_bytes() == note
    memory = Memory.from_bytes((state / "meadow--device-00.memory").read_bytes())
    assert memory.visits[-1].figures.rho == 1 and memory.checkpoint.size == 6
    history, signer = open_history((state / "meadow--device-00.history").read_bytes())
    assert history == memory.history and signer == WITNESS.public_key().public_bytes_raw().hex()
    assert witness(run, state, WITNESS, NOW - 5).holds  # a clock set back: the time that was signed stays
    assert verify_cosignature((run / "ledger" / "federation.checkpoint").read_bytes(), WITNESS.public_key())[1] == NOW
    grown(federation(run), 3)
    assert witness(run, state, WITNESS, NOW + 60).holds
    memory = Memory.from_bytes((state / "meadow--federation.memory").read_bytes())
    assert memory.checkpoint.size == seen.size + 3 and len(memory.visits) == 2


def test_a_rollback_is_refused_and_not_remembered(run: Path, state: Path) -> None:
    witness(run, state, WITNESS, NOW)
    before = (state / "meadow--federation.memory").read_bytes()
    path = federation(run)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "does not contain" in problems(path, state)[0]  # its own checkpoint tells
    with Ledger(path, FED_KEY) as ledger:
        ledger.write_checkpoint()
    assert "rolled back: " in problems(path, state)[0]
    assert (state / "meadow--federation.memory").read_bytes() == before
    assert not (state / "evidence").exists()


def test_of_a_fork_the_proof_is_kept(run: Path, state: Path) -> None:
    path, whole = federation(run), federation(run).read_bytes()
    witness(path, state, WITNESS, NOW)
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    grown(path)
    for _ in range(2):  # shown again it is refused again
        assert "forked" in problems(path, state)[0]
    (folder,) = (state / "evidence").iterdir()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex((folder / "owner.pub").read_text().strip()))
    seen, shown = ((folder / f"{name}.checkpoint").read_bytes() for name in ("seen", "shown"))
    assert is_fork(seen, shown, key)
    lines = [(folder / f"{name}.entry").read_bytes() for name in ("seen", "shown")]
    assert is_entry_fork(lines[0], lines[1], key) and not is_entry_fork(lines[0], lines[0], key)
    with pytest.raises(LedgerError):
        is_entry_fork(lines[0], lines[1], WITNESS.public_key())
    grown(path, 5)  # a longer second history is proven by its entry, whatever checkpoints are shown
    assert "forked" in problems(path, state)[0]
    path.write_bytes(whole)
    path.with_suffix(".checkpoint").unlink()
    assert witness(path, state, WITNESS, NOW).holds


def test_a_restored_device_is_accepted_once_it_adopted_and_a_federation_never(run: Path, state: Path) -> None:
    path = run / "ledger" / "devices" / "device-02.jsonl"
    key, backup = device_key("device-02"), path.read_bytes()
    witness(path, state, WITNESS, NOW)
    asked = query(7, "4" * 64, policy().sha256)
    with Ledger(path, key) as ledger:
        ledger.reserve(asked, "device-02")
    witness(path, state, WITNESS, NOW)
    path.write_bytes(backup)
    assert "rolled back" in problems(path, state)[0]
    told = (state / "meadow--device-02.history").read_bytes()
    with Ledger(path, key) as ledger:
        assert ledger.adopt(told, [WITNESS.public_key()]).rho == Fraction(1, 2)
        assert ledger.spent_rho() == Fraction(3, 2)
    assert witness(path, state, WITNESS, NOW).holds
    memory = Memory.from_bytes((state / "meadow--device-02.memory").read_bytes())
    assert memory.visits[-1].figures.rho == Fraction(3, 2)
    assert standalone([str(path)]) == 0


def test_another_key_and_a_damaged_memory_are_refused(run: Path, state: Path) -> None:
    path = run / "ledger" / "devices" / "device-03.jsonl"
    witness(path, state, WITNESS, NOW)
    path.unlink()
    with Ledger(path, device_key("other"), {"federation": "meadow", "owner": "device-03"}):
        pass
    assert "another key" in problems(path, state)[0]
    kept = state / "meadow--device-03.memory"
    good = kept.read_bytes()
    for bad in (
        b"",
        b"{}",
        good[:-1],
        good.replace(b'"size":5', b'"size":"5"'),
        good.replace(b"confide-w", b"confide-x"),
    ):
        kept.write_bytes(bad)
        with pytest.raises(ConfigError, match="remembers"):
            witness(path, state, WITNESS, NOW)
    with pytest.raises(ConfigError, match="cannot read"):
        witness(run / "nowhere", state, WITNESS, NOW)
    with Ledger(run / "x.jsonl", FED_KEY), pytest.raises(ConfigError, match="names no federation"):
        witness(run / "x.jsonl", state, WITNESS, NOW)


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "witness.key"
    key = witness_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert witness_key(path).private_bytes_raw() == key.private_bytes_raw()
    assert path.with_suffix(".pub").read_text().strip() == key.public_key().public_bytes_raw().hex()
    path.write_text("zz")
    with pytest.raises(ConfigError):
        witness_key(path)


def test_a_cosignature_is_the_one_of_the_published_format(run: Path) -> None:
    """Put together here from the text of C2SP tlog-cosignature, byte by byte, without the code under test."""
    note = (run / "ledger" / "federation.checkpoint").read_bytes()
    body = note.split(b"\n\n")[0] + b"\n"
    signature = WITNESS.sign(b"cosignature/v1\ntime 1679315147\n" + body)
    public = WITNESS.public_key().public_bytes_raw()
    key_id = hashlib.sha256(b"witness.example.com/w1\n\x04" + public).digest()[:4]
    value = base64.b64encode(key_id + (1679315147).to_bytes(8, "big") + signature).decode()
    wanted = note + f"— witness.example.com/w1 {value}\n".encode()
    assert cosigned(note, WITNESS, 1679315147, "witness.example.com/w1") == wanted
    assert verify_cosignature(wanted, WITNESS.public_key())[1] == 1679315147
    again = cosigned(cosigned(wanted, WITNESS, 1679315148, "witness.example.com/w1"), FED_KEY, 5, "other")
    assert again.count("— ".encode()) == 3
    for offset in range(len(note), len(wanted) - 1):
        changed = bytearray(wanted)
        changed[offset] ^= 1
        with pytest.raises((LedgerError, SignatureInvalid)):
            verify_cosignature(bytes(changed), WITNESS.public_key())


# -- the commands ----------------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(audit, [str(each) for each in arguments])


def test_the_commands_and_their_exit_codes(run: Path, state: Path) -> None:
    path = federation(run)
    outcome = invoke("witness", run, "--state", state, "--json")
    assert outcome.exit_code == 0, outcome.output
    said = json.loads(outcome.stdout)
    assert said["witness"] == (state / "witness.pub").read_text().strip()
    for command, where in (("run", run), ("ledger", path)):
        assert invoke(command, where, "--witness", state / "witness.pub").exit_code == 0
        other = WITNESS.public_key().public_bytes_raw().hex()
        outcome = invoke(command, where, "--witness", other)
        assert outcome.exit_code == 1 and "ledger.witness" in outcome.stderr
    assert isinstance(invoke("witness", run / "nowhere", "--state", state).exception, ConfigError)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    outcome = invoke("witness", path, "--state", state)
    assert outcome.exit_code == 1 and "VIOLATED" in outcome.stderr
    own = run / "officer.key"
    assert (
        invoke("witness", run / "ledger" / "devices" / "device-01.jsonl", "--state", state, "--key", own).exit_code == 0
    )
    assert own.stat().st_mode & 0o777 == 0o600


def test_a_run_whose_policy_names_a_witness_is_held_to_its_cosignature(tmp_path: Path, state: Path) -> None:
    public = WITNESS.public_key().public_bytes_raw().hex()
    run = Sample(policy=policy(witness_key=public)).make(tmp_path / "run")
    outcome = {finding.check: finding.outcome for finding in audit_run(run).findings}
    assert outcome["ledger.witness"] is Outcome.UNCHECKED
    witness(run, state, WITNESS, NOW)
    outcome = {finding.check: finding.outcome for finding in audit_run(run).findings}
    assert outcome["ledger.witness"] is Outcome.HOLDS
    lines = federation(run).read_bytes().splitlines(keepends=True)
    federation(run).write_bytes(b"".join(lines[:-1]))
    assert "ledger.witness" in {finding.check for finding in audit_run(run).violated}


def test_what_devices_saw_is_compared_with_the_federations_ledger(run: Path) -> None:
    device = run / "ledger" / "devices" / f"{INVITED[0]}.jsonl"
    note = (run / "ledger" / "federation.checkpoint").read_bytes()
    with Ledger(device, device_key(INVITED[0])) as ledger:
        ledger.see(note, FED_KEY.public_key())
    assert audit_run(run).holds
    lines = federation(run).read_bytes().splitlines(keepends=True)
    federation(run).write_bytes(b"".join(lines[:-1]))
    grown(federation(run))
    found = {finding.check: finding.detail for finding in audit_run(run).violated}
    assert "does not continue" in found["ledger.history"]


def test_the_stand_alone_reader_agrees_on_checkpoints_and_witness(
    run: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, public = federation(run), FED_KEY.public_key().public_bytes_raw().hex()
    mine, other = (key.public_key().public_bytes_raw().hex() for key in (WITNESS, FED_KEY))
    assert standalone([str(path), public]) == 0
    assert standalone([str(path), public, mine]) == 1  # nobody has countersigned
    witness(run, state, WITNESS, NOW)
    assert standalone([str(path), public, mine]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["witnessed"] is True
    assert standalone([str(path), public, other]) == 1
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert standalone([str(path), public]) == 1
    assert standalone([str(path), public, "zz"]) == 2


# -- what the page and the claims say of years, coins and masks --------------------------------------------------------


def test_the_page_gives_the_lifetime_first_and_the_year_after_it(tmp_path: Path) -> None:
    run = Sample(policy=policy(yearly_rho=Fraction(2))).make(tmp_path / "run")
    text = audit_page(audit_run(run))
    assert text.index("in a lifetime") < text.index("of it in any 365 days")


def test_a_yearly_allowance_that_was_passed_is_found(tmp_path: Path) -> None:
    run = Sample(rounds=3, policy=policy(yearly_rho=Fraction(1))).make(tmp_path / "run")
    found = {finding.check: finding.detail for finding in audit_run(run).violated}
    assert set(found) == {"policy.bounds"} and "budget.yearly" in found["policy.bounds"]


def test_what_coins_are_worth_is_recomputed_and_said_with_its_condition(tmp_path: Path) -> None:
    sampling = Sampling(100, Fraction(1, 12))
    run = Sample(sampling=sampling).make(tmp_path / "run")
    verdict = audit_run(run)
    assert verdict.holds, verdict.line
    text = " ".join(audit_page(verdict).split())
    assert "devices’ own coins" in text and "Not against the server" in text
    report = json.loads((run / "report.json").read_text())
    report["privacy"]["sampled"]["epsilon"]["1e-06"] = 0.01
    (run / "report.json").write_text(json.dumps(report))
    assert "sampled" in {f.check: f.detail for f in audit_run(run).violated}["claims.report"]


def test_amplification_that_no_device_decided_is_found(tmp_path: Path) -> None:
    def boast(figures: dict[str, Any]) -> dict[str, Any]:
        return {**figures, "sampled": {"epsilon": {"1e-06": 0.1}}}

    run = Sample(claimed=boast).make(tmp_path / "run")
    assert "amplification" in {f.check: f.detail for f in audit_run(run).violated}["claims.release"]


def test_the_page_says_what_the_server_sees_with_masks_and_without() -> None:
    clear, hidden = "in the clear", "only sums"
    for transports, words in ((["masked"], hidden), (["ideal"], clear), (["ideal", "masked"], clear)):
        (_, (name, _, sees), (sybil, _, _)) = adversaries({"statement": {"transport": transports}})
        assert (name, sybil) == ("epsilon_server", "sybil_floor_epsilon") and words in sees


def test_what_cannot_be_remembered_is_not_countersigned(run: Path, state: Path) -> None:
    path = federation(run)
    before = path.with_suffix(".checkpoint").read_bytes()
    (state / "meadow--federation.memory" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        witness(path, state, WITNESS, NOW)
    assert path.with_suffix(".checkpoint").read_bytes() == before
