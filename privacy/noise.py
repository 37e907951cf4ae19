"""Discrete Gaussian noise as an exact function of a keystream.

Noise is a pure function of a device's 32-byte noise key and the name of a stream: HKDF-SHA256 gives an AES-256 key,
AES-CTR gives words, and the sampler below turns words into integers. Given uniform words its distribution is exactly
the discrete Gaussian: floats only decide comparisons that are not close, rational arithmetic decides the rest. So the
same key gives the same noise on every machine, whatever its `exp` rounds to. `privacy.answer` names the stream of an
answer.

Nothing here takes a seed, and no generator of numpy is ever used.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from itertools import chain, count
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.canonical import is_name
from privacy.errors import ConfigError

KEY_BYTES: Final = 32
MAX_SIGMA: Final = 2**40
WORDS: Final = 4  # 64-bit words of one candidate: residue, quotient, acceptance, sign
BLOCK: Final = 2**18  # candidates made at once; no effect on the result
FLOAT_MARGIN: Final = 2.0**-40  # the float error of an acceptance probability is below 2^-47


def device_noise_key(root: bytes, device_id: str) -> bytes:
    """Return the 32-byte noise key of a simulated device: HKDF(root, "confide/device-noise/1" | 0x00 | device_id).

    For many devices in one process. A real device draws its key from the operating system and keeps it in its vault.
    """
    if not is_name(device_id):
        raise ConfigError("device_id is not a name")
    return _hkdf(root, b"confide/device-noise/1\x00" + device_id.encode("ascii"))


class KeyStream:
    """The random words of one use: AES-256-CTR under HKDF-SHA256(noise_key, "confide/noise/1" | 0x00 | name).

    A pure value: the same key and name give the same words each time they are asked for. Two vectors under one stream
    would differ by exactly the difference of the vectors, so the name, 32 bytes, must cover what the noise covers:
    `privacy.answer.answer_stream`.
    """

    __slots__ = ("_key",)

    def __init__(self, noise_key: bytes, name: bytes) -> None:
        if len(name) != KEY_BYTES:
            raise ConfigError("the name of a stream is 32 bytes")
        self._key = _hkdf(noise_key, b"confide/noise/1\x00" + name)

    def candidates(self, first: int, number: int) -> NDArray[np.uint64]:
        """Return the words of candidates first .. first+number-1: uint64 [number, 4], two AES blocks each."""
        data = self._blocks(2 * first, 2 * number)
        return np.frombuffer(data, dtype="<u8").reshape(number, WORDS).astype(np.uint64, copy=False)

    def more_words(self, candidate: int, word: int) -> Iterator[int]:
        """Yield the words that continue word `word` of a candidate, where its 64 bits leave a comparison open."""
        start = (1 << 127) | (candidate << 40) | (word << 32)  # beyond every counter that `candidates` reaches
        return (int.from_bytes(self._blocks(start + i, 1)[:8], "little") for i in count())

    def _blocks(self, counter: int, number: int) -> bytes:
        cipher = Cipher(algorithms.AES(self._key), modes.CTR(counter.to_bytes(16, "big")))
        return cipher.encryptor().update(bytes(16 * number))


def discrete_gaussian(sigma: float, size: int, stream: KeyStream) -> NDArray[np.int64]:
    """Return int64 [size] drawn from N_Z(0, sigma^2), P(x) proportional to exp(-x^2 / (2 sigma^2)).

    Canonne, Kairouz, Steinke 2020 (arXiv:2004.00010), algorithm 3, with the two acceptance steps joined into one: with
    t = floor(sigma) + 1, a residue U uniform in 0..t-1 and a quotient V, P(V >= v) = exp(-v), the candidate X = U + t V
    with a random sign is kept with probability exp(-gamma),

        gamma = X^2 / (2 sigma^2) + sigma^2 / (2 t^2) - V  =  U/t + (X - sigma^2/t)^2 / (2 sigma^2)  >=  0,

    unless it is a negative zero. The result is the first `size` candidates kept. `sigma` is taken as the exact rational
    that it is. Exact given uniform words, so a distinguisher from true noise distinguishes AES-256-CTR from random.
    The running time depends on the noise, as with any rejection sampler: time answers accordingly. Raises ConfigError.
    """
    if not 0 < sigma <= MAX_SIGMA:
        raise ConfigError(f"sigma {sigma} is outside (0, 2^40]")
    drawn = np.empty(size, dtype=np.int64)
    filled = first = 0
    while filled < size:
        number = min(BLOCK, int(2.2 * (size - filled)) + 32)
        kept = _kept(sigma, stream, first, number)[: size - filled]
        drawn[filled : filled + kept.size] = kept
        filled, first = filled + kept.size, first + number
    return drawn


def exact_candidate(sigma: Fraction, stream: KeyStream, index: int) -> int | None:
    """Return the value of one candidate, None if it is not kept, in rational arithmetic throughout.

    This is the definition; `discrete_gaussian` agrees with it for every candidate and asks it where a float is unsure.
    """
    residue_word, quotient_word, accept_word, sign_word = (int(word) for word in stream.candidates(index, 1)[0])
    step = int(sigma) + 1
    if residue_word >= 2**64 // step * step:
        return None
    quotient = 0
    while _below_exp(Fraction(quotient + 1), chain([quotient_word], stream.more_words(index, 1))):
        quotient += 1
    magnitude = residue_word % step + step * quotient
    gamma = magnitude**2 / (2 * sigma**2) + sigma**2 / (2 * step**2) - quotient
    if not _below_exp(gamma, chain([accept_word], stream.more_words(index, 2))):
        return None
    if sign_word & 1:
        return -magnitude if magnitude else None
    return magnitude


def _kept(sigma: float, stream: KeyStream, first: int, number: int) -> NDArray[np.int64]:
    """Return the values kept among candidates first .. first+number-1, in order."""
    words = stream.candidates(first, number)
    step = int(sigma) + 1
    in_range = words[:, 0] <= np.uint64(2**64 // step * step - 1)
    residue = (words[:, 0] % np.uint64(step)).astype(np.int64)
    quotient, tied = _quotients(words[:, 1])
    magnitude = residue + step * quotient
    gamma = np.square(magnitude / sigma) / 2 + ((sigma / step) ** 2 / 2 - quotient)
    gap = np.exp(-gamma) - words[:, 2] * 2.0**-64
    negative = (words[:, 3] & np.uint64(1)).astype(bool)
    keep = in_range & (gap > 0) & ~(negative & (magnitude == 0))
    value = np.where(negative, -magnitude, magnitude)
    for index in np.flatnonzero(tied | (np.abs(gap) <= FLOAT_MARGIN)):  # one in 5 * 10^11
        exact = exact_candidate(Fraction(sigma), stream, first + int(index))
        keep[index] = exact is not None
        value[index] = exact or 0
    kept: NDArray[np.int64] = value[keep]
    return kept


def _quotients(words: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return V = max{v : 0.word < exp(-v)} for each word, and whether its 64 bits leave V open."""
    thresholds = _exp_thresholds()
    below = np.searchsorted(thresholds, words, side="right")
    tied = thresholds[np.maximum(below - 1, 0)] == words
    return len(thresholds) - below, tied


