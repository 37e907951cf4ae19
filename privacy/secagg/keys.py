"""Every key, seal and signature of a private sum, each bound to query, roster, purpose and direction.

    HKDF(secret, info) = RFC 5869 with SHA-256, 32 bytes, salt = the query's hash

X25519 (RFC 7748), Ed25519 (RFC 8032), AES-256-GCM; none of them is our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import SignatureInvalid
from privacy.frame import named
from privacy.secagg.messages import Flags, flags_bytes
from privacy.secagg.shamir import SECRET_BYTES, Entropy, uniform_secret

NONCE_BYTES: Final = 12
ADVERTISED: Final = b"confide/secagg/advertise/1\x00"
SHARED: Final = b"confide/secagg/shares/1\x00"
MASKED: Final = b"confide/secagg/masked/1\x00"
SURVIVED: Final = b"confide/secagg/survivors/1\x00"
UNMASKED: Final = b"confide/secagg/unmask/1\x00"

Verify = Callable[[Ed25519PublicKey, bytes, bytes], None]


@dataclass(frozen=True)
class RoundSecrets:
    """What a device makes for one sum and never again: two X25519 keys and the seed of its self mask."""

    mask_secret: bytes = field(repr=False)
    share_secret: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @classmethod
    def drawn(cls, entropy: Entropy) -> RoundSecrets:
        """Return fresh secrets; those that will be shared are below the prime of the shares."""
        return cls(uniform_secret(entropy), entropy(SECRET_BYTES), uniform_secret(entropy))


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key of 32 secret bytes."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def commitment(context: bytes, device_id: str, self_seed: bytes) -> bytes:
    """Return H("confide/secagg/commit/1" | 0x00 | query hash | name | seed): binding; hiding, as the seed is random."""
    return hashlib.sha256(b"confide/secagg/commit/1\x00" + context + named(device_id) + self_seed).digest()


def view_sha256(roster_sha256: bytes, sharing: Flags) -> bytes:
    """Return the hash of roster and of who has shared: two devices that were told different things share no mask."""
    return hashlib.sha256(b"confide/secagg/view/1\x00" + roster_sha256 + flags_bytes(sharing)).digest()


def self_mask_key(context: bytes, view: bytes, device_id: str, self_seed: bytes) -> bytes:
    """Return the key of a device's self mask."""
    return derived(self_seed, context, b"confide/secagg/self-mask/1\x00" + view + named(device_id))


@dataclass(frozen=True)
class Exchange:
    """One X25519 secret key of a device, ready for many peers."""

    _secret: X25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> Exchange:
        """Return the key of 32 secret bytes."""
        return cls(X25519PrivateKey.from_private_bytes(secret))

    def agreed(self, peer: bytes) -> bytes:
        """Return the shared secret with a peer's public key; SignatureInvalid for a point of low order.

        Such a point gives the all-zero secret, which everybody knows (RFC 7748, section 6.1).
        """
        try:
            return self._secret.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise SignatureInvalid("a public key") from None


def pair_mask_key(context: bytes, view: bytes, agreed: bytes, low: tuple[str, bytes], high: tuple[str, bytes]) -> bytes:
    """Return the key of the mask that two devices share; `low`, `high`: name and mask key, in the order of ranks."""
    info = b"".join((b"confide/secagg/pair-mask/1\x00", view, named(low[0]), named(high[0]), low[1], high[1]))
    return derived(agreed, context, info)


def seal(
    context: bytes, roster: bytes, agreed: bytes, sender: str, reader: str, shares: bytes, entropy: Entropy
) -> bytes:
    """Return nonce | AES-256-GCM of two shares, for `reader` alone and as from `sender` alone.

    The key serves this direction of this pair in this sum once. So any nonce would do; a random one keeps a mistake
    elsewhere from becoming a nonce used twice.
    """
    nonce = entropy(NONCE_BYTES)
    return nonce + _sealing(context, roster, agreed, sender, reader).encrypt(nonce, shares, _ways(sender, reader))


def opened(context: bytes, roster: bytes, agreed: bytes, sender: str, reader: str, sealed: bytes) -> bytes | None:
    """Return the two shares, or None for whatever does not open: a sender may send anything."""
    box = _sealing(context, roster, agreed, sender, reader)
    try:
        return box.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _ways(sender, reader))
    except InvalidTag:
        return None


def _sealing(context: bytes, roster: bytes, agreed: bytes, sender: str, reader: str) -> AESGCM:
    return AESGCM(derived(agreed, context, b"confide/secagg/seal/1\x00" + roster + _ways(sender, reader)))


def _ways(sender: str, reader: str) -> bytes:
    return named(sender) + named(reader)


def derived(secret: bytes, context: bytes, info: bytes) -> bytes:
    """Return HKDF(secret, info) with the query's hash as salt."""
    return HKDF(hashes.SHA256(), 32, context, info).derive(secret)


def verify_signature(key: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    """Raise SignatureInvalid unless `key` signed `message`."""
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise SignatureInvalid from None


class RememberedChecks:
    """`verify_signature` that remembers what held: for many devices in one process, which check the same signatures.

    A pure function remembered: the outcome for the same key, signature and message is the same. A device alone has no
    use for it.
    """

    def __init__(self) -> None:
        self._held: set[bytes] = set()

    def __call__(self, key: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
        """Raise SignatureInvalid unless `key` signed `message`."""
        name = key.public_bytes_raw() + signature + hashlib.sha256(message).digest()
        if name not in self._held:
            verify_signature(key, signature, message)
            self._held.add(name)
