"""What record-level privacy costs in training: Opacus' steps over the same steps without, ours and stock PEFT's.

Both figures are ratios of CPU seconds of one thread, the median of turns in which each side takes the same steps on the
same documents with and without: per-document gradients, clip and noise on one side, one plain gradient on the other.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from client.model import Cached, Encoded, LanguageModel, batches_by_length, padded
from client.train import DocumentLoss, NormalisedStep, StepPlan, private_steps, quiet, trainable
from privacy.adapter import Basis
from simulation.bench.row import Row, less_is_better

NAME = "Opacus 1.6 make_private on PEFT LoRA r=8, q and v, all layers"
BATCH_TOKENS = 2048
PEER_BATCH = 8


def dp_row(path: Path, basis: Basis, documents: Sequence[Encoded], layers: int, steps: int = 4, tries: int = 3) -> Row:
    """Return the row `train.dp`: time with record-level privacy over time without; 1 is the least that there can be."""
    torch.set_num_threads(1)
    ours = _ours(path, basis, documents, layers, steps, tries)
    peer = _peer(path, documents, tries)
    same = (
        f"same {len(documents)} documents, base and precision; ours steps on all of them, the peer on batches of "
        f"{PEER_BATCH}; noise multiplier 1, clip 1, RDP accountant; making the engine counts; not the same: which "
        "numbers are trained; limit: privacy for nothing"
    )
    return less_is_better("train.dp", "time with over time without", ours, (NAME, peer), same, 1.0)


def _ours(path: Path, basis: Basis, documents: Sequence[Encoded], layers: int, steps: int, tries: int) -> float:
    model = LanguageModel.load(path, top_layers=layers)
    model.attach(basis)
    cached = [model.prefix(e) for e in documents]
    loss = DocumentLoss(model, model.cores().values())
    parameters = list(loss.parameters())
    plan = StepPlan(steps, 1.0, 1.0, 1.0, BATCH_TOKENS)

    def private() -> None:
        with quiet():
            private_steps(loss, NormalisedStep(parameters, 0.01), cached, plan, torch.Generator().manual_seed(0))

    return _ratio(private, lambda: _plain_steps(loss, parameters, cached, steps), tries)


def _plain_steps(
    loss: DocumentLoss, parameters: list[torch.nn.Parameter], cached: Sequence[Cached], steps: int
) -> None:
    """Take the same steps with one gradient for all documents together."""
    optimizer = NormalisedStep(parameters, 0.01)
    with trainable(parameters):
        for _ in range(steps):
            for batch in batches_by_length([len(d.encoded.ids) for d in cached], BATCH_TOKENS):
                rows = padded([cached[i] for i in batch])
                loss(rows.hidden, *rows.where, rows.labels).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _peer(path: Path, documents: Sequence[Encoded], tries: int) -> float:
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in documents], batch_first=True)
    target = torch.nn.utils.rnn.pad_sequence([e.target for e in documents], batch_first=True)
    loader = DataLoader(TensorDataset(ids, target), batch_size=PEER_BATCH)

    def private() -> None:
        with quiet():
            module, optimizer, batches = PrivacyEngine(accountant="rdp").make_private(
                module=net, optimizer=_adamw(net), data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0,
                poisson_sampling=False,
            )  # fmt: skip
            _pass(module, optimizer, batches)
            module.to_standard_module()

    net = _lora(path)
    return _ratio(private, lambda: _pass(net, _adamw(net), loader), tries)


def _lora(path: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    net: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    net.config.use_cache = False
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(net, config).train()


def _adamw(net: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)


def _pass(net: Any, optimizer: Any, batches: Any) -> None:
    """Take one step on each batch: the mean over documents of each one's mean loss."""
    for ids, target in batches:
        optimizer.zero_grad()
        logits = net(input_ids=ids).logits[:, :-1]
        nats = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        counted = target[:, 1:].float()
        ((nats.view_as(counted) * counted).sum(1) / counted.sum(1).clamp(min=1)).mean().backward()
        optimizer.step()


def _ratio(private: Callable[[], None], plain: Callable[[], None], tries: int) -> float:
    logging.getLogger("opacus").setLevel(logging.ERROR)
    found = []
    for number in range(tries + 1):
        with_ = _seconds(private)
        without = _seconds(plain)
        if number:
            found.append(with_ / without)
    return statistics.median(found)


def _seconds(action: Callable[[], None]) -> float:
    begun = time.process_time()
    action()
    return time.process_time() - begun
