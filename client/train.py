"""Local training through Opacus: the shared core, and the steps that own adapters under record-level privacy take too.

Shared core: L normalised steps on Poisson batches of documents, each document's gradient clipped on its own, so that
no single document dominates a person's answer. Opacus computes per-document gradients, clips and (where a record-level
epsilon is asked for) adds its noise. Its noise is floating-point Gaussian from a generator seeded by the operating
system; what leaves the device is protected by the integer noise of `privacy.answer`, not by this one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from client.model import GLOBAL, Cached, LanguageModel, batches_by_length, padded
from privacy.adapter import Cores
from privacy.errors import ModelError

NUMBERS_A_LAYER = 2**20  # that a pass for several people may hold: a narrow model takes more tokens at once
AfterStep = Callable[[int, PrivacyEngine], None]  # steps done of the plan, and the accountant that has counted them


@dataclass(frozen=True)
class CoreTraining:
    """The shared core's local steps. `step` is the L2 length of each step in the whitened coordinates of the basis.

    `sampling_rate` is rounded to 1 over a whole number. Below 1 it only serves a record-level epsilon: most people have
    one document a round, and at 1/2 a quarter of them then answer zero. `document_clip` bounds the gradient of one
    document's mean loss; `noise_multiplier` 0 means clipping only, no record-level epsilon claimed.
    """

    steps: int = 2
    step: float = 0.06
    sampling_rate: float = 1.0
    document_clip: float = 1.0
    noise_multiplier: float = 0.0
    seconds: float = math.inf


@dataclass(frozen=True)
class StepPlan:
    """How many Opacus steps, at which Poisson rate, clip and noise; `batch_tokens` bounds a physical batch.

    `seconds` ends them early. Under record-level noise an early end is a smaller charge, never a larger one.
    """

    steps: int
    sampling_rate: float
    document_clip: float
    noise_multiplier: float
    batch_tokens: int = 2048
    seconds: float = math.inf


@dataclass(frozen=True)
class Records:
    """What Opacus' steps take for one record: `gradients` leaves each record's in `grad_sample`, `tokens` is its size.

    The gradient of a record must depend on that record alone, and `grad_sample` hold one row for each, in order.
    """

    gradients: Callable[[GradSampleModule, Sequence[Any]], None]
    tokens: Callable[[Any], int]


class NormalisedStep(torch.optim.Optimizer):
    """Steps of fixed length over all parameters together: p <- p - step g / ||g||; a zero gradient moves nothing."""

    def __init__(self, params: Iterable[nn.Parameter], step: float) -> None:
        super().__init__(list(params), {"step": step})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step; `closure` is not called."""
        for group in self.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            for p in group["params"]:
                if norm > 0.0 and p.grad is not None:
                    p.add_(p.grad, alpha=-group["step"] / norm)


class DocumentLoss(nn.Module):
    """Mean nats per own token of each document: documents -> float32 [B].

    The mean is over the document's own tokens and nobody else's, so a document's gradient does not depend on the rest
    of its batch (Opacus' sensitivity argument needs that; a batch-wide token mean breaks it). Only the `trained`
    modules are registered: Opacus hooks them wherever the model calls them, and need not walk the frozen rest.
    """

    def __init__(self, model: LanguageModel, trained: Iterable[nn.Module]) -> None:
        super().__init__()
        self.trained = nn.ModuleList(trained)
        object.__setattr__(self, "model", model)

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        """Return the mean nats of each row of `hidden`, whose targets stand at (`row`, `column`)."""
        model: LanguageModel = self.__dict__["model"]
        nats = model.nats(model.top(hidden)[row, column], labels)
        counts = torch.bincount(row, minlength=len(hidden)).clamp(min=1)
        return torch.zeros(len(hidden), device=nats.device).index_add(0, row, nats) / counts


def core_update(
    model: LanguageModel, documents: Sequence[Cached], start: Cores, settings: CoreTraining, generator: torch.Generator
) -> NDArray[np.float64]:
    """Return R_end - R_start after the local steps of one person, float64 [dim] in the layout's order.

    `documents` without an own token are left out; with none at all the update is zero (and is answered all the same:
    silence would tell the server). `generator` draws the Poisson batches; it must be secret where a record-level
    epsilon is claimed.
    """
    assert model.layout is not None
    model.set_cores(start)
    model.activate(GLOBAL)
    loss = DocumentLoss(model, model.cores().values())
    before = _flat(model)
    usable = [d for d in documents if d.encoded.own_tokens]
    if usable:
        plan = StepPlan(
            settings.steps,
            settings.sampling_rate,
            settings.document_clip,
            settings.noise_multiplier,
            seconds=settings.seconds,
        )
        private_steps(loss, NormalisedStep(loss.parameters(), settings.step), usable, plan, generator)
    after = _flat(model)
    model.set_cores(start)
    return after - before