@lru_cache(maxsize=1)
def _exp_thresholds() -> NDArray[np.uint64]:
    """Return floor(2^64 exp(-v)) for v = 45 .. 1, ascending; the first is 0, so that a word of 0 counts as open."""
    return np.array([_exp_bounds(Fraction(v), 64)[0] for v in range(45, 0, -1)], dtype=np.uint64)


def _below_exp(gamma: Fraction, words: Iterator[int]) -> bool:
    """Return whether the binary fraction 0.word word ... is below exp(-gamma), reading no more than needed."""
    if gamma == 0:
        return True
    value = bits = 0
    while True:
        value, bits = (value << 64) | next(words), bits + 64
        low, high = _exp_bounds(gamma, bits)
        if value < low:
            return True
        if value > high:
            return False


def _exp_bounds(gamma: Fraction, bits: int) -> tuple[int, int]:
    """Return floors of 2^bits exp(-gamma) from below and from above: equal, or one apart in the rarest case.

    `Decimal.exp` is correctly rounded; all roundings move the result by less than (gamma + 2) 10^(2 - digits) of it.
    """
    digits = bits // 3 + 25
    with decimal.localcontext(decimal.Context(prec=digits, rounding=decimal.ROUND_HALF_EVEN)):
        exponent = -decimal.Decimal(gamma.numerator) / decimal.Decimal(gamma.denominator)
        middle = exponent.exp() * (1 << bits)
        slack = middle * (2 - exponent) * decimal.Decimal(10) ** (2 - digits)
        return int(middle - slack), int(middle + slack)


def _hkdf(secret: bytes, info: bytes) -> bytes:
    if len(secret) != KEY_BYTES:
        raise ConfigError("a noise key is 32 bytes")
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)
