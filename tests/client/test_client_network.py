"""Architectures and bits: small random models of each kind train, take a basis and write, in eight bits as well."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import client.network
from client.basis import BasisSettings, whitened_basis
from client.decode import drawn
from client.documents import Document, Span
from client.model import GLOBAL, LanguageModel
from client.model_random import KINDS, random_model
from client.network import held_bytes, is_quantized, load_net, plain
from client.own_training import OwnTraining, train_own
from client.serving import Folded, fold
from client.train import CoreTraining, core_update
from privacy.errors import ConfigError, ModelError
from simulation.setting import default_workers

TEXTS = ("I paint the boat today. I paint the boat again.", "I lost the lamp. I lost the letter in winter.")
BITS = ("none", "int8")


def documents() -> list[Document]:
    return [Document(f"d{i}", (Span(text, own=True),), "history", i) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {kind: random_model(place / kind, kind, layers=3, width=128) for kind in KINDS}


@cache
def loaded(folder: Path, bits: str) -> LanguageModel:
    return LanguageModel.load(folder, top_layers=2, quantize=bits)


def nats(model: LanguageModel) -> float:
    cached = [model.prefix(model.encode(d, 64)) for d in documents()]
    return float(sum(n.double().sum() for n in model.document_nats(cached)))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_basis_a_shared_core_and_an_own_adapter_learn_over_each_architecture(
    folders: dict[str, Path], kind: str, bits: str
) -> None:
    model = loaded(folders[kind], bits)
    assert model.first == 1, "the frozen layer below replays exactly, so its outputs may be kept"
    encoded = [model.encode(d, 64) for d in documents()]
    texts = [model.prefix(each) for each in encoded]
    model.attach(whitened_basis(model, encoded, BasisSettings(rank=4, damping=0.01)))
    assert model.layout is not None and len(model.layout.sites) == 14
    assert {is_quantized(module.weight) for module in model.linear_modules().values()} == {bits != "none"}
    zero, base = model.layout.zero_cores(), nats(model)
    update = core_update(model, texts, zero, CoreTraining(steps=4, step=0.1), torch.Generator().manual_seed(1))
    assert np.isclose(np.linalg.norm(update), 0.4, rtol=0.5)
    model.set_cores(model.layout.unflatten(update))
    shared = nats(model)
    assert shared < 0.98 * base
    model.add_own(4, OwnTraining().modules)
    tensors, _ = train_own(model, texts, OwnTraining(4, 4, 1e-2), torch.Generator().manual_seed(1))
    model.activate(GLOBAL, "own")
    assert tensors and nats(model) < shared
    model.activate(GLOBAL)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_tokens_are_those_of_the_network_itself(folders: dict[str, Path], kind: str, bits: str) -> None:
    """Token by token over the cache, against one plain pass over all that was written."""
    model = LanguageModel.load(folders[kind], top_layers=2, quantize=bits)
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"][0]
    written = [int(token[0]) for token, _ in drawn(model, ids, 6)]
    with torch.no_grad():
        logits = model.net(input_ids=torch.cat([ids, torch.tensor(written)])[None], use_cache=False).logits[0]
    said = set(ids.tolist())
    for place, token in enumerate(written):
        scores = logits[len(ids) - 1 + place].clone()
        seen = torch.tensor(sorted(said))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / 1.1, scores[seen] * 1.1)
        assert scores[token] >= scores.max() - 1e-4
        said.add(token)
    assert len(written) == 6


def test_eight_bits_take_less_and_say_nearly_the_same(folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        whole, small = load_net(folder, None, "none"), load_net(folder, None, "int8")
        layers = [held_bytes(net.model.layers) for net in (whole, small)]
        assert layers[1] < 0.3 * layers[0] and held_bytes(small) < 0.45 * held_bytes(whole), (kind, layers)
        weight, kept = (net.model.layers[0].mlp.up_proj.weight for net in (whole, small))
        step = weight.abs().amax(1, keepdim=True) / 127
        assert ((plain(kept) - weight).abs() <= 0.51 * step + 1e-6).all(), "rounded to the nearest of its row's steps"
        ids = torch.arange(40)[None]
        with torch.no_grad():
            logits = [net(input_ids=ids).logits.log_softmax(-1).exp() for net in (whole, small)]
        assert 0 < float((logits[0] - logits[1]).abs().sum(-1).max()) < 0.1


def test_a_served_adapter_stays_beside_layers_in_eight_bits(folders: dict[str, Path]) -> None:
    model = LanguageModel.load(folders["llama"], top_layers=2, quantize="int8")
    name, module = next(iter(model.linear_modules().items()))
    a, b = np.ones((2, module.in_features), np.float32), np.ones((module.out_features, 2), np.float32)
    (layer,) = fold(model, [{name: (a, b)}]).values()
    assert isinstance(layer, Folded)
    x = torch.ones(1, module.in_features)
    assert torch.allclose(layer(x), module(x) + 2 * module.in_features, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kind": "mamba"}, ConfigError),
        ({"width": 40}, ConfigError),
        ({"layers": 0}, ConfigError),
        ({"dtype": "float16"}, ConfigError),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        random_model(tmp_path / "model", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


def test_a_folder_with_files_and_unknown_bits_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="holds files already"):
        random_model(folders["llama"])
    with pytest.raises(ConfigError, match="quantize must be one of none, int8"):
        load_net(folders["llama"], None, "int2")


def test_where_there_is_a_gpu_the_model_lives_there_and_one_worker_uses_it(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in: no card is here, so the choice is shown with torch's device without storage."""
    assert client.network.chosen_device() == "cpu" and default_workers() >= 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert client.network.chosen_device() == "cuda" and default_workers() == 1
    monkeypatch.setattr(client.network, "chosen_device", lambda: "meta")
    assert {p.device.type for p in load_net(folders["llama"], None, "none").parameters()} == {"meta"}
