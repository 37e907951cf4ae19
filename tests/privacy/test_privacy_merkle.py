"""Trees with the roots of the reference vectors; proofs hold for what is true and for nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import LedgerError
from privacy.merkle import MAX_PROOF, consistency_proof, inclusion_proof, is_consistent, is_included, tree_root

# The inputs and roots that certificate-transparency implementations test RFC 6962 and 9162 with.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [hashlib.sha256(b"\x00" + bytes.fromhex(text)).digest() for text in INPUTS]


def leaves(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([i])).digest() for i in range(count)]


def test_roots_of_the_reference_vectors() -> None:
    assert tree_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [tree_root(LEAVES[:n]).hex() for n in range(1, 9)] == ROOTS


def test_every_prefix_and_every_leaf_of_every_tree_up_to_33() -> None:
    for count in range(1, 34):
        all_, root = leaves(count), tree_root(leaves(count))
        for size in range(1, count + 1):
            proof = consistency_proof(all_, size)
            assert is_consistent(size, tree_root(all_[:size]), count, root, proof)
            assert len(proof) <= 2 * count.bit_length()
        for index in range(count):
            proof = inclusion_proof(all_, index)
            assert is_included(all_[index], index, count, root, proof)
            assert not is_included(all_[index], index + 1, count, root, proof)
            assert not is_included(all_[index - 1], index, count, root, proof) or count == 1


@given(st.data())
def test_a_changed_past_has_no_proof(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    size = data.draw(st.integers(1, count - 1))
    all_ = leaves(count)
    changed = list(all_)
    changed[data.draw(st.integers(0, size - 1))] = bytes(32)
    proof = consistency_proof(changed, size)  # the best that a rewriter can show: true of its own history
    assert not is_consistent(size, tree_root(all_[:size]), count, tree_root(changed), proof)
    good = consistency_proof(all_, size)
    at = data.draw(st.integers(0, len(good) - 1))
    old, new = tree_root(all_[:size]), tree_root(all_)
    for bad in (good[:at] + good[at + 1 :], [*good[:at], bytes(32), *good[at:]], [*good, bytes(32)], good * MAX_PROOF):
        assert not is_consistent(size, old, count, new, bad) or bad == good
    assert not is_consistent(size, old, count, new, [each[:-1] for each in good])
    assert not is_consistent(size + 1, old, count, new, good)
    assert not is_consistent(count, new, size, old, good)


def test_nothing_is_shown_of_what_is_not_there() -> None:
    for size in (0, 4):
        with pytest.raises(LedgerError):
            consistency_proof(leaves(3), size)
    for index in (-1, 3):
        with pytest.raises(LedgerError):
            inclusion_proof(leaves(3), index)
    root = tree_root(leaves(3))
    assert is_consistent(3, root, 3, root, [])
    assert not is_consistent(3, root, 3, root, [bytes(32)])
    assert not is_consistent(0, root, 3, root, [])
    assert not is_consistent(3, root, 4, root, [])
    assert not is_included(root, 0, 0, root, [])
