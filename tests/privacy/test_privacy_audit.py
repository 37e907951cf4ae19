"""A consistent RUN holds; each way to cheat is found under its own name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click.testing
import pytest
from typer.testing import CliRunner

from privacy.account import FEDERATION
from privacy.audit import spread
from privacy.audit.cli import audit
from privacy.audit.html import audit_page, delta_text, figure, odds
from privacy.audit.replay import audit_run
from privacy.audit.verdict import TITLES, Finding, Outcome
from privacy.chain import read_chain
from privacy.errors import ConfigError, LedgerError
from privacy.ledger import Ledger, read_ledger
from privacy.policy import signed_policy
from privacy.record import RecordCharge
from tests.privacy.audited_run import (
    DEVICES,
    FED_KEY,
    INVITED,
    MANY,
    RECORD,
    RELEASE_KEY,
    SURVIVORS,
    Sample,
    device_key,
    policy,
    query,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Sample().make(tmp_path_factory.mktemp("audit") / "run")


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def violated(run: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit_run(run).violated}


def test_a_consistent_run_holds(good: Path) -> None:
    verdict = audit_run(good, FED_KEY.public_key())
    outcomes = {finding.check: finding.outcome for finding in verdict.findings}
    assert outcomes.pop("ledger.witness") is Outcome.UNCHECKED  # nobody has countersigned it
    assert outcomes == dict.fromkeys(set(TITLES) - {"ledger.witness", "witness"}, Outcome.HOLDS)
    assert verdict.holds
    assert verdict.exit_code == 0
    figures = verdict.facts["statement"]
    assert isinstance(figures, dict)
    assert figures["rho_exact"] == "1/1"
    assert figures["epsilon_gdp"]["1e-06"] == pytest.approx(7.286, abs=1e-3)
    assert figures["epsilon_server"] == figures["sybil_floor_epsilon"]
    assert json.loads(json.dumps(verdict.as_dict()))["holds"] is True


def test_ledgers_read_by_several_processes_are_judged_alike(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = run / "ledger" / "devices" / f"{DEVICES[1]}.jsonl"
    for changed in (b"", broken.read_bytes().replace(b'"RESERVE"', b'"RESERVF"', 1)):
        broken.write_bytes(changed or broken.read_bytes())
        in_turn = audit_run(run)
        with monkeypatch.context() as one:
            one.setattr(spread, "MANY", 2)
            one.setattr(spread, "AT_ONCE", 1)
            assert audit_run(run, spread=spread.over_cores) == in_turn
        assert in_turn.holds == (changed == b"")


def test_a_run_that_names_only_how_many_survived_holds(tmp_path: Path) -> None:
    assert not violated(Sample(survivors_by_name=False).make(tmp_path / "run"))


def test_a_run_without_noise_holds_if_it_says_so(tmp_path: Path) -> None:
    verdict = audit_run(Sample(transport="off").make(tmp_path / "run"))
    assert verdict.holds
    assert verdict.facts["private"] is False
    page = audit_page(verdict)
    assert "NOT PRIVATE" in page
    assert "per user</span>" not in page


def test_a_run_without_noise_that_does_not_say_so_is_found(tmp_path: Path) -> None:
    quiet = Sample(transport="off", reported=lambda report: {**report, "not_private": []})
    assert "stamp" in violated(quiet.make(tmp_path / "run"))


@pytest.mark.parametrize("rounds", [0, 1])
def test_short_runs_hold(tmp_path: Path, rounds: int) -> None:
    sample = Sample(rounds=rounds)
    if rounds == 0:
        sample.reported = lambda report: {
            "rounds": [],
            "privacy": report["privacy"],
            "not_private": ["nothing was asked"],
        }
        sample._report = lambda figures: {"privacy": {}, "rounds": []}  # type: ignore[method-assign]
    verdict = audit_run(sample.make(tmp_path / "run"))
    assert not [finding for finding in verdict.violated if finding.check != "record"]
    assert "<html" in audit_page(verdict)


# -- claims ----------------------------------------------------------------------------------------------------------


def at(key: str, value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda figures: {**figures, key: {**figures[key], "1e-06": value}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (at("epsilon", 2.0), "epsilon at 1e-06: claimed 2"),
        (at("epsilon_gdp", 2.0), "epsilon_gdp"),
        (at("epsilon_server", 2.0), "epsilon_server"),
        (at("sybil_floor_epsilon", 2.0), "sybil_floor"),
        (lambda figures: {**figures, "rho_exact": "1/2"}, "rho_exact"),
        (lambda figures: {**figures, "participations": 1}, "participations"),
        (lambda figures: {**figures, "unit": "record"}, "unit"),
        (lambda figures: {**figures, "amplification": "poisson"}, "amplification"),
        (lambda figures: {k: v for k, v in figures.items() if k != "epsilon_server"}, "epsilon_server is not stated"),
        (lambda figures: {**figures, "epsilon": {"0.4": 0.1}}, "epsilon"),
        (lambda figures: {**figures, "epsilon": None}, "epsilon"),
    ],
)
def test_a_release_that_claims_another_figure_is_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], named: str
) -> None:
    found = violated(Sample(claimed=change).make(tmp_path / "run"))
    assert set(found) == {"claims.release"}
    assert named in found["claims.release"].detail


def in_privacy(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda report: {**report, "privacy": {**report["privacy"], **changes}}


REPORTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "epsilon at 1e-06": in_privacy(epsilon={"1e-05": 7.0, "1e-06": 2.0, "1e-09": 10.0}),
    "rho": in_privacy(rho=0.5),
    "noise_multiplier": in_privacy(noise_multiplier=2.0),
    "participations": in_privacy(participations=1),
    "cohort_floor": in_privacy(cohort_floor=100),
    "against server is not stated": in_privacy(adversaries=[]),
    "against server: epsilon": in_privacy(adversaries=[{"who": "server", "epsilon": {"1e-06": 1.0}}]),
    "is not stated": lambda report: {**report, "privacy": {}},
    "no privacy section": lambda report: {**report, "privacy": 5},
    "rounds": lambda report: {**report, "rounds": report["rounds"][:1]},
    "9 in the ledger": lambda report: {**report, "rounds": [{"invited": 10, "survivors": 10}] * 2},
}


@pytest.mark.parametrize("named", REPORTS)
def test_a_report_that_claims_another_figure_is_found(run: Path, named: str) -> None:
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(REPORTS[named](report)))
    finding = violated(run)["claims.report"]
    assert any(named in problem for problem in finding.problems), finding.problems


def test_a_record_level_claim_below_its_ledger_line_is_found(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["privacy"]["record"]["epsilon"] = 0.5
    (run / "report.json").write_text(json.dumps(report))
    assert set(violated(run)) == {"record"}


# -- ledgers ---------------------------------------------------------------------------------------------------------


def test_a_changed_noise_multiplier_breaks_the_signature(run: Path) -> None:
    path = run / "ledger" / "federation.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":"1/1"', b'"noise_multiplier":"9/1"', 1))
    verdict = audit_run(run)
    assert [finding.check for finding in verdict.violated] == ["ledger.federation", "ledger.checkpoints"]
    assert "line 2" in verdict.violated[0].detail
    assert "claims.report" in {f.check for f in verdict.findings if f.outcome is Outcome.UNCHECKED}


def test_a_noise_multiplier_changed_by_the_holder_of_the_key_contradicts_the_devices(tmp_path: Path) -> None:
    found = violated(Sample(device_noise=Fraction(1, 2), policy=MANY).make(tmp_path))
    assert "noise multiplier 1/2 on the device, 1/1 there" in found["round.charged"].detail
    assert "policy.bounds" not in found


def test_a_charge_below_the_policys_noise_is_found(tmp_path: Path) -> None:
    found = violated(Sample(device_noise=Fraction(1, 2)).make(tmp_path))
    assert "noise.too-low" in found["policy.bounds"].detail


def test_a_spent_budget_is_found(tmp_path: Path) -> None:
    found = violated(Sample(policy=policy(budget_rho=Fraction(3, 4))).make(tmp_path))
    assert set(found) == {"policy.bounds"}
    assert "budget.exhausted" in found["policy.bounds"].detail


@pytest.mark.parametrize("by_name", [True, False])
def test_a_missing_reserve_is_found(tmp_path: Path, by_name: bool) -> None:
    sample = Sample(survivors_by_name=by_name, skip_reserve="device-03", survivors=INVITED)
    found = violated(sample.make(tmp_path))
    assert set(found) == {"round.charged"}
    assert "RESERVE" in found["round.charged"].detail


def test_a_lost_device_ledger_is_found(run: Path) -> None:
    (run / "ledger" / "devices" / "device-03.jsonl").unlink()
    assert set(violated(run)) == {"round.charged"}


def test_device_ledgers_that_stay_on_devices_are_not_taken_for_checked(run: Path) -> None:
    shutil.rmtree(run / "ledger" / "devices")
    verdict = audit_run(run)
    assert {f.check for f in verdict.violated} <= {"record"}
    open_ = {f.check for f in verdict.findings if f.outcome is Outcome.UNCHECKED}
    assert {"ledger.devices", "policy.bounds", "round.charged"} <= open_


def test_a_dropped_entry_is_found(run: Path) -> None:
    for name in ("federation.jsonl", "devices/device-02.jsonl"):
        path = run / "ledger" / name
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join([lines[0], *lines[2:]]))
        check = "ledger.federation" if name == "federation.jsonl" else "ledger.devices"
        assert "line 2: does not follow" in violated(run)[check].detail
        path.write_bytes(whole)


def test_a_rollback_behind_the_release_is_found(run: Path) -> None:
    path = run / "ledger" / "federation.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    found = violated(run)
    assert "rolled back" in found["release.ledger"].detail
    assert "no longer contains" in found["ledger.checkpoints"].detail
    assert "claims.release" in found


def test_a_rollback_that_hides_the_last_release_is_found(run: Path) -> None:
    path = run / "ledger" / "federation.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert set(violated(run)) == {"release.ledger", "ledger.checkpoints"}


def test_a_rolled_back_device_is_found(run: Path) -> None:
    path = run / "ledger" / "devices" / "device-02.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    found = violated(run)
    assert "device-02: its ledger lost the state" in found["ledger.history"].detail
    assert "device-02" in found["round.charged"].detail


def test_a_device_ledger_of_another_key_is_found(run: Path) -> None:
    path = run / "ledger" / "devices" / "device-02.jsonl"
    path.unlink()
    with Ledger(path, device_key("other"), {"federation": "meadow", "owner": "device-02"}):
        pass
    assert "not the one in the federation" in violated(run)["ledger.devices"].detail


def test_a_query_that_names_a_state_the_ledger_never_had_is_found(run: Path) -> None:
    with Ledger(run / "ledger" / "federation.jsonl", FED_KEY) as ledger:
        strange = query(7, "e" * 64, policy().sha256)
        ledger.reserve(strange, FEDERATION, INVITED)
    found = violated(run)
    assert "never had" in found["ledger.history"].detail
    assert "claims.report" in found  # the ledger went on after the report


# -- rounds, policy, release -----------------------------------------------------------------------------------------


def test_a_sum_of_too_few_is_found(tmp_path: Path) -> None:
    found = violated(Sample(survivors=DEVICES[:6]).make(tmp_path))
    assert set(found) == {"round.cohort"}
    assert "the floor is 7" in found["round.cohort"].detail


def test_a_survivor_that_was_not_invited_is_found(tmp_path: Path) -> None:
    found = violated(Sample(survivors=(*SURVIVORS[:8], DEVICES[11])).make(tmp_path))
    assert "not invited" in found["round.cohort"].detail


def test_a_policy_of_another_key_or_another_policy_is_found(run: Path) -> None:
    path = run / "ledger" / "policy.json"
    path.write_bytes(signed_policy(policy(), RELEASE_KEY))
    assert "policy.signature" in violated(run)
    path.write_bytes(signed_policy(policy(max_participations=9), FED_KEY))
    assert "another policy" in violated(run)["policy.signature"].detail
    path.unlink()
    assert "missing" in violated(run)["policy.signature"].detail


def test_a_changed_release_is_found(run: Path) -> None:
    path = run / "release" / "global" / "core.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert set(violated(run)) == {"release.files"}
    shutil.rmtree(run / "release")
    assert "the folder has none" in violated(run)["release.files"].detail


def test_a_federation_key_from_elsewhere_must_fit(run: Path) -> None:
    found = {finding.check for finding in audit_run(run, RELEASE_KEY.public_key()).violated}
    assert "ledger.federation" in found


def test_what_cannot_be_read_is_no_verdict(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        audit_run(tmp_path / "nowhere")
    (run / "report.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        audit_run(run)
    (run / "ledger" / "federation.pub").unlink()
    with pytest.raises(ConfigError, match="--key"):
        audit_run(run)


# -- record-level lines ----------------------------------------------------------------------------------------------


def test_a_record_charge_is_read_as_written_and_known() -> None:
    assert RecordCharge.from_body(RECORD.body()) == RECORD
    known = RecordCharge("own", 1.12, 256 / 60000, 14062, 1.0, 1e-5)
    assert known.epsilon() == pytest.approx(2.3102, abs=1e-3)
    for change in ({"steps": "12"}, {"delta": "0.00001"}, {"noise_multiplier": "0.0"}, {"extra": 1}, {"unit": "user"}):
        with pytest.raises(LedgerError):
            RecordCharge.from_body({**RECORD.body(), **change})
    with pytest.raises(ConfigError):
        replace(RECORD, noise_multiplier=0.0)


def test_a_record_line_that_cannot_be_read_is_found(run: Path) -> None:
    with Ledger(run / "ledger" / "devices" / "device-01.jsonl", device_key("device-01")) as ledger:
        ledger.append("RECORD_DP", {"epsilon": "0.1"})
    assert set(violated(run)) == {"record"}


# -- the command and the page ----------------------------------------------------------------------------------------


def invoke(*arguments: object) -> click.testing.Result:
    return CliRunner().invoke(audit, [str(each) for each in arguments])


def test_the_command_on_a_run(run: Path) -> None:
    outcome = invoke("run", run)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "holds" in outcome.stdout
    assert "What was checked holds" in (run / "audit.html").read_text()
    outcome = invoke("run", run, "--json", "--html", run / "other.html", "--key", run / "ledger" / "federation.pub")
    assert json.loads(outcome.stdout)["holds"] is True
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(in_privacy(rho=0.1)(report)))
    outcome = invoke("run", run)
    assert outcome.exit_code == 1
    assert outcome.stderr.count("\n") == 1
    assert "VIOLATED: claims.report: rho: claimed 0.1" in outcome.stderr
    assert "rely on no figure" in (run / "audit.html").read_text()
    assert isinstance(invoke("run", run / "nowhere").exception, ConfigError)
    assert isinstance(invoke("run", run, "--key", "zz").exception, ConfigError)


def test_the_command_on_a_ledger(run: Path) -> None:
    path = run / "ledger" / "devices" / "device-00.jsonl"
    outcome = invoke("ledger", path, "--json")
    value = json.loads(outcome.stdout)
    assert (outcome.exit_code, value["size"], value["statement"]["rho_exact"]) == (0, 6, "1/1")
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)
    outcome = invoke("ledger", path)
    assert (outcome.exit_code, outcome.stderr.count("\n")) == (1, 1)
    assert "line 2" in outcome.stderr or "line 1" in outcome.stderr
    assert isinstance(invoke("ledger", run).exception, ConfigError)
    path.with_suffix(".pub").unlink()
    assert isinstance(invoke("ledger", path).exception, ConfigError)


def test_the_command_on_a_release(run: Path) -> None:
    outcome = invoke("release", run / "release", "--json")
    value = json.loads(outcome.stdout)
    assert (outcome.exit_code, value["private"], value["claim"]["rho_exact"]) == (0, True, "1/1")
    key = RELEASE_KEY.public_key().public_bytes_raw().hex()
    assert invoke("release", run / "release", "--key", key).exit_code == 0
    other = FED_KEY.public_key().public_bytes_raw().hex()
    outcome = invoke("release", run / "release", "--key", other)
    assert (outcome.exit_code, "does not verify" in outcome.stderr) == (1, True)
    (run / "release" / "extra").write_text("x")
    assert invoke("release", run / "release").exit_code == 1
    assert isinstance(invoke("release", run / "nowhere").exception, ConfigError)


class Page(HTMLParser):
    """Collects cells, open tags and every address in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_the_page_stands_alone_and_names_a_unit_beside_every_epsilon(good: Path) -> None:
    verdict = audit_run(good)
    text = audit_page(verdict)
    page = Page(text)
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe", "form"} & set(page.tags)
    assert "//" not in text
    assert "url(" not in text
    figures = verdict.facts["statement"]
    assert isinstance(figures, dict)
    for name in ("epsilon", "epsilon_server", "sybil_floor_epsilon", "epsilon_gdp", "epsilon_pld"):
        for value in figures[name].values():
            cells = [cell for cell in page.cells if figure(value) in cell]
            assert cells
            assert all("per user" in cell for cell in cells if cell.strip().startswith(figure(value)))
    assert "the server itself" in text
    assert "Sybil floor" in text
    assert text == audit_page(verdict)


