"""The audit of the mechanism: clean code is green, each planted bug is red, and nobody else can plant one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import confide
import privacy.answer
from client.agent import Device
from privacy.errors import ConfigError
from privacy.query import Query
from simulation.mechanism import one_run, residuals, sensitivity, trade_off
from simulation.mechanism.audit import LAYERS, Power, audit_mechanism
from simulation.mechanism.layer import Check, Layer, Mechanism
from simulation.mechanism.people import KnownUpdates, People, layout_of, one_hot
from simulation.mechanism.planting import BUGS, bug_names, planted

ROOT = Path(confide.__file__).parent
SMALL = Power(
    residuals.Size(people=8, rank=24, rounds=4, mask_keys=2**17),
    sensitivity.Size(people=5, rank=8, inputs=6, rounds=2),
    one_run.Size(people=64),
    trade_off.Size(people=9, rank=8, rounds=24),
)

# Each bug, and the cheapest layer that has to see it.
SEEN_BY = {
    "no-noise": "residuals",
    "half-noise": "residuals",
    "noise-for-the-invited": "residuals",
    "half-the-devices-without-noise": "residuals",
    "mean-instead-of-sum": "residuals",
    "same-noise-every-round": "residuals",
    "seed-from-the-clock": "residuals",
    "noise-key-from-the-seed": "residuals",
    "event-without-the-attempt": "residuals",
    "short-mask-seed": "residuals",
    "persona-slot-unmasked": "residuals",
    "clip-per-batch": "sensitivity",
    "clip-per-layer": "sensitivity",
    "nan-passes": "sensitivity",
    "weights-outside-the-clip": "sensitivity",
    "redrawn-on-retry": "sensitivity",
    "budget-after-noise": "sensitivity",
    "metric-outside-the-query": "sensitivity",
    "scrub-skipped": "sensitivity",
    "copies-for-one-charge": "trade-off",
}


@pytest.fixture(scope="module")
def clean() -> Mechanism:
    return audit_mechanism(SMALL, seed=5)


def test_the_code_as_it_is_holds_in_every_layer(clean: Mechanism) -> None:
    failed = [(layer.name, check) for layer in clean.layers for check in layer.checks if check.holds is False]
    assert not failed
    assert clean.holds
    assert [layer.name for layer in clean.layers] == list(LAYERS)


def test_no_layer_says_more_than_it_could_have_shown(clean: Mechanism) -> None:
    for layer in clean.layers:
        assert layer.lower_bound <= layer.claimed
        assert layer.ceiling is None or layer.lower_bound <= layer.ceiling
        assert layer.power
        assert layer.checks


def test_every_bug_has_a_layer_that_has_to_see_it() -> None:
    assert set(bug_names()) == set(SEEN_BY)


@pytest.mark.parametrize("bug", sorted(SEEN_BY))
def test_a_planted_bug_turns_its_layer_red(bug: str) -> None:
    found = audit_mechanism(SMALL, bug=bug, seed=5, only=(SEEN_BY[bug],))
    assert not found.holds
    assert found.as_dict()["bugs"] == [bug]
    assert "NOT THE CODE AS IT IS" in str(found.as_dict()["stamp"])


@pytest.mark.parametrize("bug", ["no-noise", "clip-per-batch"])
def test_attacks_see_gross_bugs_through_the_released_sum_alone(bug: str) -> None:
    layers = audit_mechanism(SMALL, bug=bug, seed=5, only=("one run", "trade-off")).layers
    assert any(layer.lower_bound > layer.claimed for layer in layers)


def test_without_noise_the_one_run_bound_reaches_its_ceiling() -> None:
    layer = audit_mechanism(SMALL, bug="no-noise", seed=5, only=("one run",)).layers[0]
    assert layer.lower_bound == layer.ceiling


def test_a_red_check_stays_red_whatever_kind_of_false_it_was() -> None:
    layer = Layer("n", "q", 0.0, 1.0, None, "p", 0.01, (Check("c", np.False_, ""),))  # type: ignore[arg-type]
    assert not layer.holds
    assert json.loads(json.dumps(layer.as_dict()))["checks"][0]["holds"] is False


def test_an_unknown_bug_is_an_error_and_leaves_the_code_alone() -> None:
    real = privacy.answer.discrete_gaussian  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no bug is named"), planted("nothing"):
        pass
    with pytest.raises(RuntimeError), planted("no-noise"):
        assert privacy.answer.discrete_gaussian is not real  # type: ignore[attr-defined]
        raise RuntimeError
    assert privacy.answer.discrete_gaussian is real  # type: ignore[attr-defined]


def test_bugs_are_planted_by_the_audit_alone() -> None:
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location('bugs', {str(BUGS)!r})
bugs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bugs)
class Permit:
    open = True
for permit in (None, Permit()):
    try:
        with bugs.plant('no-noise', permit):
            print('planted')
    except (PermissionError, AttributeError):
        print('refused')
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "refused"]


def test_no_code_of_ours_reads_the_bugs_but_the_audit() -> None:
    readers = [
        path.relative_to(ROOT).as_posix()
        for package in ("privacy", "client", "server", "simulation")
        for path in (ROOT / package).rglob("*.py")
        if "audit_bugs" in path.read_text(encoding="utf-8") or "planted(" in path.read_text(encoding="utf-8")
    ]
    assert set(readers) == {"simulation/mechanism/audit.py", "simulation/mechanism/planting.py"}


def test_the_devices_that_are_audited_are_the_agents_own(tmp_path: Path) -> None:
    with People(tmp_path, 3, layout_of(8), bytes(32)) as people:
        assert {type(device) for device in people.devices.values()} == {Device}
        assert isinstance(people.learner, KnownUpdates)
        query = people.query(0, transport="off")
        assert people.integers(people.users[0], query, one_hot(query.dim, 1, 0.01))[1] == round(0.01 * query.scale)


def test_the_command_says_one_for_a_caught_bug_and_zero_for_clean_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulation.mechanism.cli.QUICK", SMALL)
    arguments = ["audit", "mechanism", "--power", "quick", "--only", "one run", "--seed", "5", "--json"]
    clean_run = CliRunner().invoke(confide.confide, arguments)
    assert clean_run.exit_code == 0
    facts = json.loads(clean_run.stdout)
    assert facts["holds"] is True
    assert facts["bugs"] == []
    assert "planted" not in facts
    caught = CliRunner().invoke(confide.confide, [*arguments, "--plant", "no-noise"])
    assert caught.exit_code == 1
    assert json.loads(caught.stdout)["bugs"] == ["no-noise"]
    assert "does not hold" in caught.stderr


@pytest.mark.parametrize("wrong", [["--plant", "nothing"], ["--only", "nothing"]])
def test_what_the_command_does_not_know_is_an_error_not_an_audit(wrong: list[str]) -> None:
    assert confide.run(confide.confide, ["audit", "mechanism", *wrong]) == 2


@pytest.mark.slow
def test_the_audit_runs_on_the_base_install() -> None:
    """Everything but the packages that the base install names is made impossible to import."""
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'torch', 'flwr', 'transformers', 'peft', 'presidio_analyzer', 'spacy', 'opacus',
                                  'tokenizers', 'ray', 'matplotlib', 'bm25s', 'gguf', 'pandas'}:
            raise ModuleNotFoundError(f'no {name}', name=name)
sys.meta_path.insert(0, Missing())
from simulation.mechanism import one_run, residuals, sensitivity, trade_off
from simulation.mechanism.audit import Power, audit_mechanism
found = audit_mechanism(Power(residuals.Size(8, 24, 4, 2**10), sensitivity.Size(5, 8, 6, 2), one_run.Size(64),
                              trade_off.Size(9, 8, 24)), seed=5)
print(found.holds, [check.name for layer in found.layers for check in layer.checks if check.holds is not True])
print('torch' in sys.modules)
print(audit_mechanism(bug='no-noise', seed=5, only=('one run',)).holds)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True ['scrub before training']", "False", "False"]


def test_a_query_of_the_audit_has_the_defaults_that_the_claim_is_about(tmp_path: Path) -> None:
    with People(tmp_path, 12, layout_of(8), bytes(32)) as people:
        query = people.query(0)
        assert isinstance(query, Query)
        assert query.transport == "masked"
        assert residuals.promised_deviation(query, query.cohort.honest) == pytest.approx(query.integer_clip)
