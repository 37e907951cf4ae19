"""What a token costs: nats of labels under a large vocabulary, without keeping the logits for the backward pass.

    nats_i = logsumexp(W h_i) - W_{y_i} h_i          d nats_i / d h_i = W^T (softmax(W h_i) - e_{y_i})

Logits and sums are float32 whatever the model computes in. The gradient by h is made in the forward pass, rows at a
time, so that memory never holds more than `rows` times the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def token_nats(hidden: Tensor, labels: Tensor, head: Tensor, head32: Tensor, rows: int = 256) -> Tensor:
    """Return -ln softmax(head h)[label] for each row: hidden [N, width], labels int64 [N], float32 [N].

    `head` [V, width] in the model's type, `head32` the same values in float32. Gradients flow to `hidden` only, in the
    model's type.
    """
    nats = _TokenNats.apply(hidden, labels, head, head32, rows)  # type: ignore[no-untyped-call]
    assert isinstance(nats, Tensor)
    return nats


class _TokenNats(torch.autograd.Function):
    """See `token_nats`; the logits of `rows` rows at a time are all that is ever held."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Tensor, head32: Tensor, rows: int) -> Tensor:
        losses, gradients = [], []
        for start in range(0, max(1, len(labels)), rows):
            h, y = hidden[start : start + rows], labels[start : start + rows, None]
            with _exact_products(head.dtype):
                logits = F.linear(h.float(), head32)
            picked = logits.gather(1, y)[:, 0]
            top = logits.amax(1, keepdim=True)
            logits.sub_(top).exp_()
            total = logits.sum(1, keepdim=True)
            losses.append(total.log()[:, 0] + top[:, 0] - picked)
            if ctx.needs_input_grad[0]:
                logits.div_(total).scatter_add_(1, y, logits.new_full(y.shape, -1.0))
                gradients.append(logits.to(head.dtype) @ head)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0][:, None].to(gradient.dtype), None, None, None, None


@contextmanager
def _exact_products(weights: torch.dtype) -> Iterator[None]:
    """Multiply bfloat16-valued float32 matrices in bfloat16 units with float32 sums and results: exact, twice as fast.

    Both factors hold bfloat16 values, so narrowing them inside the product loses nothing; the products are summed and
    returned in float32.
    """
    if weights != torch.bfloat16:
        yield
        return
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        backend.matmul.fp32_precision = before
