"""A configuration is read once, whole: every key has one type, and what cannot be is refused by name."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting import epsilon_zcdp, rho_for_epsilon
from privacy.errors import ConfigError
from simulation.config import MACHINE, RunConfig, config_of, load_config

# Every key with a value that is not its default, as a person would write it.
OTHER = {
    "people": "friends.jsonl",
    "max_people": 17,
    "model": "some-model",
    "rounds": 3,
    "organisations": 3,
    "cohort": 16,
    "personas": 2,
    "seed": 5,
    "engine": "local",
    "workers": 2,
    "cache_mb": 64,
    "cluster": "127.0.0.1:6379",
    "quantize": "int8",
    "dropout": 0.25,
    "scrub": False,
    "compare_without_noise": False,
    "federation": "clinic",
    "adapter.kind": "svd",
    "adapter.rank": 3,
    "adapter.layers": 2,
    "adapter.damping": 0.5,
    "adapter.samples": 9,
    "adapter.sample_tokens": 33,
    "adapter.curvature": 7,
    "adapter.curvature_damping": 4.5,
    "privacy.noise_multiplier": 2.5,
    "privacy.epsilon": 9.5,
    "privacy.delta": 1e-5,
    "privacy.transport": "off",
    "privacy.unit": "record",
    "privacy.record_noise": 2.0,
    "privacy.record_delta": 1e-4,
    "local.own_tokens": 77,
    "local.steps": 3,
    "local.step": 0.25,
    "local.sampling_rate": 0.75,
    "local.document_clip": 2.0,
    "local.clip": 0.5,
    "local.max_document_tokens": 99,
    "local.together": 4,
    "server.learning_rate": 0.5,
    "server.momentum": 0.5,
    "server.kind": "adam",
    "server.last_share": 0.25,
    "server.persona_rate": 1.5,
    "queries.objective": "reply-only",
    "queries.persona_choice": "nearest",
    "queries.clustering": 2,
    "queries.centred": 3,
    "queries.portrait": "both",
    "queries.encoder": "hashed",
    "queries.words": 12,
    "queries.measure": True,
    "queries.retriever_rounds": 1,
    "queries.declared": "nurse: cares; teacher: gives lessons",
    "queries.choose_round": True,
    "queries.retriever_objective": "retriever-contrast",
    "own.people": 4,
    "own.tokens": 99,
    "own.rank": 2,
    "own.layers": 3,
    "own.epochs": 3,
    "own.record_epochs": 2,
    "own.learning_rate": 0.5,
    "own.record_epsilon": 3.0,
    "own.record_delta": 1e-4,
    "evaluation.test_tokens": 65,
    "evaluation.held_out": 1,
    "evaluation.retrieved": 1,
    "evaluation.retrieved_tokens": 55,
}
FIXED = [
    "people",
    "max_people",
    "model",
    "rounds",
    "cohort",
    "personas",
    "adapter.kind",
    "adapter.rank",
    "privacy.noise_multiplier",
    "privacy.epsilon",
    "privacy.delta",
    "seed",
    "engine",
]


def test_the_table_of_this_test_names_every_key() -> None:
    assert set(OTHER) == set(RunConfig().flat())
    assert set(FIXED) <= set(OTHER)


@pytest.mark.parametrize("key", OTHER)
def test_every_key_is_set_by_a_file_and_by_the_command_line(tmp_path: Path, key: str) -> None:
    wanted = OTHER[key]
    text = f'"{wanted}"' if isinstance(wanted, str) else str(wanted).lower()
    file = tmp_path / "run.toml"
    file.write_text(f"{key} = {text}\n")
    for config in (load_config(file, []), load_config(None, [f"{key}={text}"]), load_config(None, [f"{key} = {text}"])):
        assert config.value(key) == wanted
        assert type(config.value(key)) is type(wanted)
        rest = {name: value for name, value in config.flat().items() if name != key}
        assert rest == {name: value for name, value in RunConfig().flat().items() if name != key}


def test_the_command_line_goes_on_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rounds = 5\n[adapter]\nrank = 4\nlayers = 3\n")
    config = load_config(file, ["adapter.rank=6", "people=friends.jsonl"])
    assert (config.rounds, config.adapter.rank, config.adapter.layers) == (5, 6, 3)
    assert config.people == "friends.jsonl"


def test_a_whole_number_is_taken_for_a_fraction_and_never_the_other_way() -> None:
    assert load_config(None, ["local.clip=1"]).local.clip == 1.0
    with pytest.raises(ConfigError, match=r"rounds must be int, not 2\.0"):
        load_config(None, ["rounds=2.0"])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("roundz=2", "unknown key roundz; known: people, "),
        ("adapter.rnak=2", "unknown key adapter.rnak; known: adapter.kind"),
        ("rounds", "--set takes key=value"),
        ("=2", "--set takes key=value"),
        ("rounds=two", "rounds must be int, not 'two'"),
        ("rounds=true", "rounds must be int, not True"),
        ("scrub=1", "scrub must be bool, not 1"),
        ("people=3", "people must be str, not 3"),
        ("cohort=none", "cohort must be int, not 'none'"),
        ("adapter=core", "adapter is a group of settings"),
        ("rounds.more=1", "rounds must be int"),
        ("adapter.rank.more=1", "adapter.rank must be int"),
        ("rounds=0", "rounds must be at least 1"),
        ("max_people=0", "max_people must be at least 1"),
        ("cohort=0", "cohort must be at least 1"),
        ("personas=-1", "personas must be"),
        ("personas=1", "personas must be"),
        ("dropout=1.0", "dropout must be in [0, 1)"),
        ("dropout=-0.1", "dropout must be in [0, 1)"),
        ("dropout=nan", "dropout must be in [0, 1)"),
        ("adapter.kind=lora", "adapter.kind must be one of core, svd"),
        ("adapter.rank=0", "adapter.rank must be at least 1"),
        ("engine=ray", "engine must be one of flower, local"),
        ("privacy.transport=magic", "must be one of masked, ideal, off"),
        ("privacy.delta=0.0", "privacy.delta must be"),
        ("local.clip=0.0", "local.clip must be"),
        ("local.clip=inf", "local.clip must be"),
        ("local.sampling_rate=1.5", "local.sampling_rate must be in (0, 1]"),
        ("workers=0", "workers must be at least 1"),
        ("own.people=1", "own.people must be 0 or at least 2"),
        ("evaluation.held_out=-1", "evaluation.held_out must be at least 0"),
        ("evaluation.test_tokens=0", "evaluation.test_tokens must be at least 1"),
        ("local.own_tokens=0", "local.own_tokens must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [setting])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["rounds = ", "rounds = 2\nrounds = 3", "[adapter\nrank = 2", "\xff\xfe"])
def test_a_broken_file_is_one_line_with_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load_config(file, [])
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml: No such file"):
        load_config(tmp_path / "missing.toml", [])


def test_the_cap_decides_the_noise_where_only_the_cap_is_given() -> None:
    config = load_config(None, ["privacy.epsilon=8.0", "rounds=3"])
    z = config.noise_multiplier()
    assert epsilon_zcdp(3 / (2 * z**2), 1e-6) <= 8.0
    less = z - Fraction(1, 1000)
    assert 3 / (2 * less**2) > rho_for_epsilon(8.0, 1e-6)
    assert config.budget_rho() == rho_for_epsilon(8.0, 1e-6)


def test_the_noise_decides_the_budget_where_only_the_noise_is_given() -> None:
    config = load_config(None, ["privacy.noise_multiplier=2.5", "rounds=3"])
    assert config.noise_multiplier() == Fraction(5, 2)
    assert config.budget_rho() == Fraction(3) / (2 * Fraction(5, 2) ** 2)


def test_with_neither_the_noise_multiplier_is_one() -> None:
    assert RunConfig().noise_multiplier() == 1


def test_both_are_an_error_only_where_they_disagree() -> None:
    fits = load_config(None, ["privacy.epsilon=8.0", "privacy.noise_multiplier=5", "rounds=2"])
    assert fits.noise_multiplier() == 5
    least = float(load_config(None, ["privacy.epsilon=8.0", "rounds=2"]).noise_multiplier())
    with pytest.raises(ConfigError, match=f"give {least}"):
        load_config(None, ["privacy.epsilon=8.0", "privacy.noise_multiplier=0.5", "rounds=2"])


@pytest.mark.parametrize("z", [0.0, -1.0])
def test_no_noise_is_asked_for_by_its_name(z: float) -> None:
    with pytest.raises(ConfigError, match="transport=off"):
        load_config(None, [f"privacy.noise_multiplier={z}"])


@pytest.mark.parametrize("key", OTHER)
def test_the_campaign_is_named_by_all_that_decides_its_outcome(key: str) -> None:
    text = f'"{OTHER[key]}"' if isinstance(OTHER[key], str) else str(OTHER[key]).lower()
    other = load_config(None, [f"{key}={text}"])
    assert (other.campaign == RunConfig().campaign) == (key in MACHINE)


def test_a_configuration_survives_its_manifest() -> None:
    settings: list[str] = []
    for key, value in OTHER.items():
        settings.append(f"{key}={value!r}" if isinstance(value, str) else f"{key}={str(value).lower()}")
    for config in (RunConfig(), load_config(None, settings), replace(RunConfig(), cohort=None)):
        assert config_of(config.flat()) == config


@pytest.mark.parametrize("flat", [{"people": 3}, {"new.key": 1}, {"rounds": "2"}])
def test_a_manifest_that_says_something_else_is_refused(flat: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        config_of(flat)
