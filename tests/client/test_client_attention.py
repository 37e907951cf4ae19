"""Attention's own backward pass against torch's, and where it is left to torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from client import attention
from tests.client.conftest import NewModel

CAUSAL: Any = SimpleNamespace(is_causal=True, num_key_value_groups=3)


def gradients(call: Any, tensors: tuple[Tensor, ...], grad: Tensor, dtype: torch.dtype) -> list[Tensor]:
    given = [t.to(dtype).requires_grad_(True) for t in tensors]
    out, _ = call(CAUSAL, *given, None, scaling=0.125)
    return [out.detach(), *torch.autograd.grad(out, given, grad.to(dtype))]


@pytest.mark.parametrize("tokens", [2, 37, 200])
def test_gradients_are_as_near_to_float32_as_torchs_own(tokens: int) -> None:
    torch.manual_seed(tokens)
    q = torch.randn(2, 9, tokens, 64)
    tensors = (q, torch.randn(2, 3, tokens, 64), torch.randn(2, 3, tokens, 64))
    grad = torch.randn(2, tokens, 9, 64)
    exact = gradients(sdpa_attention_forward, tensors, grad, torch.float32)
    theirs = gradients(sdpa_attention_forward, tensors, grad, torch.bfloat16)
    ours = gradients(attention.attention, tensors, grad, torch.bfloat16)
    assert torch.equal(ours[0], theirs[0]), "the forward pass is torch's own"
    for each, other, wanted in zip(ours[1:], theirs[1:], exact[1:], strict=True):
        near, usual = ((found.float() - wanted).norm() / wanted.norm() for found in (each, other))
        assert near < 1.5 * usual + 1e-3
        assert near < 0.02


@pytest.mark.parametrize(
    ("dtype", "tokens", "mask", "gradient"),
    [
        (torch.float32, 8, False, True),
        (torch.bfloat16, attention.MOST_TOKENS + 1, False, True),
        (torch.bfloat16, 8, True, True),
        (torch.bfloat16, 8, False, False),
    ],
)
def test_what_it_is_not_made_for_is_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int, mask: bool, gradient: bool
) -> None:
    monkeypatch.setattr(attention._Causal, "apply", lambda *_: pytest.fail("not torch's own"))
    query, key, value = (torch.randn(1, heads, tokens, 8, dtype=dtype) for heads in (3, 1, 1))
    everywhere = torch.zeros(1, 1, tokens, tokens, dtype=dtype) if mask else None
    out, _ = attention.attention(CAUSAL, query.requires_grad_(gradient), key, value, everywhere)
    assert out.shape == (1, tokens, 3, 8)


def test_a_model_uses_it_where_it_trains(new_model: NewModel, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    real: Any = attention._Causal.apply

    def seen(*given: Any) -> Any:
        called.append(given[0].shape)
        return real(*given)

    monkeypatch.setattr(attention._Causal, "apply", seen)
    model = new_model(3, torch.bfloat16)
    model.add_own(2, ["q_proj"])
    model.activate("own")
    document = model.prefix(model.encode_text("I walk to the sea.", [(0, 18)], "d", 64))
    model.document_nats([document])
    assert not called
    parameters = [p for n, p in model.net.named_parameters() if ".own." in n]
    for p in parameters:
        nn.init.normal_(p.requires_grad_(True), std=0.1)
    model.top(document.hidden[None]).sum().backward()
    assert called
    assert all(p.grad is not None and bool(p.grad.abs().sum()) for p in parameters)
