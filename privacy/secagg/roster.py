"""A roster: who advertised keys for one sum, in the order of names, and one hash over all they advertised."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from privacy.frame import named
from privacy.query import Query
from privacy.secagg.graph import Ring, links_of, ring
from privacy.secagg.messages import Row


@dataclass(frozen=True)
class Roster:
    """Names in ascending order: a name's rank is its index. `root` is the Merkle root over `leaf` of each row."""

    query: Query
    names: tuple[str, ...]
    root: bytes

    @cached_property
    def sha256(self) -> bytes:
        """Return H("confide/secagg/roster/1" | 0x00 | query hash | m u32 | names | root)."""
        names = struct.pack("<I", len(self.names)) + b"".join(map(named, self.names))
        context = bytes.fromhex(self.query.sha256)
        return hashlib.sha256(b"confide/secagg/roster/1\x00" + context + names + self.root).digest()

    @cached_property
    def ring(self) -> Ring:
        """Return who is whose neighbour."""
        return ring(len(self.names), links_of(self.query.cohort), self.sha256)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """Return the rank of each name."""
        return {name: rank for rank, name in enumerate(self.names)}


def leaf(name: str, row: Row) -> bytes:
    """Return the hash of one row under its name, H(0x00 | name | row)."""
    return hashlib.sha256(b"\x00" + named(name) + row.encode()).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over one leaf or more: H(0x01 | left | right), left a largest power of two (RFC 9162, 2.1.1)."""
    if len(leaves) == 1:
        return leaves[0]
    cut = _cut(len(leaves))
    return _node(merkle_root(leaves[:cut]), merkle_root(leaves[cut:]))


def merkle_proofs(leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Return the proofs of all leaves, each node hashed once."""
    return _with_proofs(leaves)[1]


def proven_root(own: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """Return the root that `proof` gives for the leaf at `index` of `size`; None if its length is not that place's."""
    if size == 1:
        return own if not proof else None
    if not proof:
        return None
    cut = _cut(size)
    left = index < cut
    below = proven_root(own, index if left else index - cut, cut if left else size - cut, proof[:-1])
    if below is None:
        return None
    return _node(below, proof[-1]) if left else _node(proof[-1], below)


def _with_proofs(leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    if len(leaves) == 1:
        return leaves[0], [()]
    cut = _cut(len(leaves))
    (left, before), (right, after) = _with_proofs(leaves[:cut]), _with_proofs(leaves[cut:])
    return _node(left, right), [*((*proof, right) for proof in before), *((*proof, left) for proof in after)]


def _cut(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
