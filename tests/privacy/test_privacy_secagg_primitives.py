"""Known answers of the primitives as we call them, shares that say nothing, masks that look like nothing."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable

import cryptography_vectors
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.errors import ConfigError, SignatureInvalid
from privacy.secagg import keys
from privacy.secagg.masks import BLOCK, Stream, add_streams
from privacy.secagg.shamir import PRIME, joined_secret, split_secret, uniform_secret

LOW_ORDER = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


def keystream(key: bytes, words: int) -> NDArray[np.uint32]:
    total = np.zeros(words, dtype=np.uint32)
    add_streams(total, [Stream(key, 1)])
    return total


def test_x25519_is_rfc_7748_section_5_2() -> None:
    def agreed(secret: bytes, point: bytes) -> bytes:
        return keys.Exchange.of(secret).agreed(point)

    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert agreed(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    k = u = bytes([9]) + bytes(31)
    assert keys.public_key(k).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    for _ in range(1000):
        k, u = agreed(k, u), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    with pytest.raises(SignatureInvalid):
        keys.Exchange.of(hashlib.sha256(b"any").digest()).agreed(bytes.fromhex(point))


def test_hkdf_is_rfc_5869_case_1() -> None:
    okm = keys.derived(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_ed25519_is_rfc_8032_section_7_1_and_refuses_a_second_form_of_s() -> None:
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = Ed25519PrivateKey.from_private_bytes(secret)
    public, signature = key.public_key(), key.sign(b"")
    assert public.public_bytes_raw().hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    keys.verify_signature(public, signature, b"")
    order = 2**252 + 27742317777372353535851937790883648493
    other_form = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    for check in (keys.verify_signature, keys.RememberedChecks()):
        for bad in (signature[:32] + other_form, bytes(64)):
            with pytest.raises(SignatureInvalid):
                check(public, bad, b"")


def test_masks_are_aes_256_blocks_of_counters_from_zero() -> None:
    """Blocks 0, 1, 2 under the zero key: hash key, encrypted counter and ciphertext of McGrew, Viega 2004, case 14."""
    blocks = (
        "dc95c078a2408989ad48a21492842087" + "530f8afbc74536b9a963b4f1c4cb738b" + "cea7403d4d606b6e074ec5d3baf39d18"
    )
    assert keystream(bytes(32), 12).astype("<u4").tobytes().hex() == blocks


def test_gcm_is_mcgrew_viega_case_14() -> None:
    sealed = AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), b"")
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18" + "d0d1c8a799996bf0265b98b5d48ab919"


def test_against_the_published_vector_files() -> None:
    """Ed25519 against the 1,024 published cases in the files of `cryptography_vectors`."""
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        lines = [line.split(":") for line in file]
    for secret, public, message, signed, _ in lines:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        signature = bytes.fromhex(signed)[:64]
        assert (
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)[:32]).sign(bytes.fromhex(message)) == signature
        )
        keys.verify_signature(key, signature, bytes.fromhex(message))
        with pytest.raises(SignatureInvalid):
            keys.verify_signature(key, signature, bytes.fromhex(message) + b"x")
    assert len(lines) == 1024


@pytest.mark.parametrize("prime", [5, 7])
def test_fewer_shares_than_the_threshold_leave_the_secret_exactly_uniform(prime: int) -> None:
    """All polynomials over a small field: each view of t - 1 shares is equally frequent under every secret."""
    for n in range(2, prime):
        for t in range(1, min(n, 4) + 1):
            views: dict[int, dict[tuple[int, ...], Counter[tuple[bytes, ...]]]] = {}
            for secret in range(prime):
                views[secret] = {some: Counter() for some in itertools.combinations(range(n), t - 1)}
                for coefficients in itertools.product(range(prime), repeat=t - 1):
                    drawn = iter(c.to_bytes(32, "big") for c in coefficients)
                    places = range(1, n + 1)
                    shares = split_secret(secret.to_bytes(32, "big"), t, places, lambda _: next(drawn), prime)  # noqa: B023
                    for some, seen in views[secret].items():
                        seen[tuple(shares[i] for i in some)] += 1
                    for enough in itertools.combinations(range(n), t):
                        given = [shares[i] for i in enough]
                        found = joined_secret([i + 1 for i in enough], given, prime=prime)
                        assert int.from_bytes(found, "big") == secret
            assert all(views[secret] == views[0] for secret in range(prime))
            for some, seen in views[0].items():
                assert len(seen) == prime ** len(some), "every view is possible, whatever the secret"


@given(st.integers(1, 20), st.integers(0, 20), st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret_and_any_other_share(
    t: int, more: int, secret: bytes, data: st.DataObject
) -> None:
    if int.from_bytes(secret, "big") >= PRIME:
        return
    places = data.draw(st.lists(st.integers(1, 2**14), min_size=t + more, max_size=t + more, unique=True))
    shares = dict(zip(places, split_secret(secret, t, places, hashed_entropy(secret)), strict=True))
    some = data.draw(st.permutations(places))[:t]
    assert joined_secret(some, [shares[x] for x in some]) == secret
    assert all(joined_secret(some, [shares[x] for x in some], at=x) == shares[x] for x in places)


def hashed_entropy(seed: bytes) -> Callable[[int], bytes]:
    counter = itertools.count()
    return lambda size: hashlib.shake_256(seed + next(counter).to_bytes(4, "big")).digest(size)


def test_shares_that_cannot_be_meant_are_refused() -> None:
    for secret, t, places in (
        (b"\xff" * 32, 1, [1]),
        (bytes(32), 0, [1]),
        (bytes(32), 3, [1, 2]),
        (bytes(32), 2, [1, 1]),
        (bytes(32), 2, [0, 1]),
        (bytes(32), 1, [PRIME]),
    ):
        with pytest.raises(ConfigError):
            split_secret(secret, t, places, hashed_entropy(b""))


def test_secrets_are_drawn_again_until_below_the_prime() -> None:
    drawn = iter([b"\xff" * 32, PRIME.to_bytes(32, "big"), (PRIME - 1).to_bytes(32, "big")])
    assert uniform_secret(lambda size: next(drawn)) == (PRIME - 1).to_bytes(32, "big")
    assert pow(2, PRIME - 1, PRIME) == 1 and pow(3, PRIME - 1, PRIME) == 1


@pytest.mark.parametrize("dim", [1, 3, 4, 15, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_streams_are_the_same_whatever_the_blocks_and_threads(dim: int, threads: int) -> None:
    streams = [Stream(hashlib.sha256(bytes([i])).digest(), 1 if i % 3 else -1) for i in range(5)]
    total = np.arange(dim, dtype=np.uint32)
    add_streams(total, streams, threads)
    expected = np.arange(dim, dtype=np.int64)
    for stream in streams:
        expected += stream.sign * whole_keystream(stream.key, dim)
    assert np.array_equal(total, (expected % 2**32).astype(np.uint32))


def whole_keystream(key: bytes, words: int) -> NDArray[np.int64]:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * words)), dtype="<u4").astype(np.int64)


def linear_complexity(bits: NDArray[np.bool_]) -> int:
    """Return the length of the shortest linear feedback register that makes `bits` (Berlekamp, Massey)."""
    n = len(bits)
    packed = 0  # the bits so far, the newest lowest
    connection, before, length, since = 1, 1, 0, 1
    for i in range(n):
        packed = packed << 1 | int(bits[i])
        if (connection & packed & ((1 << length + 1) - 1)).bit_count() & 1:
            kept = connection
            connection ^= before << since
            if 2 * length <= i:
                length, before, since = i + 1 - length, kept, 0
        since += 1
    return length


def test_the_complexity_test_finds_a_mersenne_twister_and_passes_the_masks() -> None:
    """A twister's bits obey a linear rule of 19,937 terms; true ones of length N have complexity N / 2 within a few."""
    short = np.array([int(b) for b in f"{2**61 - 1 ^ 0x155555555555:061b}"] * 8, dtype=bool)
    assert linear_complexity(short) <= 61
    bits = keystream(hashlib.sha256(b"complexity").digest(), 6000) & 1
    assert abs(linear_complexity(bits.astype(bool)) - 3000) < 40


