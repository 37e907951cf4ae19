"""Training against stock PEFT: LoRA rank 8 on q and v of all layers, AdamW, whole sequences every step, and its base in
float32 as it comes, or in bfloat16.

Both sides read the same documents in the same batches and learn from the same target tokens. Ours: bfloat16 base where
the CPU has it, cores on the top layers, frozen layers computed once per document and counted in, per-document gradients
and clipping by Opacus (the peer has neither). Times are CPU seconds of one thread, since machines are shared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from client.model import Cached, Encoded, LanguageModel
from client.train import DocumentLoss, per_document_gradients, quiet
from privacy.adapter import Basis
from simulation.bench.limits import gemm_rate
from simulation.bench.row import Row

PEER = "PEFT LoRA r=8, q and v, all layers, {dtype}, AdamW"
PRECISIONS = {"": torch.float32, ".bf16": torch.bfloat16}  # of the peer's base, by what its rows are called
GAIN = 0.08  # what both are to reach, if both do
STEP = 0.08  # ours: AdamW's step in the whitened coordinates, all numbers together (docs/utility.md: 6e-4 for 17,920)
SAME = "same documents, batches, targets and thread; not the same: number and place of trained weights, base precision"
Batches = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Side:
    """One contestant: `prepare` once per run, `step` on a batch of indices, `gain` on held-out documents (untimed)."""

    name: str
    prepare: Callable[[], None]
    step: Callable[[Sequence[int]], None]
    loss: Callable[[], float]


def train_rows(
    model_path: Path,
    basis: Basis,
    train: list[Encoded],
    test: list[Encoded],
    layers: int,
    epochs: int,
    missing: Callable[[str], None],
) -> list[Row]:
    """Return `train.step` (tokens a CPU second), `train.to_gain` (CPU seconds to an equal loss), and both `.bf16`.

    `missing` gets a line in place of a `to_gain` where a side came to no gain at all.
    """
    torch.set_num_threads(1)
    order = _batches(train, epochs)
    tokens = epochs * sum(len(e.ids) for e in train)
    model = LanguageModel.load(model_path, top_layers=layers)
    model.attach(basis)
    own_seconds, own_curve = _run(_ours(model, train, test), order)
    limit = tokens / (_flops(model, train) * epochs / gemm_rate(torch.bfloat16))
    rows = []
    for kind, dtype in PRECISIONS.items():
        peer_seconds, peer_curve = _run(_peer(model_path, train, test, dtype), order)
        name = PEER.format(dtype=str(dtype).removeprefix("torch."))
        rows.append(
            Row(
                work=f"train.step{kind}",
                unit="tokens per CPU second",
                ours=tokens / own_seconds,
                peer=tokens / peer_seconds,
                peer_name=name,
                ratio=peer_seconds / own_seconds,
                limit=limit,
                limit_ratio=tokens / own_seconds / limit,
                same=SAME,
            )
        )
        work = f"train.to_gain{kind}"
        if all(min(loss for _, loss in curve) < curve[0][1] for curve in (own_curve, peer_curve)):
            rows.append(to_gain(work, own_curve, name, peer_curve))
        else:
            missing(f"{work}: not run: a side learned nothing of these documents")
    return rows


def to_gain(work: str, ours: list[tuple[float, float]], name: str, peer: list[tuple[float, float]]) -> Row:
    """Return the seconds that each side needs to `GAIN`, or to the worse of the two best losses where one stops short.

    No limit stands beside it: how few steps would do, nobody knows.
    """
    base = min(ours[0][1], peer[0][1])  # they differ by the rounding of a base in bfloat16
    target = max(min(loss for _, loss in ours), min(loss for _, loss in peer), base * (1 - GAIN))
    first = [seconds_to(target, curve) for curve in (ours, peer)]
    return Row(
        work=work,
        unit=f"CPU seconds to {100 * (1 - target / base):.1f} % under base",
        ours=first[0],
        peer=first[1],
        peer_name=name,
        ratio=first[1] / first[0],
        limit=None,
        limit_ratio=None,
        same=SAME,
    )


def seconds_to(target: float, curve: Sequence[tuple[float, float]]) -> float:
    """Return when a curve of (seconds, loss) first comes down to `target`, in a straight line between two looks.

    Raises StopIteration where it never does.
    """
    i = next(i for i, (_, loss) in enumerate(curve) if loss <= target)
    if i == 0:
        return curve[0][0]
    (before, high), (after, low) = curve[i - 1], curve[i]
    return before + (after - before) * (high - target) / (high - low)


def _run(side: Side, order: Batches) -> tuple[float, list[tuple[float, float]]]:
    """Return the CPU seconds of all steps and the curve of (seconds, held-out loss), measured outside the clock."""
    spent, curve = 0.0, [(0.0, side.loss())]
    started = time.process_time()
    side.prepare()
    spent += time.process_time() - started
    checks = set(np.linspace(0, len(order) - 1, 7).astype(int)[1:].tolist())
    for i, batch in enumerate(order):
        started = time.process_time()
        side.step(batch)
        spent += time.process_time() - started
        if i in checks:
            curve.append((spent, side.loss()))
    return spent, curve


def _batches(train: Sequence[Encoded], epochs: int, size: int = 8) -> list[list[int]]:
    rng = np.random.default_rng(0)
    order: list[list[int]] = []
    for _ in range(epochs):
        shuffled = rng.permutation(len(train)).tolist()
        order += [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
    return order


def _ours(model: LanguageModel, train: list[Encoded], test: list[Encoded]) -> Side:
    cached: list[Cached] = []
    held_out = [model.prefix(e) for e in test]
    loss = DocumentLoss(model, model.cores().values())
    parameters = list(loss.parameters())
    rate = STEP / math.sqrt(sum(p.numel() for p in parameters))
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    wrapped: list[GradSampleModule] = []

    def prepare() -> None:
        cached.extend(model.prefix(e) for e in train)
        for p in parameters:
            p.requires_grad_(True)
        wrapped.append(GradSampleModule(loss))

    def step(batch: Sequence[int]) -> None:
        with quiet():
            per_document_gradients(wrapped[0], [cached[i] for i in batch])
        samples: list[Any] = [p.grad_sample for p in parameters]  # type: ignore[attr-defined]
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
        for p, s in zip(parameters, samples, strict=True):
            p.grad = torch.einsum("n,n...->...", (8.0 / norms).clamp(max=1.0), s) / len(batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for p in parameters:
            p.grad_sample = None  # type: ignore[attr-defined]

    return Side("ours", prepare, step, lambda: _mean_nats(model, held_out))


def _mean_nats(model: LanguageModel, documents: Sequence[Cached]) -> float:
    nats = torch.cat(model.document_nats(documents))
    return float(nats.double().mean())


def _peer(model_path: Path, train: list[Encoded], test: list[Encoded], dtype: torch.dtype) -> Side:
    from transformers import AutoModelForCausalLM

    net: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
    net.config.use_cache = False
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    peft: Any = get_peft_model(net, config)
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.0)

    def nats(documents: Sequence[Encoded]) -> torch.Tensor:
        ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in documents], batch_first=True)
        target = torch.nn.utils.rnn.pad_sequence([e.target for e in documents], batch_first=True)
        logits = peft(input_ids=ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        return loss[target[:, 1:].flatten()]

    def step(batch: Sequence[int]) -> None:
        optimizer.zero_grad(set_to_none=True)
        nats([train[i] for i in batch]).mean().backward()
        optimizer.step()

    @torch.no_grad()
    def held_out_loss() -> float:
        return float(torch.cat([nats([e]) for e in test]).double().mean())

    return Side("peer", lambda: None, step, held_out_loss)


def _flops(model: LanguageModel, train: Sequence[Encoded]) -> float:
    """Return the multiplications that ours cannot do without: prefix forward, top and head forward and backward."""
    layer = sum(m.weight.numel() for m in model.linear_modules().values()) / (model.depth - model.first)
    tokens, targets = sum(len(e.ids) for e in train), sum(e.own_tokens for e in train)
    return tokens * layer * (model.first + 2 * (model.depth - model.first)) + 2 * targets * model.head.numel()
