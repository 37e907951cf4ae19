"""The layer by which a shared core stands inside PEFT."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CoreA(nn.Sequential):
    """PEFT's `lora_A` for a core: x -> R (A x), A frozen, R [r, r] the only trained numbers.

    `weight` = R A, so that PEFT's own code (casts, merges, export) takes it for an ordinary `lora_A`. Opacus sees
    `core` as a plain Linear.
    """

    def __init__(self, a: Tensor) -> None:
        rank, width = a.shape
        basis, core = nn.Linear(width, rank, bias=False), nn.Linear(rank, rank, bias=False)
        super().__init__()
        self.add_module("basis", basis)
        self.add_module("core", core)
        with torch.no_grad():
            basis.weight.copy_(a)
            core.weight.zero_()

    @property
    def weight(self) -> Tensor:
        """Return R A, float32 [r, d_in]."""
        core, basis = self.get_submodule("core"), self.get_submodule("basis")
        assert isinstance(core, nn.Linear) and isinstance(basis, nn.Linear)
        return core.weight @ basis.weight
