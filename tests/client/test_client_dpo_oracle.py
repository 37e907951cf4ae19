"""The loss of `client.dpo` and its gradients against TRL's trainer, on the very same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from client.dpo import Preferred, dpo_loss, pair_likelihoods, reference
from client.model import GLOBAL, OWN, Encoded, LanguageModel
from client.own import own_tensors, reset_own
from client.train import trainable

PAIRS = [
    {"prompt": "Will you come?", "chosen": " Yes, at once.", "rejected": " Perhaps some other day."},
    {"prompt": "So?", "chosen": " I would rather walk.", "rejected": " No."},
    {"prompt": "Tea or coffee, then?", "chosen": " Tea", "rejected": " Whatever there is in the house, thank you."},
]
BETA = 0.3


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def moved_own(model: LanguageModel) -> dict[str, torch.nn.Parameter]:
    """Return the parameters of a fresh own adapter that was moved away from the identity."""
    model.add_own(4, ("q_proj", "v_proj", "down_proj"))
    reset_own(model, seed(1))
    with torch.no_grad():
        for name, p in own_tensors(model).items():
            if ".lora_B." in name:
                p.copy_(torch.randn(p.shape, generator=seed(2)) * 0.05)
    model.activate(GLOBAL, OWN)
    return own_tensors(model)


def test_loss_and_gradients_are_those_of_trl(new_model: Any, tmp_path: Path) -> None:
    how_many = len(PAIRS)
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model: LanguageModel = new_model(dtype=torch.float32)
    parameters = moved_own(model)
    base = new_model(dtype=torch.float32).net
    settings = trl.DPOConfig(
        output_dir=str(tmp_path), beta=BETA, per_device_train_batch_size=how_many, max_length=None, report_to=[],
        use_cpu=True, gradient_checkpointing=False, bf16=False, disable_dropout=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=model.net, ref_model=base, args=settings, processing_class=model.tokenizer,
        train_dataset=datasets.Dataset.from_list(PAIRS),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    for p in model.net.parameters():
        p.requires_grad_(False)
    with trainable(list(parameters.values())):
        theirs = trainer.compute_loss(model.net, inputs)
        theirs.backward()
        theirs = theirs.detach()
        wanted = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        for p in parameters.values():
            p.grad = None
        model.net.config.use_cache = False
        pairs = [preferred(model, inputs, i, how_many) for i in range(how_many)]
        model.activate(GLOBAL)
        before = reference(model, pairs)
        model.activate(GLOBAL, OWN)
        for p in parameters.values():
            p.requires_grad_(True)
        ours = dpo_loss(pair_likelihoods(model, pairs), before, BETA).mean()
        ours.backward()
        ours = ours.detach()
    assert abs(float(ours) - float(theirs)) < 1e-5 and abs(float(ours) - 0.6931) > 1e-3, (ours, theirs)
    assert set(wanted) == set(parameters)
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 1e-3
    for name, gradient in wanted.items():
        mine = parameters[name].grad
        assert mine is not None and float((mine - gradient).abs().max()) < 1e-5, name


def preferred(model: LanguageModel, inputs: dict[str, torch.Tensor], i: int, count: int) -> Preferred:
    """Return pair i of TRL's batch, which holds all chosen texts and then all rejected ones."""

    def one(row: int) -> Any:
        length = int(inputs["attention_mask"][row].sum())
        ids, mask = inputs["input_ids"][row, :length], inputs["completion_mask"][row, :length].bool()
        return model.prefix(Encoded(f"pair {row}", ids, mask))

    return Preferred(one(i), one(i + count))
