"""Above 128 devices: what a device of the ring checks, and a server that tries to cut a part out of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from privacy.query import Cohort
from privacy.secagg.graph import links_of
from privacy.secagg.messages import ConfirmRequest, MaskRequest, RosterRequest, Unmask
from privacy.secagg.roster import leaf, merkle_proofs, merkle_root, proven_root
from privacy.wire import Refusal, decode, decode_request
from tests.privacy.secagg_cohort import Round, exact_sum, name_of

N = 140
VICTIM = name_of(70)


@pytest.fixture(scope="module")
def cohort() -> Round:
    """Return a ring before its first stage; the tests below take it through the stages in order."""
    return Round(N, 2, remember=True)


def refused(cohort: Round, frame: bytes, why: str) -> bool:
    answer = decode(cohort.devices[VICTIM].reply(frame))
    return isinstance(answer, Refusal) and why in cohort.devices[VICTIM].problem


def test_a_server_cannot_cut_a_part_out_of_the_ring(cohort: Round) -> None:
    """At each stage the false requests are refused and change nothing; the sum is exact in the end."""
    cohort.run_stage()
    request = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(request, RosterRequest) and len(request.rows) == 2 * links_of(Cohort(N)).reach < N
    for at in range(len(request.proof)):
        proof = (*request.proof[:at], bytes(32), *request.proof[at + 1 :])
        assert refused(cohort, replace(request, proof=proof).encode(), "hold")
    assert refused(cohort, replace(request, proof=request.proof[1:]).encode(), "hold")
    assert refused(cohort, replace(request, rows=request.rows[::-1]).encode(), "verify")
    other_root = replace(request, root=hashlib.sha256(b"other").digest())
    assert isinstance(decode(cohort.devices[VICTIM].reply(other_root.encode())), Refusal)
    cohort.run_stage()

    ring = cohort.server._roster.ring
    own = cohort.server._roster.ranks[VICTIM]
    near = set(ring.neighbours(own))
    before = [ring.order[(ring.order.index(own) - step) % N] for step in range(1, ring.links.reach + 1)]
    arc = set(before[: ring.links.reach - ring.links.run_floor + 1])
    assert len(arc) <= N - Cohort(N).min_survivors, "few enough for the floor, too many in one place"
    shared = decode_request(cohort.server.requests()[VICTIM])
    assert isinstance(shared, MaskRequest)
    flags = tuple(rank not in arc for rank in range(N))
    sealed = tuple(s for s, other in zip(shared.sealed, ring.neighbours(own), strict=True) if flags[other])
    assert refused(cohort, replace(shared, sharing=flags, sealed=sealed).encode(), "run")
    cohort.run_stage()
    assert refused(cohort, ConfirmRequest(cohort.query.sha256, flags).encode(), "run")
    cohort.run_stage()
    cohort.run_stage()
    assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.vectors))
    shares = [decode(frame) for stage, _, way, frame in cohort.seen if stage == "unmask" and way == "up"]
    assert all(isinstance(m, Unmask) and sum(m.held) == len(near) + 1 for m in shares)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 129, 200])
def test_a_proof_holds_for_its_leaf_at_its_place_in_its_tree_only(size: int) -> None:
    leaves = [hashlib.sha256(bytes([i % 256])).digest() for i in range(size)]
    root, proofs = merkle_root(leaves), merkle_proofs(leaves)
    for index, proof in enumerate(proofs):
        assert proven_root(leaves[index], index, size, proof) == root and len(proof) <= (size - 1).bit_length()
        assert proven_root(leaves[index], index, size, (*proof, bytes(32))) is None
        assert size == 1 or proven_root(leaves[index], index, size, proof[:-1]) != root
        assert size == 1 or proven_root(bytes(32), index, size, proof) != root
        other = (index + 1) % size
        assert size == 1 or proven_root(leaves[index], other, size, proof) != root


def test_the_tree_is_the_one_of_certificate_transparency() -> None:
    """Three leaves: H(1 | H(1 | a | b) | c), RFC 9162, section 2.1.1; a leaf is H(0 | name | row)."""
    a, b, c = (hashlib.sha256(x).digest() for x in (b"a", b"b", b"c"))
    left = hashlib.sha256(b"\x01" + a + b).digest()
    assert merkle_root([a, b, c]) == hashlib.sha256(b"\x01" + left + c).digest()
    assert merkle_proofs([a, b, c]) == [(b, c), (a, c), (left,)]
    row = decode(Round(2, 1).devices[name_of(0)].reply(Round(2, 1).server.requests()[name_of(0)])).row  # type: ignore[union-attr]
    assert leaf("d", row) == hashlib.sha256(b"\x00\x01d" + row.encode()).digest()
