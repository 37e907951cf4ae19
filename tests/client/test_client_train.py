"""Local training: each known trap of per-document gradients and Opacus has a test that fails if it comes back."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from client import own_training, train
from client.model import GLOBAL, OWN, Cached, LanguageModel, padded
from client.own import load_own, own_modules, own_tensors, reset_own
from client.own_training import OwnTraining, train_own
from client.train import (
    CoreTraining,
    DocumentLoss,
    NormalisedStep,
    StepPlan,
    core_update,
    one_gradient,
    per_document_gradients,
    trainable,
    unwrap,
)
from privacy.errors import ModelError

CachedDialogues = Callable[..., list[Cached]]
CORE = CoreTraining(steps=2, step=0.1, sampling_rate=0.5, document_clip=1.0)
OWN_SETTINGS = OwnTraining(rank=2, epochs=2, learning_rate=5e-3, batch_documents=3)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.fixture
def model(cored: LanguageModel) -> LanguageModel:
    cored.add_own(2, OWN_SETTINGS.modules)
    return cored


def core_loss(model: LanguageModel) -> DocumentLoss:
    model.activate(GLOBAL)
    return DocumentLoss(model, model.cores().values())


def own_loss(model: LanguageModel) -> DocumentLoss:
    """Return the loss over an own adapter that is no longer the identity, so that A has a gradient, too."""
    model.activate(GLOBAL, OWN)
    reset_own(model, seed(0))
    with torch.no_grad():
        for p in own_tensors(model).values():
            p.add_(0.05 * torch.randn(p.shape, generator=seed(1)))
    return DocumentLoss(model, own_modules(model))


LOSSES = {"core": core_loss, "own": own_loss}


def batch_gradients(loss: DocumentLoss, documents: list[Cached]) -> Tensor:
    """Return Opacus' gradient of each document of one batch, float32 [documents, parameters]."""
    parameters = list(loss.parameters())
    with trainable(parameters), train.quiet():
        wrapped = GradSampleModule(loss.train())
        try:
            per_document_gradients(wrapped, documents)
            found: list[Tensor] = [p.grad_sample.flatten(1) for p in parameters]  # type: ignore[attr-defined]
            return torch.cat(found, 1).clone()
        finally:
            unwrap(wrapped, parameters)


def alone(loss: DocumentLoss, documents: list[Cached]) -> Tensor:
    """Return the gradient of each document by a backward pass of its own."""
    parameters = list(loss.parameters())
    with trainable(parameters):
        return torch.stack([one_gradient(loss, document, parameters) for document in documents])


def summed(
    loss: DocumentLoss,
    documents: list[Cached],
    clip: float,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    **plan: Any,
) -> NDArray[np.float64]:
    """Return what one step over all documents adds up: sum of clipped gradients plus noise, flat."""
    parameters = list(loss.parameters())
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    step_plan = StepPlan(**{"steps": 1, "sampling_rate": 1.0, "document_clip": clip, "noise_multiplier": noise, **plan})
    train.private_steps(loss, optimizer, documents, step_plan, generator or seed(0))
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, parameters, strict=True)])
    with torch.no_grad():
        for p, b in zip(parameters, before, strict=True):
            p.copy_(b)
    return moved.double().numpy() * len(documents)


# -- trap 1: a document's gradient is its own ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_in_a_batch_are_those_of_each_document_alone(
    model: LanguageModel, cached: CachedDialogues, kind: str
) -> None:
    loss, documents = LOSSES[kind](model), cached(model, 6)
    together, one_by_one = batch_gradients(loss, documents), alone(loss, documents)
    errors = (together - one_by_one).norm(dim=1) / one_by_one.norm(dim=1)
    assert errors.max() < 1e-4


