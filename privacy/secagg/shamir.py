"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2^256 - 189.

Fewer than t shares say nothing about a secret. They also *give* a secret, a wrong one, without any error: whoever
reconstructs compares the result with a commitment (`privacy.secagg.recovery`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from privacy.errors import ConfigError

PRIME: Final = 2**256 - 189
SECRET_BYTES: Final = 32

Entropy = Callable[[int], bytes]


def uniform_secret(entropy: Entropy, prime: int = PRIME) -> bytes:
    """Return 32 bytes, big-endian, of a uniform number below `prime`: drawn again (once in 2^248) if not below."""
    while True:
        drawn = entropy(SECRET_BYTES)
        if int.from_bytes(drawn, "big") < prime:
            return drawn


def split_secret(
    secret: bytes, threshold: int, places: Sequence[int], entropy: Entropy, prime: int = PRIME
) -> list[bytes]:
    """Return one share of 32 bytes for each x in `places`: f(x), f(0) = secret, deg f < threshold, f else uniform.

    Any `threshold` shares give the secret, fewer are independent of it (Shamir 1979). Raises ConfigError for a secret
    that is not below `prime`, fewer places than the threshold, or places that are not distinct in 1 .. prime - 1.
    """
    value = int.from_bytes(secret, "big")
    if value >= prime or not 1 <= threshold <= len(places):
        raise ConfigError("a secret must be below the prime, a threshold between one and the number of places")
    if len(set(places)) != len(places) or not all(0 < x < prime for x in places):
        raise ConfigError("places of shares are distinct and not zero")
    coefficients = [int.from_bytes(uniform_secret(entropy, prime), "big") for _ in range(threshold - 1)]
    shares = []
    for x in places:
        total = 0
        for coefficient in reversed(coefficients):
            total = (total + coefficient) * x  # places are small: one reduction at the end is faster than many
        shares.append(((total + value) % prime).to_bytes(SECRET_BYTES, "big"))
    return shares


def joined_secret(places: Sequence[int], shares: Sequence[bytes], at: int = 0, prime: int = PRIME) -> bytes:
    """Return f(at) for the polynomial of least degree through the shares: the secret at 0, another share elsewhere.

    Says nothing about whether the shares belong together or are enough.
    """
    weights = lagrange_weights(tuple(places), at, prime)
    total = sum(w * int.from_bytes(share, "big") for w, share in zip(weights, shares, strict=True))
    return (total % prime).to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def lagrange_weights(places: tuple[int, ...], at: int = 0, prime: int = PRIME) -> tuple[int, ...]:
    """Return the weights of f(x_1), .., f(x_t) in f(at): w_i = prod over j != i of (at - x_j) / (x_i - x_j) mod p."""
    if at in places:
        return tuple(int(x == at) for x in places)
    below = [math.prod([x - other for other in places if other != x]) for x in places]
    numerator = math.prod([at - x for x in places])
    inverses = _inverses(below, prime)
    return tuple(numerator // (at - x) * inverse % prime for x, inverse in zip(places, inverses, strict=True))


def _inverses(values: Sequence[int], prime: int) -> list[int]:
    """Return the inverses modulo `prime` of values that it does not divide, by one inversion (Montgomery 1987)."""
    products = [1]
    for value in values:
        products.append(products[-1] * value % prime)
    inverse, found = pow(products[-1], -1, prime), []
    for value, before in zip(reversed(values), reversed(products[:-1]), strict=True):
        found.append(inverse * before % prime)
        inverse = inverse * value % prime
    return found[::-1]
