"""Masks: AES-256-CTR keystreams added to uint32 vectors in place, block by block, over one thread or several."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

BLOCK: Final = 1 << 16  # words: block, keystream and zeros fit a core's second-level cache together
WORDS_PER_COUNTER: Final = 4
KEYS_AT_ONCE: Final = 256  # open cipher contexts; bounds memory when a server removes tens of thousands of masks


class Stream(NamedTuple):
    """One keystream of 32 bytes of key, to be added (+1) or subtracted (-1)."""

    key: bytes
    sign: int


def add_streams(total: NDArray[np.uint32], streams: Sequence[Stream], threads: int = 1) -> None:
    """Add to `total`, uint32 [dim], in place, every stream with its sign, modulo 2^32.

        total <- total + sum_k sign_k PRG(key_k),   PRG(key) = AES-256-CTR(key, counter from 0) as little-endian uint32

    A counter that starts at zero is safe, because each key covers exactly one vector: it is derived for one pair, one
    round and one set of devices, from secrets made for that round. Every value of a word is equally likely (no modulus,
    no rejection). Work is cut over the words, so threads share no memory; cipher and addition run outside the
    interpreter's lock.
    """
    pieces = max(1, min(threads, -(-total.size // BLOCK)))
    step = -(-total.size // (pieces * WORDS_PER_COUNTER)) * WORDS_PER_COUNTER
    ranges = [(start, min(start + step, total.size)) for start in range(0, total.size, step)]
    if len(ranges) == 1:
        _add_range(total, streams, *ranges[0])
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        for done in [pool.submit(_add_range, total, streams, *piece) for piece in ranges]:
            done.result()


def _add_range(total: NDArray[np.uint32], streams: Sequence[Stream], start: int, end: int) -> None:
    size = min(BLOCK, end - start)
    zeros, keystream = bytes(4 * size), bytearray(4 * size)
    words = np.frombuffer(keystream, dtype="<u4")
    counter = modes.CTR((start // WORDS_PER_COUNTER).to_bytes(16, "big"))
    for first in range(0, len(streams), KEYS_AT_ONCE):
        some = streams[first : first + KEYS_AT_ONCE]
        ciphers = [(Cipher(algorithms.AES256(stream.key), counter).encryptor(), stream.sign) for stream in some]
        for at in range(start, end, size):
            block = total[at : min(at + size, end)]
            source = zeros if block.size == size else zeros[: 4 * block.size]
            for cipher, sign in ciphers:
                cipher.update_into(source, keystream)
                (np.add if sign > 0 else np.subtract)(block, words[: block.size], out=block)
