"""What is released or exported is ordinary PEFT: stock code loads it and computes the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from client.base_model import fetch
from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import GLOBAL, OWN, Cached, LanguageModel
from client.own import RecordPrivacy, own_factors, save_own
from client.own_training import OwnTraining, train_own
from client.train import CoreTraining, core_update
from privacy.adapter import Basis, Cores, merge_cores, write_peft
from privacy.errors import ConfideError, ExportRefused, ModelError

CachedDialogues = Callable[..., list[Cached]]
TRAINING = CoreTraining(steps=4, step=0.4, sampling_rate=1.0)
OWN_SETTINGS = OwnTraining(rank=3, epochs=4, learning_rate=2e-2, record_epsilon=50.0)
PROMPT = "The keeper of the lighthouse said that"


def stock(base: Path, folder: Path, dtype: torch.dtype | None = None) -> Any:
    """Return the base model with the adapter in `folder`, loaded as anyone would who has never heard of confide."""
    net = AutoModelForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    return PeftModel.from_pretrained(net, str(folder)).eval()


@torch.no_grad()
def logits(net: Any, ids: Tensor) -> Tensor:
    found: Tensor = net(input_ids=ids[None]).logits[0].float()
    return found


@torch.no_grad()
def our_logits(model: LanguageModel, ids: Tensor) -> Tensor:
    """Return the logits by the two halves of our model."""
    document = model.prefix(model.encode_text(PROMPT, [], "prompt", 64))
    assert torch.equal(document.encoded.ids, ids)
    found: Tensor = model.top(document.hidden[None])[0].float() @ model.head32.T
    return found


def prompt_ids(model: LanguageModel) -> Tensor:
    return model.encode_text(PROMPT, [], "prompt", 64).ids


def trained_cores(model: LanguageModel, documents: list[Cached]) -> Cores:
    assert model.layout is not None
    update = core_update(model, documents, model.layout.zero_cores(), TRAINING, torch.Generator().manual_seed(0))
    assert np.linalg.norm(update) > 0.4
    return model.layout.unflatten(update)


def assert_same_and_moved(found: Tensor, wanted: Tensor, base: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert (wanted - base).abs().max() > 0.05, "an adapter that does nothing would pass"


def test_a_release_is_loaded_by_stock_peft_with_the_same_logits(
    cored: LanguageModel, cached: CachedDialogues, tiny_basis: Basis, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ids = prompt_ids(cored)
    base = our_logits(cored, ids)
    cores = trained_cores(cored, cached(cored, 6))
    write_peft(tmp_path / "global", tiny_basis, cores, str(tiny_model_dir))
    cored.set_cores(cores)
    assert_same_and_moved(logits(stock(tiny_model_dir, tmp_path / "global"), ids), our_logits(cored, ids), base)


def test_a_composed_folder_is_the_sum_of_its_parts(
    cored: LanguageModel, cached: CachedDialogues, tiny_basis: Basis, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ids = prompt_ids(cored)
    base = our_logits(cored, ids)
    parts = [trained_cores(cored, cached(cored, 4)), trained_cores(cored, cached(cored, 4, first=4))]
    both = merge_cores([(1.0, parts[0]), (0.5, parts[1])])
    write_peft(tmp_path / "persona-1", tiny_basis, both, str(tiny_model_dir))
    composed = logits(stock(tiny_model_dir, tmp_path / "persona-1"), ids)
    cored.set_cores(both)
    assert_same_and_moved(composed, our_logits(cored, ids), base)
    cored.set_cores(parts[0])
    assert (our_logits(cored, ids) - composed).abs().max() > 0.02, "the second part counts"


def test_folders_of_several_ranks_are_loaded(
    cored: LanguageModel, tiny_basis: Basis, tiny_model_dir: Path, tmp_path: Path
) -> None:
    factors = {
        name: (a[:2], b[:, :2]) if "down_proj" in name else (a, b) for name, (a, b) in tiny_basis.factors.items()
    }
    basis, ids = Basis(factors), prompt_ids(cored)
    base = our_logits(cored, ids)
    cores = basis.layout.unflatten(0.3 * np.random.default_rng(0).standard_normal(basis.layout.dim))
    write_peft(tmp_path / "global", basis, cores, str(tiny_model_dir))
    cored.attach(basis)
    cored.set_cores(cores)
    assert_same_and_moved(logits(stock(tiny_model_dir, tmp_path / "global"), ids), our_logits(cored, ids), base)


# -- own adapters -------------------------------------------------------------------------------------------------


def test_an_exported_own_adapter_works_beside_the_release(
    cored: LanguageModel, cached: CachedDialogues, tiny_basis: Basis, tiny_model_dir: Path, tmp_path: Path
) -> None:
    ids, documents = prompt_ids(cored), cached(cored, 6)
    cores = trained_cores(cored, documents)
    write_peft(tmp_path / "global", tiny_basis, cores, str(tiny_model_dir))
    cored.set_cores(cores)
    without = our_logits(cored, ids)
    cored.add_own(OWN_SETTINGS.rank, OWN_SETTINGS.modules)
    tensors, privacy = train_own(cored, documents, OWN_SETTINGS, torch.Generator().manual_seed(1))
    save_own(tmp_path / "own", tensors, privacy, str(tiny_model_dir))
    theirs = stock(tiny_model_dir, tmp_path / "global")
    theirs.load_adapter(str(tmp_path / "own"), adapter_name="own")
    theirs.base_model.set_adapter(["default", "own"])
    cored.activate(GLOBAL, OWN)
    assert_same_and_moved(logits(theirs, ids), our_logits(cored, ids), without)
    guarantee = json.loads((tmp_path / "own" / "privacy.json").read_text())
    assert privacy is not None and guarantee["epsilon"] == privacy.epsilon <= 50.0 and guarantee["unit"] == "document"


def test_an_own_adapter_without_record_privacy_stays(
    cored: LanguageModel, cached: CachedDialogues, tmp_path: Path
) -> None:
    cored.add_own(2, ["q_proj"])
    plain = OwnTraining(rank=2, epochs=1, modules=("q_proj",))
    tensors, privacy = train_own(cored, cached(cored, 2), plain, torch.Generator())
    with pytest.raises(ExportRefused) as refused:
        save_own(tmp_path / "own", tensors, privacy, "base")
    assert isinstance(refused.value, ConfideError) and "\n" not in str(refused.value)
    assert "record-level privacy" in str(refused.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", ["nothing at all", "half a pair", "a stranger"])
def test_tensors_that_are_no_lora_are_refused(spoil: str) -> None:
    good = {f"m.q_proj.lora_{half}.own.weight": torch.ones(shape) for half, shape in (("A", (2, 4)), ("B", (4, 2)))}
    assert list(own_factors(good)) == ["m.q_proj"]
    bad = {
        "nothing at all": {},
        "half a pair": {"m.q_proj.lora_A.own.weight": torch.ones(2, 4)},
        "a stranger": {**good, "m.q_proj.weight": torch.ones(4, 4)},
    }
    with pytest.raises(ModelError, match="one A and one B"):
        own_factors(bad[spoil])


def test_an_export_replaces_a_folder_whole(tmp_path: Path) -> None:
    privacy = RecordPrivacy(1.0, 1e-5, 2.0, 0.5, 4)
    tensors = {f"m.q.lora_{half}.own.weight": torch.ones(shape) for half, shape in (("A", (2, 4)), ("B", (4, 2)))}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "old.bin").write_bytes(b"old")
    save_own(tmp_path / "own", tensors, privacy, "base")
    files = {"adapter_config.json", "adapter_model.safetensors", "privacy.json"}
    assert {path.name for path in (tmp_path / "own").iterdir()} == files


# -- the demo's model ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_release_over_smollm2_has_the_same_logits_in_stock_peft(tmp_path: Path) -> None:
    """In float32; the model is fetched (about 100 MB) unless it is in the cache."""
    folder = fetch("smollm2-135m")
    model = LanguageModel.load(folder, top_layers=4, dtype=torch.float32)
    basis = whitened_basis(model, own_samples(model, 4, 24, seed=0), BasisSettings(rank=4))
    ids = prompt_ids(model)
    base = our_logits(model, ids)
    model.attach(basis)
    text = "My sister keeps bees and I keep her books, more or less."
    cores = trained_cores(model, [model.prefix(model.encode_text(text, [(0, len(text))], "d", 64))])
    write_peft(tmp_path / "global", basis, cores, "smollm2-135m")
    model.set_cores(cores)
    theirs = stock(folder, tmp_path / "global", torch.float32)
    assert_same_and_moved(logits(theirs, ids), our_logits(model, ids), base)
