"""The layer by which a shared core stands inside PEFT, and how PEFT calls it.

    y = W x + B R A x       A, B and W in the base's own type (bfloat16 where the CPU has it), R in float32

PEFT's own path would copy what comes in and what goes out into float32 for the product with A and B, and multiply by a
scale that is 1: a quarter of a step's time. In a float32 model both paths are the same numbers, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from torch.nn import functional


class CoreA(nn.Sequential):
    """PEFT's `lora_A` for a core: x -> R (A x), A frozen, R [r, r] the only trained numbers.

    `weight` = R A, so that PEFT's own code (casts, merges, export) takes it for an ordinary `lora_A`. Opacus sees
    `core` as a plain Linear.
    """

    def __init__(self, a: Tensor, dtype: torch.dtype = torch.float32) -> None:
        rank, width = a.shape
        basis, core = nn.Linear(width, rank, bias=False, dtype=dtype), nn.Linear(rank, rank, bias=False)
        super().__init__()
        self.add_module("basis", basis)
        self.add_module("core", core)
        with torch.no_grad():
            basis.weight.copy_(a)
            core.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return R A x in float32: x [..., d_in] of the basis' type, [..., r]."""
        core, basis = self.get_submodule("core"), self.get_submodule("basis")
        made: Tensor = core(basis(x).float())
        return made

    @property
    @torch.no_grad()
    def weight(self) -> Tensor:
        """Return R A in the basis' type, [r, d_in], outside any gradient."""
        core, basis = self.get_submodule("core"), self.get_submodule("basis")
        assert isinstance(core, nn.Linear) and isinstance(basis, nn.Linear)
        return (core.weight @ basis.weight.float()).to(basis.weight.dtype)


class CoreVariant(LoraVariant):
    """How PEFT calls a core, see above; what it merges is what it would merge of an ordinary adapter."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return `result`, the layer's own output, with what the core adds."""
        b = module.lora_B[active_adapter].weight
        return result + functional.linear(module.lora_A[active_adapter](x).to(b.dtype), b)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight with the core in it."""
        made: Tensor = orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return made

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Put the core into the weight."""
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the core."""
        made: Tensor = orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return made
