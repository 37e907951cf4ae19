"""How a base model is loaded: where it lives, and in how many bits its frozen layers are held.

    int8    W ~ s_row q,   q int8 [out, in], one scale a row      (torchao, weights only; sums in the model's own type)

Embedding and head stay as they are: they are one matrix in most small models, and every loss goes through the head. An
adapter's gradient flows through the rounded weights, so it is exact for the model that is served. Four bits are not
offered: torchao's packed form needs a kernel that is not on this machine's processors, and unpacked they take eight.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from privacy.errors import ConfigError, ModelError

NONE: Final = "none"
KINDS: Final = (NONE, "int8")


def load_net(path: Path | str, dtype: torch.dtype | None, quantize: str) -> Any:
    """Return the network in `path` on the chosen device; quantised layers are so one after the other as they are read.

    Raises ConfigError for a kind that is none of `KINDS`, ModelError where torchao is missing.
    """
    if quantize not in KINDS:
        raise ConfigError(f"quantize must be one of {', '.join(KINDS)}, not {quantize!r}")
    more = {} if quantize == NONE else {"quantization_config": _int8()}
    net: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", **more)
    return net.to(chosen_device())


def chosen_device() -> str:
    """Return where models live: on the GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _int8() -> Any:
    for noisy in ("torchao", "torch.utils._pytree"):  # kernels for cards that are not there
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        from torchao.quantization import Int8WeightOnlyConfig
    except ImportError:
        raise ModelError("quantize=int8 needs torchao: install the extra `quantized`") from None
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def is_quantized(weight: Tensor) -> bool:
    """Return whether a weight is held in fewer bits than it computes in."""
    return hasattr(weight, "qdata")


def plain(weight: Tensor) -> Tensor:
    """Return a weight as an ordinary tensor: what a quantised one stands for."""
    made: Tensor = weight.dequantize() if is_quantized(weight) else weight
    return made.detach()


def held_bytes(net: nn.Module) -> int:
    """Return how many bytes the parameters take; tied ones once."""
    found = {id(p): p for p in net.parameters()}
    return sum(_bytes(p) for p in found.values())


def _bytes(weight: Tensor) -> int:
    if not is_quantized(weight):
        return int(weight.nbytes)
    return sum(part.nbytes for part in vars(weight).values() if isinstance(part, Tensor))
