"""Attention whose backward pass is matrix products: what bfloat16 on a CPU needs for texts of a few hundred tokens.

    O = softmax(Q K^T s) V      the forward pass is torch's own, bit for bit; kept are Q, K, V and O
    P is computed again, dV = P^T dO, dS = P (dO V^T - rowsum(dO O)), dQ = dS K s, dK = dS^T Q s

torch's own backward pass over blocks takes ten times its forward pass there. Everywhere else (no gradient, a mask, a
GPU, float32, long texts) torch's own attention answers. Source of the formulas: Dao et al., FlashAttention, 2022.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME: Final = "confide"
MOST_TOKENS: Final = 512  # of one text: P is [texts, heads, tokens, tokens] in float32, of one layer at a time


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        ctx.save_for_backward(q, k, v, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (q, k, v, out), (grad,) = ctx.saved_tensors, grads
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ k.transpose(-1, -2)).float().mul_(ctx.scale).masked_fill_(later, -torch.inf)
        p = scores.softmax(-1)
        inner = (grad.float() * out.float()).sum(-1, keepdim=True)
        ds = (grad @ v.transpose(-1, -2)).float().sub_(inner).mul_(p).mul_(ctx.scale).to(q.dtype)
        return ds @ k, ds.transpose(-1, -2) @ q, p.to(q.dtype).transpose(-1, -2) @ grad, None


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **more: Any
) -> tuple[Tensor, None]:
    """Return what transformers' `sdpa` attention returns: [texts, tokens, heads, width], and no weights."""
    ours = (
        query.requires_grad
        and query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and attention_mask is None
        and 1 < query.shape[2] == key.shape[2] <= MOST_TOKENS
        and not more.get("dropout")
        and getattr(module, "is_causal", False)
        and more.get("is_causal") in (None, True)
        and more.keys() <= {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"}
        and more.get("sliding_window") is None
    )
    if not ours:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = more.get("scaling") or query.shape[-1] ** -0.5
    out: Tensor = _Causal.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


def use(net: Any) -> None:
    """Let a network that uses torch's own attention use this one; any other stays as it is."""
    if net.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        net.set_attn_implementation(NAME)
