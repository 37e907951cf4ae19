"""The loss of a token is torch's cross entropy, value and gradient, in the model's type and in any number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from client.token_loss import token_nats

WIDTH, VOCABULARY = 48, 977


def problem(dtype: torch.dtype, rows: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(rows, WIDTH, generator=generator).to(dtype)
    head = (0.5 * torch.randn(VOCABULARY, WIDTH, generator=generator)).to(dtype)
    return hidden, torch.randint(VOCABULARY, (rows,), generator=generator), head


def ours(hidden: Tensor, labels: Tensor, head: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    leaf = hidden.clone().requires_grad_()
    nats = token_nats(leaf, labels, head, head.float(), rows)
    weights = torch.linspace(0.1, 2.0, len(nats))
    (nats * weights).sum().backward()
    assert leaf.grad is not None
    return nats.detach(), leaf.grad


def theirs(hidden: Tensor, labels: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Return torch's loss and gradient in float64 on the very same (rounded) numbers."""
    leaf = hidden.double().requires_grad_()
    nats = F.cross_entropy(leaf @ head.double().T, labels, reduction="none")
    (nats * torch.linspace(0.1, 2.0, len(nats), dtype=torch.float64)).sum().backward()
    assert leaf.grad is not None
    return nats.detach(), leaf.grad


@pytest.mark.parametrize("rows", [1, 10, 37, 256])
def test_float32_loss_and_gradient_are_torchs(rows: int) -> None:
    hidden, labels, head = problem(torch.float32)
    nats, gradient = ours(hidden, labels, head, rows)
    wanted, wanted_gradient = theirs(hidden, labels, head)
    torch.testing.assert_close(nats.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [7, 256])
def test_bfloat16_loss_is_float32_exact_and_its_gradient_is_bfloat16s(rows: int) -> None:
    hidden, labels, head = problem(torch.bfloat16)
    nats, gradient = ours(hidden, labels, head, rows)
    wanted, wanted_gradient = theirs(hidden, labels, head)
    assert nats.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(nats.double(), wanted, rtol=1e-5, atol=2e-5)  # bfloat16 logits would be wrong by 0.05
    error = (gradient.double() - wanted_gradient).norm() / wanted_gradient.norm()
    assert error < 0.01


def test_logits_far_apart_do_not_overflow() -> None:
    hidden, labels, head = problem(torch.float32)
    nats, gradient = ours(hidden * 400, labels, head, 256)
    assert torch.isfinite(nats).all() and torch.isfinite(gradient).all()
    torch.testing.assert_close(nats.double(), theirs(hidden * 400, labels, head)[0], rtol=1e-5, atol=1e-2)


def test_no_labels_no_nats() -> None:
    hidden, labels, head = problem(torch.float32)
    nats, gradient = ours(hidden[:0], labels[:0], head, 256)
    assert nats.shape == (0,) and gradient.shape == (0, WIDTH)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, labels, head = problem(torch.float32)
    nats = token_nats(hidden, labels, head, head.float())
    assert not nats.requires_grad