class BatchTokenMean(DocumentLoss):
    """The trap itself: the mean over all tokens of the batch, as Hugging Face's `labels=` computes it."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        counts = torch.bincount(row, minlength=len(hidden))
        return super().forward(hidden, row, column, labels) * counts / counts.sum() * len(hidden)


def test_a_mean_over_the_batchs_tokens_would_be_noticed(model: LanguageModel, cached: CachedDialogues) -> None:
    model.activate(GLOBAL)
    loss, documents = BatchTokenMean(model, model.cores().values()), cached(model, 6)
    one_by_one = alone(loss, documents)
    errors = (batch_gradients(loss, documents) - one_by_one).norm(dim=1) / one_by_one.norm(dim=1)
    assert errors.max() > 0.2


def test_the_loss_is_the_mean_over_each_documents_own_tokens(model: LanguageModel, cached: CachedDialogues) -> None:
    documents, loss = cached(model, 5), core_loss(model)
    rows = padded(documents)
    with torch.no_grad():
        found = loss(rows.hidden, *rows.where, rows.labels)
    wanted = torch.stack([nats.mean() for nats in model.document_nats(documents)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_one_document_moves_the_sum_by_at_most_the_clip(
    model: LanguageModel, cached: CachedDialogues, kind: str
) -> None:
    loss, documents = LOSSES[kind](model), cached(model, 6)
    norms = alone(loss, documents).norm(dim=1)
    clip = 0.5 * float(norms.min())
    with_it, without = summed(loss, documents, clip), summed(loss, documents[:-1], clip)
    assert clip * 0.99 < np.linalg.norm(with_it - without) <= clip * (1 + 1e-4), "each of them is clipped"
    wanted = (alone(loss, documents) * (clip / norms)[:, None]).sum(0).double().numpy()
    np.testing.assert_allclose(with_it, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


def test_a_short_gradient_is_not_stretched(model: LanguageModel, cached: CachedDialogues) -> None:
    loss, documents = core_loss(model), cached(model, 4)
    gradients = alone(loss, documents)
    wanted = gradients.sum(0).double().numpy()
    found = summed(loss, documents, clip=10 * float(gradients.norm(dim=1).max()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("batch_tokens", [1, 100, 250])
def test_splitting_a_batch_changes_nothing(model: LanguageModel, cached: CachedDialogues, batch_tokens: int) -> None:
    loss, documents = core_loss(model), cached(model, 8)
    clip = float(alone(loss, documents).norm(dim=1).median())
    whole = summed(loss, documents, clip, batch_tokens=10_000)
    parts = summed(loss, documents, clip, batch_tokens=batch_tokens)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_split_batch_is_one_step_in_the_accountant(model: LanguageModel, cached: CachedDialogues) -> None:
    loss = core_loss(model)
    plan = StepPlan(3, 1.0, 1.0, 2.0, batch_tokens=1)
    engine = train.private_steps(loss, NormalisedStep(loss.parameters(), 0.1), cached(model, 4), plan, seed(0))
    assert engine.accountant.history == [(2.0, 1.0, 3)]


# -- traps 2 and 3: empty Poisson batches -------------------------------------------------------------------------


@pytest.fixture
def batch_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yield the sizes of the Poisson batches that the steps of a test were given."""
    sizes: list[int] = []
    logical_step = train._logical_step

    def recorded(wrapped: Any, dp: Any, documents: list[Cached], *rest: Any) -> None:
        sizes.append(len(documents))
        logical_step(wrapped, dp, documents, *rest)

    monkeypatch.setattr(train, "_logical_step", recorded)
    yield sizes


def test_every_step_counts_empty_batches_too(
    model: LanguageModel, cached: CachedDialogues, batch_sizes: list[int]
) -> None:
    loss = core_loss(model)
    plan = StepPlan(20, 1 / 3, 1.0, 1.5)
    engine = train.private_steps(loss, NormalisedStep(loss.parameters(), 0.1), cached(model, 3), plan, seed(4))
    assert len(batch_sizes) == 20 and batch_sizes.count(0) > 2 and max(batch_sizes) > 1
    assert engine.accountant.history == [(1.5, pytest.approx(1 / 3), 20)]


def test_steps_after_an_empty_batch_learn_as_if_it_had_not_been(
    model: LanguageModel, cached: CachedDialogues, batch_sizes: list[int]
) -> None:
    documents = cached(model, 3)
    settings = CoreTraining(steps=12, step=0.1, sampling_rate=1 / 3, document_clip=1.0)
    zero = model.layout.zero_cores() if model.layout else {}
    update = core_update(model, documents, zero, settings, seed(4))
    first_empty = batch_sizes.index(0)
    assert 0 in batch_sizes[:-1] and any(batch_sizes[first_empty:])
    gains = [n.mean() for n in model.document_nats(documents)]
    assert model.layout is not None
    model.set_cores(model.layout.unflatten(update))
    assert sum(n.mean() for n in model.document_nats(documents)) < sum(gains)


