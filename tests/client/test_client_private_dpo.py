"""Preferences under record-level privacy: one choice's gradient is its own, clipped; what may leave says of what."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner, Result
from opacus.grad_sample import GradSampleModule

import confide
from client import private_dpo
from client.dpo import DPO, Preferred, dpo_loss, pair_likelihoods, reference
from client.export import export, exports
from client.model import GLOBAL, OWN, LanguageModel
from client.own import own_modules, own_tensors, reset_own
from client.own_training import noise_for
from client.personal import active
from client.preferences import prefer, preferences
from client.preferring import LEAST_HELD_BACK, _choices, _held_back, learn
from client.private_dpo import Choice, Choices, choice_gradients, train_private_dpo
from client.train import DocumentLoss, quiet, trainable, unwrap
from client.vault import Vault
from privacy.errors import ConfigError, ExportRefused
from tests.vault_of_notes import vault_of_notes

BETA = 0.2
TEXTS = [
    ("Will you come?", [(" Yes, at once.", " Perhaps some other day."), (" Yes, at once.", " No.")]),
    ("So?", [(" I would rather walk.", " Well.")]),
    ("Tea?", [(" Tea", " Coffee, please, if there is any."), (" Tea", " No."), (" Tea", " I do not know.")]),
]


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def with_own(new_model: Any, moved: bool = True) -> LanguageModel:
    model: LanguageModel = new_model(dtype=torch.float32)
    model.add_own(4, ("q_proj", "v_proj"))
    reset_own(model, seed(1))
    with torch.no_grad():
        for name, p in own_tensors(model).items():
            if moved and ".lora_B." in name:
                p.copy_(torch.randn(p.shape, generator=seed(2)) * 0.05)
    model.activate(GLOBAL, OWN)
    return model


def pair(model: LanguageModel, prompt: str, chosen: str, rejected: str) -> Preferred:
    def one(text: str) -> Any:
        return model.prefix(model.encode_text(prompt + text, [(len(prompt), len(prompt + text))], "pair", 200))

    return Preferred(one(chosen), one(rejected))


def choices_of(model: LanguageModel) -> list[Choice]:
    made = []
    for prompt, answers in TEXTS:
        pairs = tuple(pair(model, prompt, *each) for each in answers)
        model.activate(GLOBAL)
        before = reference(model, pairs)
        model.activate(GLOBAL, OWN)
        made.append(Choice(pairs, before))
    return made


def alone(model: LanguageModel, choice: Choice) -> dict[str, torch.Tensor]:
    """Return the gradient of one choice's loss by plain backpropagation, without Opacus."""
    parameters = own_tensors(model)
    with trainable(list(parameters.values())):
        losses = dpo_loss(pair_likelihoods(model, choice.pairs), choice.before, BETA)
        found = torch.autograd.grad(losses.mean(), list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def test_a_choices_gradient_is_its_own_in_any_company(new_model: Any) -> None:
    model = with_own(new_model)
    choices, parameters = choices_of(model), own_tensors(model)
    wanted = [alone(model, choice) for choice in choices]
    with trainable(list(parameters.values())), quiet():
        wrapped = GradSampleModule(DocumentLoss(model, own_modules(model)).train())
        choice_gradients(BETA)(wrapped, choices)
        found = {name: cast(Any, p).grad_sample.clone() for name, p in parameters.items()}
        unwrap(wrapped, list(parameters.values()))
    for name, rows in found.items():
        assert len(rows) == len(choices) == 3
        for row, by_hand in zip(rows, wanted, strict=True):
            torch.testing.assert_close(row, by_hand[name], rtol=1e-3, atol=1e-6)
    assert max(float(each[name].abs().max()) for each in wanted for name in each) > 1e-3, "or nothing was compared"


def test_a_step_is_the_sum_of_clipped_gradients_and_noise(new_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are taken by plain descent, so that their length shows; the noise is off, then on."""
    model = with_own(new_model, moved=False)
    choices = choices_of(model)
    start = {name: p.detach().clone() for name, p in own_tensors(model).items()}
    parts = [alone(model, choice) for choice in choices]
    clip = 0.5 * min(math.sqrt(sum(float(g.square().sum()) for g in part.values())) for part in parts)
    monkeypatch.setattr(private_dpo, "CLIP", clip)
    monkeypatch.setattr(private_dpo, "LEARNING_RATE", 1.0)
    monkeypatch.setattr(torch.optim, "AdamW", lambda params, lr, weight_decay: torch.optim.SGD(params, lr))

    def moved(noise: float) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(private_dpo, "noise_for", lambda *_: noise)
        with torch.no_grad():
            for name, p in own_tensors(model).items():
                p.copy_(start[name])
        settings = DPO(beta=BETA, epochs=1, batch_pairs=8)
        train_private_dpo(model, choices, settings, 8.0, seed(4))
        return {name: p.detach() - start[name] for name, p in own_tensors(model).items()}

    still = moved(1e-9)
    for name, step in still.items():
        total = torch.zeros_like(step)
        for part in parts:
            norm = math.sqrt(sum(float(g.square().sum()) for g in part.values()))
            total += part[name] * clip / norm
        torch.testing.assert_close(step, -total / 3, rtol=2e-3, atol=1e-7)
    noisy = moved(2.0)
    spread = torch.cat([(noisy[name] - still[name]).flatten() for name in still])
    assert float(spread.std()) == pytest.approx(2.0 * clip / 3, rel=0.05)


def test_choices_are_made_when_drawn_by_the_model_as_it_was(new_model: Any) -> None:
    model = with_own(new_model)
    made: list[int] = []
    prompt, answers = TEXTS[0]
    parameters = list(own_tensors(model).values())

    def maker() -> list[Preferred]:
        made.append(len(made))
        return [pair(model, prompt, *each) for each in answers]

    choices = Choices(model, [maker, maker])
    with trainable(parameters):
        first = choices[0]
        assert choices[0] is first and made == [0] and all(p.requires_grad for p in parameters)
    model.activate(GLOBAL)
    torch.testing.assert_close(first.before, reference(model, first.pairs))
    model.activate(GLOBAL, OWN)
    assert float((first.before - reference(model, first.pairs)).abs().max()) > 1e-3


def test_private_training_learns_where_the_noise_is_small(new_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_own(new_model, moved=False)
    made = [
        Choice((one,), reference(model, [one]))
        for one in (pair(model, f"Day {i}?", " Yes, at once.", " Perhaps some other day.") for i in range(4))
    ]
    monkeypatch.setattr(private_dpo, "LEARNING_RATE", 5e-3)
    privacy = train_private_dpo(model, made, DPO(epochs=6, batch_pairs=4), 1000.0, seed(3))
    now = torch.stack([dpo_loss(reference(model, each.pairs), each.before, 0.1).mean() for each in made])
    assert float(now.mean()) < math.log(2) - 0.02
    assert privacy.unit == "choice" and privacy.sampling_rate == 1.0 and privacy.steps == 6
    assert not any(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("seconds", [math.inf, 1e-9])
def test_the_guarantee_is_what_was_asked_for_whenever_the_clock_ends(new_model: Any, seconds: float) -> None:
    model = with_own(new_model, moved=False)
    settings = replace(DPO(), seconds=seconds)
    privacy = train_private_dpo(model, choices_of(model), settings, 4.0, seed(3))
    assert privacy.noise_multiplier == noise_for(4.0, private_dpo.DELTA, privacy.sampling_rate, privacy.steps)
    assert 0 < privacy.epsilon <= 4.0 + 1e-6 and (math.isinf(seconds) or privacy.epsilon == 4.0)


@pytest.fixture
def vault(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    notes = [f"On day {i} the heron stood at the mill, as he does." for i in range(6)]
    with vault_of_notes(tmp_path, monkeypatch, notes) as made:
        made.set_setting("model", str(tiny_model_dir))
        yield made


def keep_pairs(vault: Vault) -> None:
    held = number = 0
    while held < LEAST_HELD_BACK or number < 12:
        prompt = f"Shall we meet on day {number}?"
        prefer(vault, prompt, "Yes, at once.", ["Perhaps some other day.", "No."], [1 + number % 2])
        held, number = held + int(_held_back(preferences(vault)[-1])), number + 1


def test_an_adapter_trained_so_may_leave_and_another_may_not(vault: Vault, new_model: Any, tmp_path: Path) -> None:
    keep_pairs(vault)
    model = new_model()
    made = learn(vault, model, DPO(epochs=1), record_epsilon=8.0)
    assert made.privacy is not None and made.adapter and made.pairs < len(preferences(vault)) / 2
    assert made.most_choices_of_a_document >= 6
    now = active(vault)
    assert (now is not None and now[0] == made.adapter) == made.serves
    left = export(vault, tmp_path / "out", "tiny", made.adapter)
    told = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert told["unit"] == left.unit == "choice" and told["epsilon"] == left.epsilon <= 8.0 + 1e-6
    assert [each["unit"] for each in exports(vault)] == ["choice"]
    plain = learn(vault, new_model(), DPO(epochs=1, learning_rate=1e-3))
    if plain.adapter:
        with pytest.raises(ExportRefused):
            export(vault, tmp_path / "no", "tiny", plain.adapter)


def test_the_commands_train_it_and_let_it_leave(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(vault.folder))
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "x")
    keep_pairs(vault)

    def run(*words: str) -> Result:
        return CliRunner().invoke(confide.confide, ["device", *words])

    made = run("prefer", "--record-epsilon", "8", "--seconds", "1")
    assert made.exit_code == 0 and "for each choice" in made.output and "--adapter 1" in made.output, made.output
    out = tmp_path / "out"
    both = run("export", str(out), "--adapter", "1", "--record-epsilon", "8")
    assert "not both" in str(both.exception) and not out.exists()
    left = run("export", str(out), "--adapter", "1")
    assert left.exit_code == 0 and "for each choice" in left.output and (out / "privacy.json").exists()
    assert "no finished own adapter 9" in str(run("export", str(tmp_path / "no"), "--adapter", "9").exception)


def test_epsilons_of_choices_and_of_documents_are_added_up_apart(vault: Vault, new_model: Any, tmp_path: Path) -> None:
    keep_pairs(vault)
    first = learn(vault, new_model(), DPO(epochs=1), record_epsilon=4.0)
    again = learn(vault, new_model(), DPO(epochs=1), record_epsilon=2.0)
    vault.set_setting("exports", json.dumps([{"sha256": "0", "epsilon": 50.0, "delta": 1e-5, "time": 0.0}]))
    export(vault, tmp_path / "one", "tiny", first.adapter)
    second = export(vault, tmp_path / "two", "tiny", again.adapter)
    both = first.privacy and again.privacy and first.privacy.epsilon + again.privacy.epsilon
    assert second.total_epsilon == pytest.approx(both)


def test_demonstrations_are_one_choice_a_document(vault: Vault, new_model: Any) -> None:
    keep_pairs(vault)
    model = with_own(new_model, moved=False)
    used = [each for each in preferences(vault) if not _held_back(each)]
    without, _ = _choices(vault, model, used, False, seed(1))
    both, numbers = _choices(vault, model, used, True, seed(1))
    assert len(without) == len({each.prompt for each in used}) and len(both) == len(without) + len(numbers)
    own = both[len(both) - 1].pairs
    assert len(own) == 1 and own[0].chosen.encoded.own_tokens == own[0].rejected.encoded.own_tokens > 0


def test_too_few_preferences_are_said_here_too(vault: Vault, new_model: Any) -> None:
    with pytest.raises(ConfigError, match="0 preferences"):
        learn(vault, new_model(), record_epsilon=8.0)
