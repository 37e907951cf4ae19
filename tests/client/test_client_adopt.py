"""A release that comes: only a signed one, and the best serves; what leaves was trained in private and is counted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import PeftModel
from transformers import AutoModelForCausalLM

from client import background, personal
from client.adopt import adopt, put_serving, serving, train_and_settle
from client.export import export, exports
from client.forget import RETRAIN
from client.limits import Limits
from client.model import GLOBAL, OWN, LanguageModel
from client.personal import active, put_into, train, training_slice
from client.personalize import held_back_rows
from client.releases import put_under, take_over
from client.train import CoreTraining, core_update
from client.vault import Vault
from privacy.adapter import Basis, Cores
from privacy.errors import ConfigError, ExportRefused, ReleaseInvalid
from privacy.release import ReleaseFacts, release_files
from tests.vault_of_notes import vault_of_notes

NewModel = Callable[..., LanguageModel]
Publish = Callable[[str, Cores], Path]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = KEY.public_key().public_bytes_raw().hex()
HASH = "ab" * 32
LIMITS = Limits(documents=12)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    texts = [f"Note {i}: zyx the boat and the lamp zyx again, zyx the boat {i * 7}." for i in range(40)]
    with vault_of_notes(tmp_path, monkeypatch, texts) as made:
        yield made


@pytest.fixture
def publish(tmp_path: Path, tiny_basis: Basis) -> Publish:
    """Return what writes a signed release with a global core into a folder and returns it."""

    def write(name: str, cores: Cores) -> Path:
        facts = ReleaseFacts("town", "first", 1, "tiny", HASH, HASH, HASH, True, {})
        for path, data in release_files(tiny_basis, {"global": cores}, facts, KEY).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture
def model(new_model: NewModel) -> LanguageModel:
    return new_model(dtype=torch.float32)


def helpful(vault: Vault, new_model: NewModel, basis: Basis) -> Cores:
    """Return a core that learned the very style of these notes: what a federation of such people would release."""
    other = new_model(dtype=torch.float32)
    other.attach(basis)
    rows = [other.prefix(e) for _, e in training_slice(vault, other, LIMITS)]
    settings = CoreTraining(steps=12, step=0.4, sampling_rate=1.0)
    update = core_update(other, rows, basis.layout.zero_cores(), settings, torch.Generator().manual_seed(0))
    return basis.layout.unflatten(update)


def harmful(basis: Basis) -> Cores:
    rng = np.random.default_rng(3)
    return basis.layout.unflatten(rng.normal(0, 0.6, basis.layout.dim))


def held_back_nats(vault: Vault, model: LanguageModel) -> float:
    rows = [model.prefix(row.encoded) for row in held_back_rows(vault, model)]
    return sum(float(nats.double().sum()) for nats in model.document_nats(rows))


def test_only_what_its_signer_signed_is_taken_over(vault: Vault, publish: Publish, tiny_basis: Basis) -> None:
    folder = publish("release", tiny_basis.layout.zero_cores())
    with pytest.raises(ConfigError, match=f"--signer KEY; it says {SIGNER}"):
        take_over(vault, folder)
    with pytest.raises(ReleaseInvalid):
        take_over(vault, folder, "00" * 32)
    with pytest.raises(ConfigError, match="no release here"):
        take_over(vault, folder.parent / "notes", SIGNER)
    assert take_over(vault, folder, SIGNER).facts.federation == "town"
    assert take_over(vault, folder).adapters.keys() == {"global"}, "the signer is kept"
    core = folder / "global" / "core.safetensors"
    core.write_bytes(core.read_bytes()[:-1] + b"\1")
    with pytest.raises(ReleaseInvalid):
        take_over(vault, folder)


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An own adapter that learned little, which a good release can do without; `undo` ends that."""
    with monkeypatch.context() as patch:
        patch.setitem(personal.LEARNING_RATE, "lora", 1e-4)
        yield patch


def test_a_helpful_release_takes_over_and_a_harmful_one_does_not(
    vault: Vault,
    model: LanguageModel,
    new_model: NewModel,
    publish: Publish,
    tiny_basis: Basis,
    weak: pytest.MonkeyPatch,
) -> None:
    train(vault, model, limits=LIMITS)
    own = active(vault)
    bad = adopt(vault, model, publish("bad", harmful(tiny_basis)), SIGNER)
    assert bad.serves == "old + own" and active(vault) == own and serving(vault) == ""
    assert bad.nats["new"] > bad.nats["old + own"] and set(bad.nats) == {"old + own", "new", "new + own"}
    assert vault.setting(RETRAIN) == "1"
    good = adopt(vault, model, publish("good", helpful(vault, new_model, tiny_basis)))
    assert good.serves == min(good.nats, key=good.nats.__getitem__) != "old + own"
    assert serving(vault) == good.release != "" and active(vault) == (own if good.serves == "new + own" else None)
    fresh = new_model(dtype=torch.float32)
    put_serving(vault, fresh)
    tokens = sum(row.encoded.own_tokens for row in held_back_rows(vault, fresh))
    assert held_back_nats(vault, fresh) / tokens == pytest.approx(good.nats[good.serves], rel=1e-4)