def test_an_empty_batch_moves_nothing_without_noise_and_by_noise_with_it(
    model: LanguageModel, cached: CachedDialogues, batch_sizes: list[int]
) -> None:
    loss, documents = own_loss(model), cached(model, 3)
    number = next(n for n in range(50) if not _any_drawn(n, len(documents)))
    quiet = summed(loss, documents, 1.0, 0.0, seed(number), sampling_rate=1 / 3)
    noisy = summed(loss, documents, 0.5, 3.0, seed(number), sampling_rate=1 / 3)
    assert batch_sizes == [0, 0]
    assert not quiet.any()
    assert np.std(noisy / len(documents)) == pytest.approx(0.5 * 3.0, rel=0.1)  # one document is expected a batch


def _any_drawn(number: int, documents: int) -> bool:
    """Return whether the first Poisson batch of this seed holds anything, by Opacus' own sampler."""
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    generator = seed(number)
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # a data loader draws its base seed first
    sampler = UniformWithReplacementSampler(num_samples=documents, sample_rate=1 / 3, generator=generator)
    return bool(next(iter(sampler)))


# -- traps 4 and 5: accountants without history, wrapping twice ---------------------------------------------------


def test_no_step_is_no_epsilon_and_no_error(model: LanguageModel, cached: CachedDialogues) -> None:
    loss = core_loss(model)
    plan = StepPlan(0, 0.5, 1.0, 1.0)
    engine = train.private_steps(loss, NormalisedStep(loss.parameters(), 0.1), cached(model, 3), plan, seed(0))
    assert isinstance(engine.accountant, RDPAccountant)  # the default accountant raises on an empty history
    assert engine.get_epsilon(1e-5) == 0.0


def test_one_module_can_be_wrapped_round_after_round(model: LanguageModel, cached: CachedDialogues) -> None:
    loss, documents = core_loss(model), cached(model, 4)
    first, second = summed(loss, documents, 1.0), summed(loss, documents, 1.0)
    np.testing.assert_array_equal(first, second)
    for name, module in model.net.named_modules():
        assert not module._forward_hooks and not module._backward_hooks, name
        assert not hasattr(module, "activations"), f"{name} keeps a person's activations"
    for name, p in model.net.named_parameters():
        assert p.grad is None and not hasattr(p, "grad_sample") and not hasattr(p, "summed_grad"), name


class FailsBetweenPasses(DocumentLoss):
    """A step that dies (out of memory, say) after the forward pass: activations are kept, gradients never come."""

    def forward(self, hidden: Tensor, row: Tensor, column: Tensor, labels: Tensor) -> Tensor:
        super().forward(hidden, row, column, labels)
        raise RuntimeError("planted")


def test_a_step_that_fails_leaves_nothing_to_the_next(model: LanguageModel, cached: CachedDialogues) -> None:
    documents = cached(model, 4)
    wanted = summed(core_loss(model), documents, 1.0)
    with pytest.raises(RuntimeError, match="planted"):
        summed(FailsBetweenPasses(model, model.cores().values()), documents, 1.0)
    assert not any(hasattr(module, "activations") for module in model.net.modules())
    np.testing.assert_array_equal(summed(core_loss(model), documents, 1.0), wanted)


# -- traps 6 to 8: what Opacus cannot see, whose noise it is, which type trains -----------------------------------


def test_a_call_by_keywords_has_the_same_gradients(model: LanguageModel, cached: CachedDialogues) -> None:
    loss, documents = core_loss(model), cached(model, 4)
    parameters, rows = list(loss.parameters()), padded(documents)
    with trainable(parameters), train.quiet():
        wrapped = GradSampleModule(loss.train())
        row, column = rows.where
        wrapped(hidden=rows.hidden, row=row, column=column, labels=rows.labels).mean().backward()
        found = torch.cat([p.grad_sample.flatten(1) for p in parameters], 1)  # type: ignore[attr-defined]
        unwrap(wrapped, parameters)
    torch.testing.assert_close(found, batch_gradients(loss, documents))


def test_a_parameter_without_gradient_stops_the_training(model: LanguageModel, cached: CachedDialogues) -> None:
    model.activate(GLOBAL)  # the own adapter is off: its parameters are hooked and never reached
    loss = DocumentLoss(model, [*model.cores().values(), *own_modules(model)])
    with pytest.raises(ModelError, match="no per-document gradient"):
        plan = StepPlan(1, 1.0, 1.0, 0.0)
        train.private_steps(loss, NormalisedStep(loss.parameters(), 0.1), cached(model, 2), plan, seed(0))