@pytest.mark.statistical
def test_masks_are_no_mersenne_twister() -> None:
    size = 48_000
    twister = np.random.Generator(np.random.MT19937(1)).integers(0, 2**32, size, dtype=np.uint32) & 1
    assert linear_complexity(twister.astype(bool)) <= 19_937
    bits = keystream(hashlib.sha256(b"long").digest(), size) & 1
    assert abs(linear_complexity(bits.astype(bool)) - size // 2) < 40


@pytest.mark.parametrize("byte", range(4))
def test_every_byte_of_a_mask_is_uniform(byte: int) -> None:
    """Chi-square over 256 values and 2^20 words, key fixed; below 400 for 255 degrees: a false alarm once in 10^7."""
    words = keystream(hashlib.sha256(b"uniform").digest(), 2**20)
    counts = np.bincount(words >> np.uint32(8 * byte) & np.uint32(255), minlength=256)
    statistic = float(((counts - 2**12) ** 2 / 2**12).sum())
    assert 140 < statistic < 400
    biased = np.bincount(np.minimum(words >> np.uint32(8 * byte) & np.uint32(255), 254), minlength=256)
    assert float(((biased - 2**12) ** 2 / 2**12).sum()) > 400, "the test rejects a generator that is off by one"


def test_every_bit_of_the_seed_changes_the_mask() -> None:
    context, view, seed = bytes(32), bytes(32), hashlib.sha256(b"seed").digest()
    flipped = [seed[:i] + bytes([seed[i] ^ 1 << bit]) + seed[i + 1 :] for i in range(32) for bit in range(8)]
    masks = {keystream(keys.self_mask_key(context, view, "d", s), 4).tobytes() for s in [seed, *flipped]}
    assert len(masks) == 257
    raw = {keystream(key, 4).tobytes() for key in [seed, *flipped]}
    assert len(raw) == 257


def test_every_key_is_bound_to_purpose_sum_view_and_direction() -> None:
    context, view, secret = bytes(32), bytes([1]) * 32, bytes([2]) * 32
    low, high = ("a", bytes([3]) * 32), ("b", bytes([4]) * 32)
    other = bytes([9]) * 32
    made = [
        keys.pair_mask_key(context, view, secret, low, high),
        keys.pair_mask_key(other, view, secret, low, high),
        keys.pair_mask_key(context, other, secret, low, high),
        keys.pair_mask_key(context, view, other, low, high),
        keys.pair_mask_key(context, view, secret, high, low),
        keys.pair_mask_key(context, view, secret, ("a", other), high),
        keys.self_mask_key(context, view, "a", secret),
        keys.self_mask_key(context, view, "b", secret),
        keys.self_mask_key(context, other, "a", secret),
        keys.self_mask_key(other, view, "a", secret),
    ]
    assert len(set(made)) == len(made)


def test_a_seal_opens_only_for_its_direction_sum_and_roster() -> None:
    context, roster, agreed = bytes(32), bytes([1]) * 32, bytes([2]) * 32
    sealed = keys.seal(context, roster, agreed, "a", "b", b"s" * 64, hashed_entropy(b"nonce"))
    assert len(sealed) == 92
    assert keys.opened(context, roster, agreed, "a", "b", sealed) == b"s" * 64
    other = bytes([9]) * 32
    assert keys.opened(context, roster, agreed, "b", "a", sealed) is None
    assert keys.opened(other, roster, agreed, "a", "b", sealed) is None
    assert keys.opened(context, other, agreed, "a", "b", sealed) is None
    assert keys.opened(context, roster, other, "a", "b", sealed) is None
    for at in range(92):
        assert (
            keys.opened(context, roster, agreed, "a", "b", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
            is None
        )


def test_secrets_do_not_show() -> None:
    secrets = keys.RoundSecrets.drawn(hashed_entropy(b"x"))
    assert repr(secrets) == "RoundSecrets()"
    assert secrets.self_seed.hex() not in repr(keys.Exchange.of(secrets.mask_secret))
