"""Probes before any training counts: is the gradient right, does training learn more than noise does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule

from client.model import GLOBAL, Cached, LanguageModel
from client.train import (
    CoreTraining,
    DocumentLoss,
    core_update,
    one_gradient,
    per_document_gradients,
    quiet,
    trainable,
    unwrap,
)
from privacy.errors import ModelError

RANDOM_STEPS = 6


def probe_training(model: LanguageModel, documents: Sequence[Cached], training: CoreTraining) -> dict[str, float]:
    """Return the measured figures of both probes; raise ModelError where one fails.

    `gradient_error`: largest relative distance between Opacus' gradient of a document in a batch and its gradient
    alone (bfloat16 rounds differently in a batch: up to 10 %, by the processor; float32: 0.1 %). `gain` and
    `noise_gain`: nats per token won on the training documents by the local steps, and what random steps of the same
    length won or lost, as the root of their mean square; training must win three times that.
    """
    documents = [d for d in documents if d.encoded.own_tokens]
    if not documents:
        raise ModelError("no document with an own token to probe training on")
    error = gradient_error(model, documents)
    allowed = 0.1 if model.dtype == torch.bfloat16 else 1e-3
    if not error <= allowed:
        raise ModelError(f"per-document gradients are wrong by {error:.1%}: training would not do what is claimed")
    gain, noise_gain = gains(model, documents, training)
    if not gain > 3 * noise_gain:
        raise ModelError(
            f"local training wins {gain:.4f} nats a token, noise alone {noise_gain:.4f}: it learns nothing"
        )
    return {"gradient_error": error, "gain": gain, "noise_gain": noise_gain}


def gradient_error(model: LanguageModel, documents: Sequence[Cached]) -> float:
    """Return max over documents of ||g_batch - g_alone|| / ||g_alone|| for the shared cores."""
    model.activate(GLOBAL)
    loss = DocumentLoss(model, model.cores().values())
    parameters = list(loss.parameters())
    with trainable(parameters), quiet():
        alone = [one_gradient(loss, document, parameters) for document in documents]
        wrapped = GradSampleModule(loss.train())
        try:
            per_document_gradients(wrapped, documents)
            samples = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
            together = [torch.cat([s[i].flatten() for s in samples]) for i in range(len(documents))]
        finally:
            unwrap(wrapped, parameters)
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(alone, together, strict=True)]
    return float(np.max(errors))  # unlike `max`, it never loses a NaN


def gains(model: LanguageModel, documents: Sequence[Cached], training: CoreTraining) -> tuple[float, float]:
    """Return the nats per token won by the local steps on all documents, and the root mean square by random steps.

    Random steps are as long as the local ones together. Half of them win something, by chance: noise passes for
    training in `probe_training` only if it lies three deviations on the right side.
    """
    assert model.layout is not None
    zero, everything = model.layout.zero_cores(), replace(training, sampling_rate=1.0)
    update = core_update(model, documents, zero, everything, torch.Generator().manual_seed(0))
    random = np.random.default_rng(0).standard_normal((RANDOM_STEPS, update.size))
    random *= np.linalg.norm(update) / np.linalg.norm(random, axis=1, keepdims=True)
    before = _loss(model, documents, np.zeros_like(update))
    by_chance = [before - _loss(model, documents, step) for step in random]
    return before - _loss(model, documents, update), float(np.sqrt(np.mean(np.square(by_chance))))


def _loss(model: LanguageModel, documents: Sequence[Cached], core: NDArray[np.float64]) -> float:
    assert model.layout is not None
    model.set_cores(model.layout.unflatten(core))
    nats = torch.cat(model.document_nats(documents))
    model.set_cores(model.layout.zero_cores())
    return float(nats.double().mean())