def test_randomness_is_the_generators_alone(model: LanguageModel, cached: CachedDialogues) -> None:
    documents, before = cached(model, 4), torch.get_rng_state()
    settings = replace(CORE, noise_multiplier=1.0)
    assert model.layout is not None
    runs = [core_update(model, documents, model.layout.zero_cores(), settings, seed(n)) for n in (7, 7, 8)]
    train_own(model, documents, replace(OWN_SETTINGS, record_epsilon=8.0), seed(1))
    assert torch.equal(torch.get_rng_state(), before), "nobody else's seed decides a device's noise"
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_dropout_of_the_base_model_stays_off(tiny_basis: Any, cached: CachedDialogues, new_model: Any) -> None:
    plain, dropping = new_model(), new_model()
    dropping.net.config.attention_dropout = 0.9
    for layer in dropping.inner.layers:
        layer.self_attn.attention_dropout = 0.9
    updates = []
    for each in (plain, dropping):
        each.attach(tiny_basis)
        updates.append(core_update(each, cached(each, 4), tiny_basis.layout.zero_cores(), CORE, seed(2)))
    np.testing.assert_array_equal(updates[0], updates[1])


def test_opacus_warnings_that_are_dealt_with_are_not_shown(model: LanguageModel, cached: CachedDialogues) -> None:
    assert model.layout is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        core_update(model, cached(model, 3), model.layout.zero_cores(), CORE, seed(0))


# -- the shared core ----------------------------------------------------------------------------------------------


def test_an_update_is_the_cores_own_movement_and_leaves_the_start(
    model: LanguageModel, cached: CachedDialogues
) -> None:
    assert model.layout is not None
    start = model.layout.unflatten(0.1 * np.random.default_rng(0).standard_normal(model.layout.dim))
    update = core_update(model, cached(model, 6), start, replace(CORE, sampling_rate=1.0), seed(0))
    np.testing.assert_array_equal(train._flat(model), model.layout.flatten(start))
    assert update.shape == (model.layout.dim,) and update.dtype == np.float64
    assert 0.1 < np.linalg.norm(update) <= 0.2 * (1 + 1e-5), "two steps of length 0.1"


def test_the_first_step_goes_down_the_clipped_mean_gradient(model: LanguageModel, cached: CachedDialogues) -> None:
    assert model.layout is not None
    documents = cached(model, 5)
    settings = CoreTraining(steps=1, step=0.25, sampling_rate=1.0, document_clip=0.01)
    update = core_update(model, documents, model.layout.zero_cores(), settings, seed(0))
    gradient = summed(core_loss(model), documents, 0.01)
    np.testing.assert_allclose(update, -0.25 * gradient / np.linalg.norm(gradient), rtol=0, atol=1e-5)


def test_nobody_to_learn_from_is_a_zero_update(model: LanguageModel, cached: CachedDialogues) -> None:
    assert model.layout is not None
    silent = cached(model, 1)[0]
    silent.encoded.target[:] = False
    for documents in ([], [silent]):
        update = core_update(model, documents, model.layout.zero_cores(), CORE, seed(0))
        np.testing.assert_array_equal(update, np.zeros(model.layout.dim))


@pytest.mark.parametrize(
    ("gradients", "moved"),
    [(([0.0, 0.0], [0.0]), 0.0), (([3.0, 0.0], [4.0]), 0.5), (([1e-30, 0.0], [0.0]), 0.5), (([3.0, 0.0], None), 0.5)],
)
def test_a_normalised_step_has_its_length_or_none(
    gradients: tuple[list[float], list[float] | None], moved: float
) -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = None if gradient is None else torch.tensor(gradient)
    NormalisedStep(parameters, 0.5).step()
    change = torch.cat([p.detach() - 1 for p in parameters])
    assert float(change.norm()) == pytest.approx(moved, abs=1e-6) and torch.isfinite(change).all()


# -- nothing else moves, nothing is left behind -------------------------------------------------------------------


def fingerprint(model: LanguageModel, without: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.net.state_dict().items()):
        if without not in name:
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("record_epsilon", [None, 8.0])
def test_only_the_own_adapter_moves(
    model: LanguageModel, cached: CachedDialogues, record_epsilon: float | None
) -> None:
    before = fingerprint(model, f".{OWN}.")
    tensors, _ = train_own(model, cached(model, 5), replace(OWN_SETTINGS, record_epsilon=record_epsilon), seed(0))
    assert fingerprint(model, f".{OWN}.") == before
    assert len(tensors) == 2 * 3 * 4 and all(t.abs().max() > 0 for t in tensors.values())


