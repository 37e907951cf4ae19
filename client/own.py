"""A person's own adapter as tensors: fresh, put back, and exported where a record-level guarantee allows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from client.model import OWN, LanguageModel
from privacy.adapter import Matrix, lora_files
from privacy.errors import ExportRefused, ModelError
from privacy.files import new_folder, write_flushed

PROMPT, PROMPT_START = "prompt", 0.1
DOCUMENT, CHOICE = "document", "choice"


@dataclass(frozen=True)
class RecordPrivacy:
    """What Opacus' RDP accountant says of one own adapter: add or remove one `unit`.

    That is a document, or a choice: one prompt with all that its person preferred behind it.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    unit: str = DOCUMENT


def own_modules(model: LanguageModel) -> list[nn.Module]:
    """Return what holds the numbers of the adapter `own`: halves A and B in turn, IA3's scales, or the soft prompt."""
    if model.prompt is not None:
        return [model.prompt]
    ends = (f".lora_A.{OWN}", f".lora_B.{OWN}", ".ia3_l")
    return [m for n, m in model.net.named_modules() if n.endswith(ends)]


def own_tensors(model: LanguageModel) -> dict[str, nn.Parameter]:
    """Return the parameters of the adapter `own` by full name."""
    if model.prompt is not None:
        return dict(model.prompt.named_parameters(prefix=PROMPT))
    return {n: p for n, p in model.net.named_parameters() if (".lora_" in n or ".ia3_l." in n) and f".{OWN}" in n}


@torch.no_grad()
def load_own(model: LanguageModel, tensors: dict[str, Tensor]) -> None:
    """Copy an own adapter's tensors into the model; raises ModelError where names or shapes differ."""
    here = own_tensors(model)
    if {name: p.shape for name, p in here.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ModelError("this own adapter was trained for other modules or another rank")
    for name, parameter in here.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def reset_own(model: LanguageModel, generator: torch.Generator) -> None:
    """Make the own adapter a fresh one: A uniform as PEFT draws it, B zero, scales one: it starts as the identity.

    A soft prompt is no identity: it starts as small random vectors.
    """
    for name, p in own_tensors(model).items():
        if name.startswith(f"{PROMPT}."):
            p.copy_(torch.randn(p.shape, generator=generator) * PROMPT_START)
        elif ".ia3_l." in name:
            p.fill_(1.0)
        elif ".lora_A." in name:
            bound = 1.0 / math.sqrt(p.shape[1])
            p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * bound)
        else:
            p.zero_()


def save_own(folder: Path, tensors: Mapping[str, Tensor], privacy: RecordPrivacy | None, base_model_name: str) -> None:
    """Write what `train_own` returned as the PEFT folder `folder`, whole or not at all, with its guarantee beside it.

    Stock PEFT loads it beside the release's `global`, on top of which it was trained: both must be active.
    Raises ExportRefused without record-level privacy, ModelError for tensors that are no LoRA.
    """
    if privacy is None:
        raise ExportRefused(
            "an own adapter leaves its device only if trained with record-level privacy; this one was not"
        )
    guarantee = {"adjacency": "add or remove one", "sampler": "poisson", **asdict(privacy)}
    files = lora_files(own_factors(tensors), base_model_name)
    files["privacy.json"] = json.dumps(guarantee, indent=2, sort_keys=True).encode() + b"\n"
    with new_folder(folder) as beside:
        for name, data in files.items():
            write_flushed(beside / name, data)


def own_factors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Matrix, Matrix]]:
    """Return the LoRA factors module -> (A [r, d_in], B [d_out, r]) of an own adapter's tensors, sorted by module."""
    end_a, end_b = f".lora_A.{OWN}.weight", f".lora_B.{OWN}.weight"
    modules = sorted(name.removesuffix(end_a) for name in tensors if name.endswith(end_a))
    if set(tensors) != {module + end for module in modules for end in (end_a, end_b)} or not modules:
        raise ModelError("these tensors are not one A and one B per module")
    return {module: (_array(tensors[module + end_a]), _array(tensors[module + end_b])) for module in modules}


def _array(tensor: Tensor) -> Matrix:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