def test_trained_anew_it_serves_only_if_it_is_better(
    vault: Vault,
    model: LanguageModel,
    new_model: NewModel,
    publish: Publish,
    tiny_basis: Basis,
    weak: pytest.MonkeyPatch,
) -> None:
    first, words = train_and_settle(vault, model, "lora", limits=LIMITS)
    assert words.startswith("It serves") and active(vault) == (first.number, "lora", first.release)
    adopt(vault, model, publish("bad", harmful(tiny_basis)), SIGNER)
    made, words = train_and_settle(vault, model, "lora", limits=LIMITS)
    assert words.startswith("The one before serves") and "worse" in words
    assert active(vault)[0] == first.number and serving(vault) == ""  # type: ignore[index]
    assert vault.one("SELECT count(*) FROM adapter") == 1, "the loser is gone"
    good = adopt(vault, model, publish("good", helpful(vault, new_model, tiny_basis)))
    weak.undo()
    made, words = train_and_settle(vault, model, "lora", limits=LIMITS)
    assert made.release == good_release(vault) == serving(vault) and good.release == serving(vault)
    assert active(vault)[0] == made.number and "better" in words  # type: ignore[index]


def good_release(vault: Vault) -> str:
    return vault.setting("release_latest")


def test_without_an_own_adapter_the_better_of_old_and_new_serves(
    vault: Vault, model: LanguageModel, new_model: NewModel, publish: Publish, tiny_basis: Basis
) -> None:
    assert adopt(vault, model, publish("bad", harmful(tiny_basis)), SIGNER).serves == "old"
    base = held_back_nats(vault, model)
    found = adopt(vault, model, publish("good", helpful(vault, new_model, tiny_basis)))
    assert found.serves == "new" and set(found.nats) == {"old", "new"} and held_back_nats(vault, model) < base
    put_under(model, None)
    assert held_back_nats(vault, model) == pytest.approx(base, rel=1e-5), "no trace of it is left in the model"


def test_a_core_below_the_own_layers_runs_with_the_frozen_ones(
    vault: Vault, new_model: NewModel, publish: Publish, tiny_basis: Basis
) -> None:
    release = take_over(vault, publish("release", harmful(tiny_basis)), SIGNER)
    whole, cut = new_model(dtype=torch.float32), new_model(top_layers=1, dtype=torch.float32)
    whole.attach(tiny_basis)
    whole.set_cores(release.adapters["global"])
    put_under(cut, release)
    assert cut.first > whole.first, "two of the three layers with cores lie below what is trained"
    assert held_back_nats(vault, cut) == pytest.approx(held_back_nats(vault, whole), rel=1e-5)
    train(vault, cut, limits=LIMITS)
    put_under(cut, release)
    assert held_back_nats(vault, cut) == pytest.approx(held_back_nats(vault, whole), rel=1e-5)


# -- what leaves --------------------------------------------------------------------------------------------------


def test_without_record_level_privacy_nothing_leaves(vault: Vault, model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no own adapter"):
        export(vault, tmp_path / "out", "tiny")
    train(vault, model, limits=LIMITS)
    with pytest.raises(ExportRefused, match="stays here") as refusal:
        export(vault, tmp_path / "out", "tiny")
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists() and exports(vault) == []


def test_with_it_stock_peft_loads_what_leaves_and_epsilons_add_up(
    vault: Vault, model: LanguageModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    made = train(vault, model, record_epsilon=50.0, limits=LIMITS)
    every = vault.one("SELECT count(*) FROM document WHERE NOT held_back")
    assert made.documents == every, "under privacy no document's part depends on how many others there are"
    out = export(vault, tmp_path / "out", str(tiny_model_dir))
    assert out.epsilon <= 50.0 and out.total_epsilon == out.epsilon
    again = export(vault, tmp_path / "again", str(tiny_model_dir))
    assert again.total_epsilon == out.epsilon, "the same numbers tell nothing new"
    with pytest.raises(ConfigError, match="is there already"):
        export(vault, tmp_path / "out", str(tiny_model_dir))
    guarantee = json.loads((tmp_path / "out" / "privacy.json").read_text())
    assert guarantee["unit"] == "document" and guarantee["epsilon"] == out.epsilon
    stock = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), str(tmp_path / "out")
    ).eval()
    ids = model.tokenizer("Note 3: zyx the boat", return_tensors="pt", add_special_tokens=False)["input_ids"]
    put_into(vault, model, made.number)
    with torch.no_grad():
        ours = model.net(input_ids=ids).logits
        model.activate(GLOBAL)
        base = model.net(input_ids=ids).logits
        model.activate(GLOBAL, OWN)
        torch.testing.assert_close(stock(input_ids=ids).logits, ours, rtol=0, atol=1e-4)
    assert (ours - base).abs().max() > 1e-3, "an adapter that does nothing would pass"
    train(vault, model, record_epsilon=20.0, limits=LIMITS)
    third = export(vault, tmp_path / "third", str(tiny_model_dir))
    assert third.total_epsilon == pytest.approx(out.epsilon + third.epsilon) and third.total_delta == 2 * third.delta


@pytest.mark.slow
def test_in_the_background_it_is_killed_and_goes_on(
    vault: Vault,
    model: LanguageModel,
    new_model: NewModel,
    publish: Publish,
    tiny_basis: Basis,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(vault, model, limits=LIMITS)
    found = adopt(vault, model, publish("good", helpful(vault, new_model, tiny_basis)), SIGNER)
    asked = {"kind": "lora", "model": str(tiny_model_dir)}
    process = background.start(vault.folder, vault.opener, asked)
    end = time.monotonic() + 200
    while background.state(vault).get("state") != "running" and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert background.state(vault)["state"] == "paused" and serving(vault) == found.release
    assert background.go_on(vault) is not None
    while background.state(vault).get("state") != "done" and time.monotonic() < end:
        time.sleep(0.2)
    assert background.state(vault)["state"] == "done", background.state(vault)
    assert vault.setting(RETRAIN) == ""