def test_only_the_cores_move_and_they_come_back(model: LanguageModel, cached: CachedDialogues) -> None:
    assert model.layout is not None
    before = fingerprint(model, "nothing at all")
    update = core_update(model, cached(model, 5), model.layout.zero_cores(), CORE, seed(0))
    assert update.any() and fingerprint(model, "nothing at all") == before


def test_no_person_leaves_a_trace_in_the_next(model: LanguageModel, cached: CachedDialogues) -> None:
    assert model.layout is not None
    ann, ben = cached(model, 4), cached(model, 4, first=4)
    zero = model.layout.zero_cores()

    def trained(documents: list[Cached]) -> tuple[NDArray[np.float64], dict[str, Tensor]]:
        return core_update(model, documents, zero, CORE, seed(3)), train_own(model, documents, OWN_SETTINGS, seed(3))[0]

    first = [trained(ann), trained(ben)]
    second = [trained(ben), trained(ann)][::-1]
    for (update, own), (update_again, own_again) in zip(first, second, strict=True):
        np.testing.assert_array_equal(update, update_again)
        assert all(torch.equal(own[name], own_again[name]) for name in own)


# -- own adapters -------------------------------------------------------------------------------------------------


def mean_nats(model: LanguageModel, documents: list[Cached]) -> float:
    return float(torch.cat(model.document_nats(documents)).mean())


def test_an_own_adapter_learns_its_person_and_can_be_put_back(model: LanguageModel, cached: CachedDialogues) -> None:
    documents = cached(model, 6)
    before = mean_nats(model, documents)
    tensors, privacy = train_own(model, documents, replace(OWN_SETTINGS, epochs=4), seed(0))
    trained = mean_nats(model, documents)
    assert privacy is None and trained < before - 0.05
    model.add_own(2, OWN_SETTINGS.modules)
    model.activate(GLOBAL, OWN)
    assert mean_nats(model, documents) == pytest.approx(before, abs=1e-5)
    load_own(model, tensors)
    assert mean_nats(model, documents) == pytest.approx(trained, abs=1e-6)


def test_without_documents_an_own_adapter_is_the_identity(model: LanguageModel, cached: CachedDialogues) -> None:
    settings = replace(OWN_SETTINGS, record_epsilon=8.0)
    tensors, privacy = train_own(model, [], settings, seed(0), charge=lambda *_: pytest.fail("nothing to charge for"))
    assert privacy is None
    assert all(not t.any() for name, t in tensors.items() if ".lora_B." in name)


def test_an_adapter_for_other_modules_or_of_another_rank_is_refused(model: LanguageModel) -> None:
    tensors = {name: p.detach() for name, p in own_tensors(model).items()}
    first = next(name for name in tensors if ".lora_A." in name)
    narrow = {**tensors, first: tensors[first][:1]}  # one row would be copied into both, without a word
    for other in ({name: t for name, t in tensors.items() if name != first}, narrow):
        with pytest.raises(ModelError, match="other modules or another rank"):
            load_own(model, other)


# -- own adapters under record-level privacy ----------------------------------------------------------------------

RECORD = replace(OWN_SETTINGS, record_epsilon=8.0, record_delta=1e-5)


@pytest.mark.parametrize(("documents", "batch"), [(5, 2), (8, 3), (3, 4), (1, 4)])
def test_the_guarantee_is_that_of_the_steps_really_taken(
    model: LanguageModel, cached: CachedDialogues, batch_sizes: list[int], documents: int, batch: int
) -> None:
    engines: list[PrivacyEngine] = []
    private_steps = train.private_steps

    def kept(*args: Any) -> PrivacyEngine:
        engines.append(private_steps(*args))
        return engines[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_training, "private_steps", kept)
        _, privacy = train_own(model, cached(model, documents), replace(RECORD, batch_documents=batch), seed(0))
    assert privacy is not None and len(batch_sizes) == privacy.steps
    [(noise, rate, steps)] = engines[0].accountant.history
    assert (privacy.noise_multiplier, privacy.steps) == (noise, steps)
    assert privacy.sampling_rate == pytest.approx(rate, rel=1e-12), "the charged rate is the rate that was drawn"
    assert steps == RECORD.epochs * round(1 / rate)


