"""Arrays as bytes, whatever their order in memory: the one place that writes safetensors from NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save


def tensors_to_bytes(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return one safetensors file of `tensors`, each read back with the numbers it has here, and `metadata` as text.

    The library writes memory as it lies and calls it row by row: a transposed view would come back scrambled, and
    nothing would say so. Here every array is laid out in rows first.
    """
    return save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, dict(metadata or {}) or None)
