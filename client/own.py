"""A person's own adapter as tensors: fresh, put back, and exported where a record-level guarantee allows it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from client.model import OWN, LanguageModel
from privacy.errors import ModelError


def own_modules(model: LanguageModel) -> list[nn.Module]:
    """Return the linear halves of the adapter `own`, A and B of every module in turn."""
    return [m for n, m in model.net.named_modules() if n.endswith((f".lora_A.{OWN}", f".lora_B.{OWN}"))]


def own_tensors(model: LanguageModel) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapter `own` by full name."""
    return {n: p for n, p in model.net.named_parameters() if ".lora_" in n and f".{OWN}." in n}


@torch.no_grad()
def load_own(model: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """Copy an own adapter's tensors into the model; raises ModelError where the names differ."""
    here = own_tensors(model)
    if set(here) != set(tensors):
        raise ModelError("this own adapter was trained for other modules")
    for name, parameter in here.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def reset_own(model: LanguageModel, generator: torch.Generator) -> None:
    """Make the own adapter a fresh one: A uniform as PEFT draws it, B zero, so that it starts as the identity."""
    for name, p in own_tensors(model).items():
        if ".lora_A." in name:
            bound = 1.0 / math.sqrt(p.shape[1])
            p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * bound)
        else:
            p.zero_()