def test_forty_nine_documents_do_not_divide_by_zero(
    model: LanguageModel, cached: CachedDialogues, batch_sizes: list[int]
) -> None:
    documents = cached(model, 7) * 7  # 49 * (1 / 49) is below 1, and Opacus rounds it down
    settings = replace(RECORD, batch_documents=1, epochs=1)
    tensors, privacy = train_own(model, documents, settings, seed(0))
    assert privacy is not None and privacy.sampling_rate == pytest.approx(1 / 49) and len(batch_sizes) == 49
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_epsilon_is_within_what_was_asked_and_above_the_tight_one(
    model: LanguageModel, cached: CachedDialogues
) -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    from privacy.record import RecordCharge

    charges: list[tuple[float, float, int, float, float]] = []
    _, privacy = train_own(model, cached(model, 7), RECORD, seed(0), charge=lambda *figures: charges.append(figures))
    assert privacy is not None and len(charges) == 1
    noise, rate, steps, clip, delta = charges[0]
    assert (noise, rate, steps, delta) == (
        privacy.noise_multiplier,
        privacy.sampling_rate,
        privacy.steps,
        privacy.delta,
    )
    accountant = RdpAccountant()
    accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    assert privacy.epsilon == pytest.approx(accountant.get_epsilon(delta), rel=1e-2), (
        "the same bound by another library"
    )
    tight = RecordCharge("own_record_dp", noise, rate, steps, clip, delta).epsilon()
    assert 0.7 * privacy.epsilon < tight <= privacy.epsilon <= 8.0


def test_the_charge_comes_before_any_noise(model: LanguageModel, cached: CachedDialogues) -> None:
    generator, fresh = seed(5), seed(5)
    reset_own(model, fresh)
    untrained = {name: p.detach().clone() for name, p in own_tensors(model).items()}
    seen: list[bool] = []

    def charge(*_: float) -> None:
        seen.append(torch.equal(generator.get_state(), fresh.get_state()))  # nothing drawn but the initial values
        seen.append(all(torch.equal(p, untrained[name]) for name, p in own_tensors(model).items()))

    train_own(model, cached(model, 5), RECORD, generator, charge)
    assert seen == [True, True]


def test_a_charge_that_fails_stops_the_training(model: LanguageModel, cached: CachedDialogues) -> None:
    generator, fresh = seed(5), seed(5)
    reset_own(model, fresh)

    def refuse(*_: float) -> None:
        raise OSError("the ledger's disk is full")

    with pytest.raises(OSError, match="disk is full"):
        train_own(model, cached(model, 5), RECORD, generator, refuse)
    assert torch.equal(generator.get_state(), fresh.get_state())
    assert all(not p.any() for name, p in own_tensors(model).items() if ".lora_B." in name)


def noise_statistic(model: LanguageModel, documents: list[Cached], noise: float, clip: float) -> tuple[float, int]:
    """Return the sum of squares of two noisy sums' difference over its right variance, and how many squares."""
    loss = own_loss(model)
    first, second = (summed(loss, documents, clip, noise, seed(n)) for n in (11, 12))
    difference = first - second
    return float(np.square(difference).sum() / (2 * (noise * clip) ** 2)), difference.size


def test_the_noise_has_its_deviation(model: LanguageModel, cached: CachedDialogues) -> None:
    """False alarm 1e-6. The same clipped sum cancels in the difference of two runs: only noise is left."""
    from scipy.stats import chi2

    statistic, dof = noise_statistic(model, cached(model, 4), noise=1.7, clip=0.3)
    low, high = chi2.ppf([5e-7, 1 - 5e-7], dof)
    assert low < statistic < high
    for wrong in (0.9, 1.1):
        assert not low < statistic * wrong**2 < high, "enough numbers to tell a tenth of a deviation"


def test_noise_of_every_step_is_new(model: LanguageModel, cached: CachedDialogues) -> None:
    loss, documents = own_loss(model), cached(model, 3)
    twice = summed(loss, documents, 0.3, 2.0, seed(1), steps=2)
    once = summed(loss, documents, 0.3, 2.0, seed(1))
    correlation = np.corrcoef(once, twice - once)[0, 1]
    assert abs(correlation) < 0.2, "the second step's noise is not the first's again"
