"""Folded layers say what adapters say, stand in the model for the block alone, and go when something is forgotten."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save as save_tensors

from client import serving as module
from client.adopt import put_serving, serving
from client.model import GLOBAL, OWN, LanguageModel
from client.own import own_tensors, reset_own
from client.personal import SERVING, active
from client.releases import take_over
from client.serving import Folded, Merged, Serving, core_factors, fold, in_place
from client.vault import Vault
from privacy.adapter import Basis
from privacy.errors import ModelError
from privacy.release import ReleaseFacts, release_files
from tests.vault_of_notes import vault_of_notes

NewModel = Callable[..., LanguageModel]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MODULES = ("q_proj", "o_proj", "down_proj")
HASH = "ab" * 32


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    with vault_of_notes(tmp_path, monkeypatch, [f"Note {i} of the mill." for i in range(4)]) as made:
        yield made


@pytest.fixture
def model(new_model: NewModel) -> LanguageModel:
    return new_model(dtype=torch.float32)


def keep_release(vault: Vault, folder: Path, basis: Basis, seed: int) -> str:
    """Keep a signed release with a random core in the vault and return its hash."""
    cores = basis.layout.unflatten(0.3 * np.random.default_rng(seed).standard_normal(basis.layout.dim))
    facts = ReleaseFacts("town", "first", seed, "tiny", HASH, HASH, HASH, True, {})
    place = folder / f"release{seed}"
    for path, data in release_files(basis, {"global": cores}, facts, KEY).items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    return take_over(vault, place, KEY.public_key().public_bytes_raw().hex()).sha256


def keep_own(vault: Vault, model: LanguageModel, seed: int, kind: str = "lora") -> int:
    """Keep a random own adapter in the vault as the active one and return its number; the model is left without."""
    model.add_own(2, MODULES, kind)
    generator = torch.Generator().manual_seed(seed)
    reset_own(model, generator)
    tensors = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in own_tensors(model).items()}
    model.drop_own()
    facts = {"rank": 2, "modules": list(MODULES), "privacy": None}
    with vault.change() as rows:
        rows.execute("UPDATE adapter SET active = 0")
        number = rows.execute(
            "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES (?, ?, ?, 1, ?, ?)",
            (kind, vault.setting(SERVING), time.time(), json.dumps(facts), save_tensors(tensors)),
        ).lastrowid
    return int(number)


def logits(model: LanguageModel) -> torch.Tensor:
    ids = model.tokenizer("Where does the heron stand?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found: torch.Tensor = model.net(input_ids=ids, use_cache=False).logits[0]
    return found


@pytest.mark.parametrize("most_mb", [512.0, 0.0], ids=["merged", "beside"])
@pytest.mark.parametrize("what", ["release", "own", "both"])
def test_folded_layers_say_what_the_adapters_say(
    vault: Vault,
    model: LanguageModel,
    tiny_basis: Basis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    most_mb: float,
) -> None:
    monkeypatch.setattr(module, "fold", partial(fold, most_mb=most_mb))
    bare = logits(model)
    if what != "own":
        vault.set_setting(SERVING, keep_release(vault, tmp_path, tiny_basis, 1))
    own = keep_own(vault, model, 3) if what != "release" else 0
    layers = Serving(vault, model).layers(serving(vault), own)
    assert layers and {type(each) for each in layers.values()} == {Merged if most_mb else Folded}
    with in_place(model, layers):
        folded = logits(model)
    assert torch.equal(logits(model), bare)
    put_serving(vault, model)
    model.activate(GLOBAL, OWN)
    side_by_side = logits(model)
    torch.testing.assert_close(folded, side_by_side, rtol=1e-4, atol=1e-4)
    assert float((folded - bare).abs().max()) > 0.1, "or nothing was compared"
    with in_place(model, None):
        assert torch.equal(logits(model), bare), "the bare model stands under what a round put there"
    with in_place(model, layers):
        torch.testing.assert_close(logits(model), folded)
    torch.testing.assert_close(logits(model), side_by_side)


def test_a_failure_inside_leaves_the_model_as_it_was(model: LanguageModel, tiny_basis: Basis) -> None:
    bare, cores = logits(model), tiny_basis.layout.unflatten(np.ones(tiny_basis.layout.dim))
    layers = fold(model, [core_factors(tiny_basis, cores)])
    with pytest.raises(ZeroDivisionError), in_place(model, layers):
        raise ZeroDivisionError
    assert torch.equal(logits(model), bare)


def test_the_ways_that_served_last_are_kept_and_no_others(
    vault: Vault, model: LanguageModel, tiny_basis: Basis, tmp_path: Path
) -> None:
    first, second = (keep_release(vault, tmp_path, tiny_basis, seed) for seed in (1, 2))
    own, kept = keep_own(vault, model, 3), Serving(vault, model, most=2)
    one = kept.layers(first, own)
    two = kept.layers(second, own)
    assert kept.layers(first, own) is one and kept.layers(second, own) is two and one is not two
    assert kept.layers("", own) is not None and kept.layers(first, own) is not one, "the oldest went"
    kept.forget()
    assert kept.layers("", own) is not two and kept.layers("", 0) == {}


def test_merged_ways_take_no_more_memory_than_they_may(
    vault: Vault, model: LanguageModel, tiny_basis: Basis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (keep_release(vault, tmp_path, tiny_basis, seed) for seed in (1, 2))
    kept = Serving(vault, model)
    one = kept.layers(first, 0)
    assert one
    monkeypatch.setattr(
        module, "MOST_MERGED_MB", 1.5 * sum(each.get_buffer("weight").nbytes for each in one.values()) / 2**20
    )
    kept.layers(second, 0)
    assert kept.layers(first, 0) is not one


def test_a_number_that_another_adapter_took_over_is_another_way(vault: Vault, model: LanguageModel) -> None:
    kept, own = Serving(vault, model), keep_own(vault, model, 3)
    before = kept.layers("", own)
    with vault.change() as rows:
        rows.execute("DELETE FROM adapter")
    assert keep_own(vault, model, 4) == own, "SQLite gives the number again"
    assert kept.layers("", own) is not before


def test_what_is_no_sum_of_matrices_is_not_folded(vault: Vault, model: LanguageModel) -> None:
    number = keep_own(vault, model, 3, "ia3")
    now = active(vault)
    assert now is not None and now[0] == number and Serving(vault, model).layers("", number) is None


def test_what_does_not_fit_is_said(model: LanguageModel) -> None:
    wrong = {"model.layers.5.self_attn.q_proj": (np.zeros((2, 3), np.float32), np.zeros((64, 2), np.float32))}
    for part in (wrong, {"model.layers.99.mlp.up_proj": next(iter(wrong.values()))}):
        with pytest.raises(ModelError, match="does not fit"):
            fold(model, [part])