def core_updates(
    model: LanguageModel, people: Sequence[Sequence[Cached]], start: Cores, settings: CoreTraining
) -> list[NDArray[np.float64]]:
    """Return `core_update` of several people, up to rounding: one pass through the model for all of them.

    For simulated people on one machine: their one step starts from the same core and sees all of their documents, so
    each document's own gradient, clipped as Opacus clips it, is summed by person. Where a batch is larger or padded the
    last bits differ from a person's alone. Raises ModelError for settings with more steps, sampling or noise.
    """
    assert model.layout is not None
    if settings.steps != 1 or settings.sampling_rate != 1.0 or settings.noise_multiplier:
        raise ModelError("only one step on all documents, without noise, can be taken for several people together")
    model.set_cores(start)
    model.activate(GLOBAL)
    cores = model.cores()
    loss, parameters = DocumentLoss(model, cores.values()), [w for core in cores.values() for w in core.parameters()]
    rows = [(owner, d) for owner, documents in enumerate(people) for d in documents if d.encoded.own_tokens]
    owners = torch.tensor([owner for owner, _ in rows], dtype=torch.long)
    sums = torch.zeros(len(people), model.layout.dim, dtype=torch.float64)
    with trainable(parameters), quiet():
        wrapped = GradSampleModule(loss.train())
        try:
            tokens = max(StepPlan.batch_tokens, NUMBERS_A_LAYER // model.head.shape[1])
            for chunk in batches_by_length([len(d.encoded.ids) for _, d in rows], tokens):
                per_document_gradients(wrapped, [rows[i][1] for i in chunk])
                flat = torch.cat([p.grad_sample.flatten(1) for p in parameters], 1)  # type: ignore[attr-defined]
                clipped = flat * (settings.document_clip / (flat.norm(dim=1) + 1e-6)).clamp(max=1.0)[:, None]
                sums.index_add_(0, owners[chunk], clipped.double().cpu())
                wrapped.zero_grad(set_to_none=True)
        finally:
            unwrap(wrapped, parameters)
    norms = sums.norm(dim=1, keepdim=True)
    steps = torch.where(norms > 0, -settings.step * sums / norms, 0.0)
    return [model.layout.flatten(_by_core(cores, row)).astype(np.float64) for row in steps]


def _by_core(cores: Mapping[str, nn.Linear], flat: Tensor) -> dict[str, NDArray[np.float32]]:
    parts = flat.split([core.weight.numel() for core in cores.values()])
    return {name: part.view_as(core.weight).numpy() for (name, core), part in zip(cores.items(), parts, strict=True)}


def _flat(model: LanguageModel) -> NDArray[np.float64]:
    assert model.layout is not None
    return model.layout.flatten({n: c.weight.detach().float().cpu().numpy() for n, c in model.cores().items()})


def private_steps(
    loss: DocumentLoss,
    optimizer: torch.optim.Optimizer,
    documents: Sequence[Any],
    plan: StepPlan,
    generator: torch.Generator,
    after_step: AfterStep = lambda _done, _engine: None,
    history: Sequence[tuple[float, float, int]] = (),
    records: Records | None = None,
) -> PrivacyEngine:
    """Take the plan's Opacus steps over Poisson batches of documents and return the engine with its accountant.

    With `records` what is drawn and clipped is another kind of record than a document that is cached.

    `history` holds the steps that a training which was cut off took already, as (noise multiplier, sampling rate,
    steps): they count as steps of the plan and in the accountant. `after_step` is called after each.

    Every step counts, empty batches too: no gradient, full noise, one more line in the accountant. A logical batch is
    split into physical ones of like length; Opacus clips each document on its own, so the split changes no clipping.
    Raises ModelError if a trained parameter gets no per-document gradient: training that silently does nothing is the
    classic failure here.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batches = max(1, round(1 / plan.sampling_rate))
    with trainable(parameters), quiet():
        engine = PrivacyEngine(accountant="rdp")
        loader = DataLoader(
            TensorDataset(torch.arange(len(documents))),
            batch_size=-(-len(documents) // batches),
            generator=generator,
        )
        wrapped, dp, sampler = engine.make_private(
            module=loss.train(),
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.document_clip,
            poisson_sampling=True,
            noise_generator=_on_device(generator, parameters[0].device),
        )
        # Opacus rounds n times 1/n down, to 0 for n = 49; the number only scales the gradient, noise included.
        dp.expected_batch_size = max(1, dp.expected_batch_size)
        engine.accountant.history = [tuple(each) for each in history]
        done = sum(steps for _, _, steps in history)
        until = time.monotonic() + plan.seconds
        records = records or Records(per_document_gradients, lambda document: len(document.encoded.ids))
        try:
            for number, batch in enumerate(_repeat(sampler, plan.steps - done), done + 1):
                if number > done + 1 and time.monotonic() > until:
                    break
                _logical_step(wrapped, dp, [documents[i] for i in batch], plan.batch_tokens, records)
                after_step(number, engine)
        finally:
            unwrap(wrapped, parameters)
    return engine


def _on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return `generator`, or one seeded from it where the noise must be drawn on another device."""
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def _logical_step(
    wrapped: GradSampleModule, dp: DPOptimizer, documents: list[Any], batch_tokens: int, records: Records
) -> None:
    dp.zero_grad(set_to_none=True)
    if not documents:
        for p in dp.params:
            p.grad_sample = torch.zeros((0, *p.shape), device=p.device)
        dp.step()
        return
    chunks = batches_by_length([records.tokens(d) for d in documents], batch_tokens)
    for i, chunk in enumerate(chunks):
        records.gradients(wrapped, [documents[j] for j in chunk])
        if any(getattr(p, "grad_sample", None) is None for p in dp.params):
            raise ModelError("a trained parameter got no per-document gradient: the adapter would learn nothing")
        dp.signal_skip_step(do_skip=i + 1 < len(chunks))
        dp.step()
        dp.zero_grad(set_to_none=True)


def per_document_gradients(loss: GradSampleModule, documents: Sequence[Cached]) -> None:
    """Leave the gradient of each document's mean loss in every trained parameter's `grad_sample`, [documents, ...]."""
    rows = padded(documents)
    loss(rows.hidden, *rows.where, rows.labels).mean().backward()


def one_gradient(loss: DocumentLoss, document: Cached, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of one document's mean loss alone, flat over `parameters`; ModelError if it has none."""
    rows = padded([document])
    total = loss(rows.hidden, *rows.where, rows.labels).sum()
    found = torch.autograd.grad(total, list(parameters), allow_unused=True) if total.requires_grad else [None]
    gradients = [g.flatten() for g in found if g is not None]
    if len(gradients) < len(parameters):
        raise ModelError("a document's loss has no gradient by a trained parameter: the adapter would learn nothing")
    return torch.cat(gradients)


def unwrap(wrapped: GradSampleModule, parameters: Sequence[nn.Parameter]) -> None:
    """Take Opacus' hooks off again; wrapping twice fails, and stale activations would spoil the next round."""
    wrapped.to_standard_module().eval()
    for module in wrapped.modules():
        module.__dict__.pop("activations", None)  # left over where a step failed between its two passes
    for p in parameters:
        p.grad = None
        for left in ("grad_sample", "summed_grad"):
            p.__dict__.pop(left, None)


def _repeat(loader: Iterable[Sequence[Tensor]], steps: int) -> Iterator[list[int]]:
    """Yield `steps` Poisson batches of indices, over as many passes as that takes."""
    taken = 0
    while taken < steps:
        for batch in loader:
            if taken == steps:
                return
            taken += 1
            yield [int(i) for i in batch[0]]


@contextlib.contextmanager
def trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to `parameters` inside the block; outside it everything is frozen."""
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Opacus warns of its non-cryptographic noise, of full backward hooks and of few Renyi orders.

    The first two are dealt with and documented; fewer orders than would be tightest make its epsilon larger, not wrong.
    """
    level = logging.getLogger("opacus").level
    logging.getLogger("opacus").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Secure RNG turned off")
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="Optimal order is the")
        try:
            yield
        finally:
            logging.getLogger("opacus").setLevel(level)
