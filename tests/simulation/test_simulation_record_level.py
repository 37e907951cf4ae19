"""Organisations that hold many people's records: Opacus' line is the guarantee and stands before its noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.documents import Person
from privacy.audit.replay import audit_run
from privacy.errors import ConfigError, DataError
from privacy.ledger import public_key_of, read_ledger
from privacy.policy import open_policy
from privacy.record import RecordCharge
from simulation.config import load_config
from simulation.population import as_organisations, load_people
from simulation.record_level import check_by_record, shared_charge, shared_record_privacy
from tests.simulation.conftest import write_people

RECIPE = Path(__file__).parents[2] / "recipes" / "clinics.toml"
CLINICS = (
    "organisations=8",
    "privacy.unit=record",
    "privacy.transport=masked",
    "privacy.noise_multiplier=0.05",
    "privacy.record_noise=1.0",
    "local.own_tokens=600",
    "local.steps=2",
    "local.sampling_rate=0.5",
    "compare_without_noise=false",
)


def test_the_recipe_is_a_configuration_with_a_claim() -> None:
    config = load_config(RECIPE, [])
    charge = shared_charge(config)
    assert charge is not None and (charge.steps, charge.sampling_rate) == (16, 0.25) and config.organisations == 8
    told = shared_record_privacy(config, 8)
    assert told is not None and told["epsilon"] is not None
    assert charge.epsilon() <= told["epsilon"] < 8, "Renyi DP is never below the exact figure"
    assert shared_charge(load_config(None, [])) is None and shared_record_privacy(load_config(None, []), 8) is None


def test_people_are_dealt_out_and_nothing_is_lost(tmp_path: Path) -> None:
    population = load_people(str(write_people(tmp_path / "p.jsonl", 18, 5)), None)
    held = as_organisations(population, 8)
    assert len(held.people) == 8 and as_organisations(population, 0) is population
    ids = [d.id for person in population.people for d in person.documents]
    assert sorted(d.id for person in held.people for d in person.documents) == sorted(ids)
    assert all(isinstance(person, Person) and person.test for person in held.people)
    with pytest.raises(DataError, match="19"):
        as_organisations(population, 19)


def test_a_run_of_organisations_claims_what_its_ledgers_say(run: Any, tmp_path: Path) -> None:
    report = run(tmp_path / "run", *CLINICS)
    record = report["privacy"]["record"]
    assert record["people"] == 8 and record["shared"] and report["what"]["people"] == 8
    ledgers = sorted((tmp_path / "run" / "ledger" / "devices").glob("*.jsonl"))
    assert len(ledgers) == 8
    for ledger in ledgers:
        kinds = [entry.kind for entry in read_ledger(ledger).entries]
        assert kinds.count("RECORD_DP") == 1, "one line for the whole campaign"
        assert kinds.index("RECORD_DP") < kinds.index("COMMIT"), "noted before anything learned is answered"
        [line] = [entry for entry in read_ledger(ledger).entries if entry.kind == "RECORD_DP"]
        charge = RecordCharge.from_body(line.body)
        assert (charge.steps, charge.sampling_rate) == (4, 0.5) and charge.epsilon() <= record["epsilon"]
    verdict = audit_run(tmp_path / "run")
    assert verdict.holds and next(f for f in verdict.findings if f.check == "record").outcome != "failed"
    key = public_key_of(tmp_path / "run" / "ledger" / "federation.jsonl")
    assert open_policy((tmp_path / "run" / "ledger" / "policy.json").read_bytes(), key).min_invited == 4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "that of single records" in page


def test_more_noise_inside_means_another_release(run: Any, tmp_path: Path) -> None:
    first = run(tmp_path / "a", *CLINICS, "privacy.transport=off")
    second = run(tmp_path / "b", *CLINICS, "privacy.transport=off", "privacy.record_noise=5.0")
    bits = [report["arms"]["global"]["bits_per_token"] for report in (first, second)]
    assert bits[0] != bits[1]
    assert second["privacy"]["record"]["epsilon"] < first["privacy"]["record"]["epsilon"]


@pytest.mark.parametrize(
    "settings",
    [
        ("personas=2",),
        ("queries.measure=true",),
        ("queries.objective=preference-pairs",),
        ("queries.retriever_rounds=1",),
    ],
)
def test_what_no_record_level_noise_covers_is_refused(settings: tuple[str, ...]) -> None:
    check_by_record(load_config(RECIPE, []))
    for setting in (*settings, "own.people=4", "compare_without_noise=true"):
        with pytest.raises(ConfigError, match="record"):
            check_by_record(load_config(RECIPE, [setting]))
