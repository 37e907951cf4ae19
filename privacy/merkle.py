"""Merkle trees over the entries of a ledger: short proofs that a longer ledger continues a shorter one.

    leaf_i = SHA-256(0x00 || line_i), the hash by which entries name each other;   node = SHA-256(0x01 || left || right)

The tree of n leaves splits at the largest power of two below n (RFC 9162, section 2.1). A proof holds hashes only, so
that whoever checks that nothing was rewritten learns no other device's entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from privacy.errors import LedgerError

HASH_BYTES = 32
MAX_PROOF = 64  # hashes: enough for a tree of 2^63 leaves


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of the tree over `leaves`, each the 32-byte hash of an entry; SHA-256 of nothing for none."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:  # pairs from the left, an odd one moves up: the same tree as splitting from the top
        pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """Return the hashes that show the first `size` of `leaves` to be a tree that the whole continues.

    RFC 9162, section 2.1.4.1: at most about 2 log2(n) hashes. Empty if nothing was added. Raises LedgerError unless
    1 <= size <= number of leaves.
    """
    if not 1 <= size <= len(leaves):
        raise LedgerError(f"no proof: {size} entries are not part of {len(leaves)}")
    return _subproof(size, leaves, whole=True)


def is_consistent(old_size: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows that the tree (size, root) begins with the tree (old_size, old_root).

    RFC 9162, section 2.1.4.2. False for every other proof; a proof of a false statement would be a collision of
    SHA-256.
    """
    if not 1 <= old_size <= size or len(proof) > MAX_PROOF or any(len(each) != HASH_BYTES for each in proof):
        return False
    if old_size == size:
        return old_root == root and not proof
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        return False
    first, last = old_size - 1, size - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old, new = path[0], path[0]
    for each in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old, new = _node(each, old), _node(each, new)
            while first and not first & 1:
                first, last = first >> 1, last >> 1
        else:
            new = _node(new, each)
        first, last = first >> 1, last >> 1
    return (old, new, last) == (old_root, root, 0)


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes beside the path from leaf `index` to the root (RFC 9162, section 2.1.3.1)."""
    if not 0 <= index < len(leaves):
        raise LedgerError(f"no proof: there is no entry {index} among {len(leaves)}")
    if len(leaves) == 1:
        return []
    split = _split(len(leaves))
    if index < split:
        return [*inclusion_proof(leaves[:split], index), tree_root(leaves[split:])]
    return [*inclusion_proof(leaves[split:], index - split), tree_root(leaves[:split])]


def is_included(leaf: bytes, index: int, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Return whether `proof` shows `leaf` to be entry `index` of the tree (size, root) (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size or len(proof) > MAX_PROOF or any(len(each) != HASH_BYTES for each in proof):
        return False
    place, last, value = index, size - 1, leaf
    for each in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = _node(each, value)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            value = _node(value, each)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def _subproof(size: int, leaves: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [tree_root(leaves)]
    split = _split(len(leaves))
    if size <= split:
        return [*_subproof(size, leaves[:split], whole=whole), tree_root(leaves[split:])]
    return [*_subproof(size - split, leaves[split:], whole=False), tree_root(leaves[:split])]


def _split(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
