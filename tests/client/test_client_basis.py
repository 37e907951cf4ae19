"""A basis whitens what it was made from, is the same every time, and needs nobody's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from client.basis import (
    BasisSettings,
    Moments,
    chosen_modules,
    own_samples,
    second_moments,
    svd_basis,
    whitened_basis,
)
from client.model import Encoded, LanguageModel
from privacy.errors import ModelError

NewModel = Callable[..., LanguageModel]
SETTINGS = BasisSettings(rank=4, damping=0.01)
NAME = "model.layers.4.mlp.down_proj"


@pytest.fixture(scope="module")
def model(new_model: NewModel) -> LanguageModel:
    return new_model()


@pytest.fixture(scope="module")
def texts(model: LanguageModel) -> list[Encoded]:
    return own_samples(model, 24, 40, seed=3)


def normalised(moments: Moments, centred: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return X (about its mean, if `centred`) and G, float64."""
    xx, gg = (m.double().numpy() / moments.count for m in (moments.xx, moments.gg))
    mean = moments.x.double().numpy() / moments.count
    return xx - np.outer(mean, mean) if centred else xx, gg


# -- whitening ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("damping", [1e-6, 0.01, 0.5])
def test_factors_whiten_inputs_and_output_gradients(
    model: LanguageModel, texts: list[Encoded], centred: bool, damping: float
) -> None:
    settings = replace(SETTINGS, centred=centred, damping=damping)
    basis = whitened_basis(model, texts, settings)
    moments = second_moments(model, chosen_modules(model, ()), texts, settings)
    for name, (a, b) in basis.factors.items():
        for factor, moment in zip((a, b.T), normalised(moments[name], centred), strict=True):
            values = np.linalg.eigvalsh(moment)[::-1][:4]
            wanted = np.diag(values / (values + damping * np.trace(moment) / len(moment)))
            np.testing.assert_allclose(factor @ moment @ factor.T, wanted, atol=0.02, err_msg=name)


def test_rows_are_the_leading_directions_largest_first(model: LanguageModel, texts: list[Encoded]) -> None:
    """Few of many (Lanczos) and many of few (LAPACK) agree: rank 4 is the beginning of rank 32."""
    few, many = (whitened_basis(model, texts, replace(SETTINGS, rank=r, modules=("up_proj",))) for r in (4, 32))
    for name, (a, b) in few.factors.items():
        np.testing.assert_allclose(a, many.factors[name][0][:4], atol=0.02 * np.abs(a).max(), err_msg=name)
        np.testing.assert_allclose(b, many.factors[name][1][:, :4], atol=0.02 * np.abs(b).max(), err_msg=name)
        assert (np.diff(np.linalg.norm(a, axis=1)) > -1e-3).all(), "the larger the eigenvalue, the shorter its row"


def test_damping_shortens_the_weak_directions_most(model: LanguageModel, texts: list[Encoded]) -> None:
    lengths = [
        np.linalg.norm(whitened_basis(model, texts, replace(SETTINGS, damping=d)).factors[NAME][0], axis=1)
        for d in (1e-6, 1.0)
    ]
    assert (lengths[1] < lengths[0]).all()
    assert lengths[1][3] / lengths[0][3] < lengths[1][0] / lengths[0][0]


# -- moments ------------------------------------------------------------------------------------------------------


