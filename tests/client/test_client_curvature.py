"""Steep directions are steep: measured against the model's own losses, not against the code that found them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.basis import BasisSettings, own_samples, whitened_basis
from client.curvature import steep_directions
from client.model import Cached, LanguageModel
from privacy.errors import ModelError


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> LanguageModel:
    found = LanguageModel.load(tiny_model_dir, 2)
    found.attach(whitened_basis(found, own_samples(found, 12, 24, 1), BasisSettings(rank=3)))
    return found


def fisher_along(model: LanguageModel, documents: list[Cached], direction: np.ndarray, length: float = 0.02) -> float:
    """Return the curvature of the divergence from the base along `direction`, by second differences of the loss."""
    assert model.layout is not None

    def loss(sign: float) -> float:
        model.set_cores(model.layout.unflatten(sign * length * direction.astype(float)))  # type: ignore[union-attr]
        return float(sum(float(nats.double().sum()) for nats in model.document_nats(documents)))

    bent = (loss(1) - 2 * loss(0) + loss(-1)) / length**2
    model.set_cores(model.layout.unflatten(np.zeros(model.layout.dim)))
    return bent / sum(document.encoded.own_tokens for document in documents)


def test_the_loss_bends_more_along_them_than_along_others(model: LanguageModel) -> None:
    assert model.layout is not None
    directions, steepness = steep_directions(model, own_samples(model, 24, 24, 2), 8, draws=3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), atol=1e-4)
    assert np.all(np.diff(steepness) <= 0) and steepness[-1] > 1
    fresh = [model.prefix(text) for text in own_samples(model, 48, 24, 3)]
    rng = np.random.default_rng(0)
    others = rng.standard_normal((6, model.layout.dim))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    along = np.mean([fisher_along(model, fresh, row) for row in directions[:3]])
    elsewhere = np.mean([fisher_along(model, fresh, row) for row in others])
    assert along > 4 * elsewhere > 0


def test_the_same_seed_gives_the_same_directions_and_cores_stay_zero(model: LanguageModel) -> None:
    texts = own_samples(model, 4, 16, 4)
    first, again = (steep_directions(model, texts, 3, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    assert all(float(core.weight.abs().max()) == 0 and not core.weight.requires_grad for core in model.cores().values())
    assert len(steep_directions(model, texts, 100)[0]) == 4, "half of eight draws"


def test_without_text_there_is_no_curvature(model: LanguageModel) -> None:
    with pytest.raises(ModelError):
        steep_directions(model, [], 4)
