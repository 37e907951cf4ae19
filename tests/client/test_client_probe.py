"""The start-up probes pass on what is right and stop what is wrong: planted bugs, one for each way to learn nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client import probe, train
from client.model import Cached, LanguageModel
from client.probe import gains, gradient_error, probe_training
from client.train import CoreTraining, DocumentLoss
from privacy.errors import ModelError

CachedDialogues = Callable[..., list[Cached]]
TRAINING = CoreTraining(steps=2, step=0.1, sampling_rate=0.5)


def test_right_training_passes_again_and_again(cored: LanguageModel, cached: CachedDialogues) -> None:
    documents = cached(cored, 6)
    first, again = (probe_training(cored, documents, TRAINING) for _ in range(2))
    assert first == again
    assert first["gradient_error"] < 1e-4
    assert first["gain"] > 0.01 and first["gain"] > 5 * first["noise_gain"] > 0


def test_it_passes_after_training_too_and_leaves_zero_cores(cored: LanguageModel, cached: CachedDialogues) -> None:
    assert cored.layout is not None
    documents = cached(cored, 4)
    train.core_update(cored, documents, cored.layout.zero_cores(), TRAINING, torch.Generator().manual_seed(0))
    probe_training(cored, documents, TRAINING)
    assert not any(core.weight.any() for core in cored.cores().values())


def test_it_passes_in_bfloat16(new_model: Any, tiny_basis: Any, cached: CachedDialogues) -> None:
    model = new_model(3, torch.bfloat16)
    model.attach(tiny_basis)
    found = probe_training(model, cached(model, 6), TRAINING)
    assert 1e-5 < found["gradient_error"] < 0.1


def test_one_document_is_enough_and_none_is_refused(cored: LanguageModel, cached: CachedDialogues) -> None:
    probe_training(cored, cached(cored, 1), TRAINING)
    silent = cached(cored, 1)[0]
    silent.encoded.target[:] = False
    for documents in ([], [silent]):
        with pytest.raises(ModelError, match="no document"):
            probe_training(cored, documents, TRAINING)


# -- planted bugs -------------------------------------------------------------------------------------------------


class BatchTokenMean(DocumentLoss):
    """A mean over the batch's tokens: the gradient of a document depends on its neighbours."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        counts = torch.bincount(row, minlength=len(hidden))
        return super().forward(hidden, row, column, labels) * counts / counts.sum() * len(hidden)


class Detached(DocumentLoss):
    """The loss is cut off from what is trained."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        return super().forward(hidden, row, column, labels).detach().requires_grad_()


class OneNaN(DocumentLoss):
    """The second document of a batch overflows."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        factor = torch.ones(len(hidden))
        factor[1:2] = float("nan")
        return super().forward(hidden, row, column, labels) * factor


class WrongSign(DocumentLoss):
    """Gradients are right as gradients and uphill."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        return -super().forward(hidden, row, column, labels)


@pytest.mark.parametrize(
    ("bug", "what"),
    [
        (BatchTokenMean, "per-document gradients are wrong"),
        (Detached, "no gradient"),
        (OneNaN, "per-document gradients are wrong"),
        (WrongSign, "learns nothing"),
    ],
)
def test_a_planted_bug_stops_the_start(
    cored: LanguageModel, cached: CachedDialogues, monkeypatch: pytest.MonkeyPatch, bug: type[DocumentLoss], what: str
) -> None:
    for module in (probe, train):
        monkeypatch.setattr(module, "DocumentLoss", bug)
    with pytest.raises(ModelError, match=what):
        probe_training(cored, cached(cored, 6), TRAINING)


@pytest.mark.parametrize("seed", range(1, 9))
def test_an_update_that_is_noise_stops_the_start(
    cored: LanguageModel, cached: CachedDialogues, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def noise(model: LanguageModel, *_: Any) -> Any:
        assert model.layout is not None
        return 0.02 * np.random.default_rng(seed).standard_normal(model.layout.dim)

    monkeypatch.setattr(probe, "core_update", noise)
    with pytest.raises(ModelError, match="learns nothing"):
        probe_training(cored, cached(cored, 6), TRAINING)


def test_an_update_of_zero_stops_the_start(
    cored: LanguageModel, cached: CachedDialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(model: LanguageModel, *_: Any) -> Any:
        assert model.layout is not None
        return np.zeros(model.layout.dim)

    monkeypatch.setattr(probe, "core_update", nothing)
    with pytest.raises(ModelError, match="learns nothing"):
        probe_training(cored, cached(cored, 6), TRAINING)


def test_the_gain_is_that_of_the_trained_documents(cored: LanguageModel, cached: CachedDialogues) -> None:
    assert cored.layout is not None
    documents = cached(cored, 5)
    gain, noise_gain = gains(cored, documents, TRAINING)
    everything = CoreTraining(steps=2, step=0.1, sampling_rate=1.0)
    update = train.core_update(
        cored, documents, cored.layout.zero_cores(), everything, torch.Generator().manual_seed(0)
    )
    before = torch.cat(cored.document_nats(documents)).mean()
    cored.set_cores(cored.layout.unflatten(update))
    assert gain == pytest.approx(float(before - torch.cat(cored.document_nats(documents)).mean()), abs=1e-5)
    assert gain > noise_gain


def test_the_error_is_the_worst_documents(cored: LanguageModel, cached: CachedDialogues) -> None:
    assert gradient_error(cored, cached(cored, 6)) >= gradient_error(cored, cached(cored, 1))
