"""The hash by which a query names the adapters that it starts from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privacy.adapter import AdapterLayout
from privacy.canonical import sha256_hex


def state_sha256(basis_sha256: str, layout: AdapterLayout, slots: NDArray[np.float64]) -> str:
    """Return the hash of the basis and of the float32 cores of every slot, float64 [slots, dim], in order."""
    parts = [sha256_hex(layout.flatten(layout.unflatten(row)).astype("<f4").tobytes()) for row in slots]
    return sha256_hex("/".join(["confide-state/1", basis_sha256, *parts]).encode("ascii"))
