"""Write noise.json: keys, words and discrete Gaussian draws, from PROTOCOL.md section 5 and not from `privacy`.

Every decision is made in integers and fractions, one draw at a time. HKDF is RFC 5869 over `hmac`, exp is a Taylor
series with both ends bounded. Run: python -m tests.vectors.generate_noise
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, count
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def hkdf(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 with an empty salt."""
    extracted = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def aes_block(key: bytes, counter: int) -> bytes:
    """Return the AES-256 encryption of one counter block, big-endian: one block of CTR keystream."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # single blocks make CTR by hand
    return encryptor.update(counter.to_bytes(16, "big"))


def candidate_words(key: bytes, index: int) -> list[int]:
    """Return the four words of a candidate."""
    data = aes_block(key, 2 * index) + aes_block(key, 2 * index + 1)
    return [int.from_bytes(data[at : at + 8], "little") for at in (0, 8, 16, 24)]


def word_tail(key: bytes, index: int, word: int) -> Iterator[int]:
    """Yield the words that continue word `word` of a candidate."""
    for i in count():
        counter = 2**127 + index * 2**40 + word * 2**32 + i
        yield int.from_bytes(aes_block(key, counter)[:8], "little")


def exp_between(gamma: Fraction, bits: int) -> tuple[int, int]:
    """Return integers low <= 2^bits exp(-gamma) <= high: exp(-gamma) = 1 / exp(gamma / n)^n by its Taylor series."""
    precision = bits + 128
    parts = 1 + int(gamma)
    step = gamma / parts  # in [0, 1]
    unit = 1 << precision
    term = low = unit
    for k in range(1, precision):
        term = term * step.numerator // (step.denominator * k)
        low += term
        if term == 0:
            break
    high = low + 2 * precision  # one unit of rounding per term, and the rest of the series
    power_low, power_high = unit, unit
    for _ in range(parts):
        power_low = power_low * low >> precision
        power_high = (power_high * high >> precision) + 1
    return (unit << bits) // power_high, -(-(unit << bits) // power_low)


def below_exp(gamma: Fraction, words: Iterator[int]) -> bool:
    """Return whether the uniform number with these words is below exp(-gamma)."""
    if gamma == 0:
        return True
    value = bits = 0
    while True:
        value, bits = value * 2**64 + next(words), bits + 64
        low, high = exp_between(gamma, bits)
        if value + 1 <= low:
            return True
        if value >= high:
            return False


def candidate(key: bytes, sigma: Fraction, index: int) -> int | None:
    """Return the value of a candidate, None if it is rejected."""
    words = candidate_words(key, index)
    t = sigma.numerator // sigma.denominator + 1
    if words[0] >= 2**64 - 2**64 % t:
        return None
    u, v = words[0] % t, 0
    while below_exp(Fraction(v + 1), chain([words[1]], word_tail(key, index, 1))):
        v += 1
    x = u + t * v
    gamma = Fraction(u, t) + (x - sigma**2 / t) ** 2 / (2 * sigma**2)
    if not below_exp(gamma, chain([words[2]], word_tail(key, index, 2))):
        return None
    sign = -1 if words[3] % 2 else 1
    return None if (x == 0 and sign < 0) else sign * x


def draws(noise_key: bytes, name: bytes, sigma: Fraction, size: int) -> list[int]:
    """Return the first `size` candidates that are kept."""
    key = hkdf(noise_key, b"confide/noise/1\x00" + name)
    kept: list[int] = []
    for index in count():
        value = candidate(key, sigma, index)
        if value is not None:
            kept.append(value)
        if len(kept) == size:
            return kept
    raise AssertionError


def case(name: str, sigma: Fraction, size: int) -> dict[str, object]:
    """Return one known answer; its root and its stream's name are hashes of its name."""
    root = hashlib.sha256(b"root of " + name.encode()).digest()
    stream = hashlib.sha256(b"event of " + name.encode()).digest()
    noise_key = hkdf(root, b"confide/device-noise/1\x00" + name.encode())
    values = draws(noise_key, stream, sigma, size)
    packed = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return {
        "device_id": name,
        "root": root.hex(),
        "noise_key": noise_key.hex(),
        "stream": stream.hex(),
        "words": [str(word) for word in candidate_words(hkdf(noise_key, b"confide/noise/1\x00" + stream), 7)],
        "sigma": f"{sigma.numerator}/{sigma.denominator}",
        "size": size,
        "draws": values[:32],
        "sha256_int64_le": hashlib.sha256(packed).hexdigest(),
    }


def main() -> None:
    """Write the file beside this script."""
    sigmas = ("1/2", "11/16", "1", "3", "25/2", "1000", "40000", "2222197", "27397080", "549755813888")
    cases = [case(f"device-{number}", Fraction(text), 400) for number, text in enumerate(sigmas)]
    Path(__file__).with_name("noise.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
