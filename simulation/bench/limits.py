"""What this machine can do at best, measured in the run that is compared with it: one thread, best of a few tries.

gemm        multiplications and additions counted as one, a second: a [1024, d] times [d, e] product of the model's
keystream   bytes a second of AES-256-CTR, written into memory that is there
memory      bytes a second read from memory that no cache holds
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TRIES = 5
READ_BYTES = 2**28
STREAM_BYTES = 2**22


@dataclass(frozen=True)
class Limits:
    """Rates a second of one thread: multiplications in float32 and bfloat16, keystream bytes, bytes read."""

    gemm_float32: float
    gemm_bfloat16: float
    keystream: float
    memory: float

    def as_json(self) -> dict[str, float]:
        """Return the rates by name."""
        return asdict(self)


def machine_limits() -> Limits:
    """Return the rates of this machine; takes a few seconds."""
    torch.set_num_threads(1)
    return Limits(gemm_rate(torch.float32), gemm_rate(torch.bfloat16), keystream_rate(), read_rate())


def gemm_rate(dtype: torch.dtype) -> float:
    """Return the multiplications a CPU second of one thread on a shape of SmolLM2's."""
    a, b = torch.randn(1024, 576).to(dtype), torch.randn(576, 1536).to(dtype)

    def ten() -> None:
        for _ in range(10):
            torch.mm(a, b)

    return 10 * a.shape[0] * a.shape[1] * b.shape[1] / _least(ten)


def keystream_rate() -> float:
    """Return the bytes of AES-256-CTR keystream a CPU second."""
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, stream = bytes(STREAM_BYTES), bytearray(STREAM_BYTES + 16)
    return STREAM_BYTES / _least(lambda: encryptor.update_into(zeros, stream))


def read_rate() -> float:
    """Return the bytes a CPU second that a dot product reads from two arrays far beyond every cache."""
    one, other = np.ones(READ_BYTES // 8, dtype=np.float32), np.ones(READ_BYTES // 8, dtype=np.float32)
    return READ_BYTES / _least(lambda: np.dot(one, other))


def _least(action: Callable[[], object]) -> float:
    action()
    found = []
    for _ in range(TRIES):
        begun = time.process_time()
        action()
        found.append(time.process_time() - begun)
    return max(min(found), 1e-9)