def test_the_page_escapes_what_it_shows(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(in_privacy(unit="<script>alert(1)</script>")(report)))
    text = audit_page(audit_run(run))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_figures_are_written_for_people() -> None:
    assert [figure(each) for each in (None, 0.0, 8.9223, 0.0123, 91817.3, float("inf"))] == [
        "–", "0", "8.92", "0.0123", "91,817", "no bound",
    ]  # fmt: skip
    assert [delta_text(each) for each in ("1e-06", "1e-09", "2.5e-07")] == ["10⁻⁶", "10⁻⁹", "2.5e-07"]
    assert [odds(each) for each in (None, 0.0, 1.0, 99.0)] == ["no bound", "50.0 %", "73.1 %", "more than 99.9 %"]


def test_every_check_is_made(good: Path) -> None:
    assert [finding.check for finding in audit_run(good).findings] != []
    assert {finding.check for finding in audit_run(good).findings} == set(TITLES) - {"witness"}
    with pytest.raises(ValueError, match="unknown check"):
        Finding("no.such.check", Outcome.HOLDS, "")


@pytest.fixture(autouse=True)
def _chains_stay_readable(good: Path) -> Iterator[None]:
    yield
    read_chain((good / "ledger" / "federation.jsonl").read_bytes(), FED_KEY.public_key())
    assert read_ledger(good / "ledger" / "federation.jsonl").head