def plain_moments(model: LanguageModel, texts: list[Encoded], skip_first: bool = False) -> dict[str, Tensor]:
    """Return the sums for module NAME by whole forward passes, one text at a time, with torch's own loss."""
    module, sums = model.net.get_submodule(NAME), {"xx": torch.zeros(128, 128), "gg": torch.zeros(64, 64)}
    for text in texts:
        kept: list[Tensor] = []

        def keep(_module: Any, args: Any, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            output = output.requires_grad_()
            output.retain_grad()
            kept.extend([args[0].detach(), output])
            return output

        handle = module.register_forward_hook(keep)
        logits = model.net(input_ids=text.ids[None]).logits[0]
        handle.remove()
        F.cross_entropy(logits[:-1], text.ids[1:], reduction="sum").backward()
        x, output = kept
        assert output.grad is not None
        sums["xx"] += x[0, int(skip_first) :].T @ x[0, int(skip_first) :]
        sums["gg"] += output.grad[0, int(skip_first) :].T @ output.grad[0, int(skip_first) :]
    return sums


@pytest.mark.parametrize("skip_first", [False, True])
def test_moments_are_sums_over_all_tokens_of_the_summed_loss(
    model: LanguageModel, texts: list[Encoded], skip_first: bool
) -> None:
    texts = texts[:5]
    settings = replace(SETTINGS, skip_first=skip_first)
    found = second_moments(model, chosen_modules(model, ("down_proj",)), texts, settings)[NAME]
    wanted = plain_moments(model, texts, skip_first)
    torch.testing.assert_close(found.xx, wanted["xx"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.gg, wanted["gg"], rtol=1e-3, atol=1e-3 * float(wanted["gg"].abs().max()))
    assert found.count == sum(len(t.ids) - int(skip_first) for t in texts)


def test_neighbours_that_read_one_input_each_have_its_moments(model: LanguageModel, texts: list[Encoded]) -> None:
    moments = second_moments(model, chosen_modules(model, ("q_proj", "v_proj", "o_proj")), texts, SETTINGS)
    q, v, o = (moments[f"model.layers.3.self_attn.{m}_proj"] for m in "qvo")
    assert torch.equal(q.xx, v.xx) and q.count == v.count and not torch.equal(q.xx, o.xx)
    assert not torch.equal(moments["model.layers.4.self_attn.q_proj"].xx, q.xx)


def test_a_model_without_a_cached_half_has_the_same_basis(new_model: NewModel, texts: list[Encoded]) -> None:
    whole, top = (whitened_basis(new_model(n), texts, SETTINGS) for n in (6, 3))
    assert set(top.factors) < set(whole.factors)
    for name, (a, b) in top.factors.items():
        np.testing.assert_allclose(a, whole.factors[name][0], rtol=0.02, atol=0.02 * np.abs(a).max())
        np.testing.assert_allclose(b, whole.factors[name][1], rtol=0.02, atol=0.02 * np.abs(b).max())


def test_the_model_is_left_as_it_was(model: LanguageModel, texts: list[Encoded]) -> None:
    whitened_basis(model, texts, SETTINGS)
    assert not any(m._forward_hooks for m in model.net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())


# -- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda m, t: whitened_basis(m, t, SETTINGS), lambda m, t: svd_basis(m, SETTINGS)])
def test_factors_are_bfloat16_values_and_the_same_every_time(
    model: LanguageModel, texts: list[Encoded], make: Any
) -> None:
    basis = make(model, texts)
    assert basis.sha256 == make(model, texts).sha256
    for a, b in basis.factors.values():
        for factor in (a, b):
            assert np.array_equal(torch.tensor(factor).bfloat16().float().numpy(), factor)


def test_every_linear_module_of_the_adapted_layers_or_those_that_are_named(
    model: LanguageModel, texts: list[Encoded]
) -> None:
    basis = whitened_basis(model, texts, SETTINGS)
    assert len(basis.factors) == 3 * 7 and basis.layout.dim == 21 * 16
    assert {name.split(".")[2] for name in basis.factors} == {"3", "4", "5"}
    some = whitened_basis(model, texts, replace(SETTINGS, modules=("q_proj", "down_proj")))
    assert {name.rsplit(".", 1)[-1] for name in some.factors} == {"q_proj", "down_proj"}
    for name, (a, b) in some.factors.items():
        np.testing.assert_array_equal(a, basis.factors[name][0])
        np.testing.assert_array_equal(b, basis.factors[name][1])


def test_options_make_another_basis(model: LanguageModel, texts: list[Encoded]) -> None:
    variants = [SETTINGS, replace(SETTINGS, centred=True), replace(SETTINGS, skip_first=True)]
    assert len({whitened_basis(model, texts, each).sha256 for each in variants}) == 3


def test_the_svd_basis_rebuilds_the_weight(model: LanguageModel) -> None:
    basis = svd_basis(model, replace(SETTINGS, rank=32, modules=("k_proj",)))
    for name, (a, b) in basis.factors.items():
        weight = model.net.get_submodule(name).weight.float().numpy()
        error = np.linalg.norm(b @ a - weight) / np.linalg.norm(weight)
        assert error < 0.01, "full rank: all but rounding"
    low = svd_basis(model, replace(SETTINGS, rank=4, modules=("k_proj",)))
    for name, (a, b) in low.factors.items():
        weight = model.net.get_submodule(name).weight.float().numpy()
        best = np.sqrt(np.square(np.linalg.svd(weight, compute_uv=False)[4:]).sum())
        assert np.linalg.norm(b @ a - weight) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("make", [lambda m, t, s: whitened_basis(m, t, s), lambda m, t, s: svd_basis(m, s)])
@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_that_does_not_fit_is_refused(model: LanguageModel, texts: list[Encoded], make: Any, rank: int) -> None:
    with pytest.raises(ModelError, match=rf"rank {rank} does not fit model\.layers\.3\.self_attn\."):
        make(model, texts, replace(SETTINGS, rank=rank))


def test_no_text_no_basis(model: LanguageModel) -> None:
    short = Encoded("short", torch.tensor([5]), torch.tensor([False]))
    for texts in ([], [short]):
        with pytest.raises(ModelError, match="no text"):
            whitened_basis(model, texts, SETTINGS)


# -- own samples --------------------------------------------------------------------------------------------------


def test_samples_are_fixed_by_their_seed_alone(model: LanguageModel) -> None:
    before = torch.get_rng_state()
    first, again, other = (own_samples(model, 6, 24, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a.ids, b.ids) for a, b in zip(first, other, strict=True))


def test_samples_hold_no_begin_token_and_end_where_the_model_ends_them(
    model: LanguageModel, texts: list[Encoded]
) -> None:
    begin, end = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    assert len(texts) == 24 and len({text.document for text in texts}) == 24
    for text in texts:
        ids = text.ids.tolist()
        assert 1 <= len(ids) <= 39 and end not in ids[:-1]
        assert text.target.tolist() == [False] + [True] * (len(ids) - 1)
    assert sum(begin in t.ids.tolist() for t in texts) < 12, "a random model draws it now and then"


def test_cold_samples_are_the_likeliest_text(model: LanguageModel) -> None:
    [text] = own_samples(model, 1, 12, seed=0, temperature=1e-4)
    ids = [model.tokenizer.bos_token_id]
    with torch.no_grad():
        for _ in range(11):
            ids.append(int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert text.ids.tolist() == ids[1 : len(text.ids) + 1]


def test_progress_is_told(model: LanguageModel, texts: list[Encoded]) -> None:
    told: list[tuple[int, int]] = []
    own_samples(model, 2, 5, seed=0, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told.clear()
    whitened_basis(model, texts, SETTINGS, progress=lambda done, of: told.append((done, of)))
    assert told and told[-1][0] == told[-1][1] == len(told)
