"""The device's side of a private sum: frames in, frames out, one way through five stages."""

from __future__ import annotations

import hashlib
import os
from typing import Final, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.canonical import is_digest
from privacy.directory import Directory
from privacy.errors import ConfideError, ConfigError, PolicyRefused
from privacy.query import Query
from privacy.secagg import keys
from privacy.secagg.journal import ADVERTISED, MASKED, REVEALED, Journal
from privacy.secagg.masks import Stream, add_streams
from privacy.secagg.messages import (
    Advertise,
    Begin,
    Confirm,
    ConfirmRequest,
    Flags,
    FromServer,
    Masked,
    MaskRequest,
    RosterRequest,
    Row,
    Shares,
    Unmask,
    UnmaskRequest,
    flags_bytes,
)
from privacy.secagg.roster import Roster, leaf, merkle_root, proven_root
from privacy.secagg.shamir import SECRET_BYTES, Entropy, split_secret
from privacy.wire import Refusal, RefusalCode, decode_request

STAGES: Final = (Begin, RosterRequest, MaskRequest, ConfirmRequest, UnmaskRequest)
OVER: Final = len(STAGES)


class _Refused(ConfideError):
    """A request that this device does not answer; the text stays here."""


class SumDevice:
    """One device in one private sum.

    `vector`, uint32 [dim], is clipped, rounded and noisy, and its charge is in the ledger already. What leaves: keys
    made for this sum; shares sealed for each neighbour; the vector under masks; a signature on one set of survivors;
    for each neighbour one share, of its self seed if it survived, of its mask key if not, never both. What the server
    can choose is checked against `query` and the directory, from which all floors follow; it sends none.

    A request that was answered gets the same bytes again; every other that is not the next one is refused, and changes
    nothing. `entropy` is the operating system's; something else is for tests. Raises ConfigError for a vector or key
    that cannot be meant, PolicyRefused if the query names another directory.
    """

    def __init__(
        self,
        query: Query,
        device_id: str,
        directory: Directory,
        signing_key: Ed25519PrivateKey,
        vector: NDArray[np.uint32],
        ledger_head: str,
        journal: Journal,
        entropy: Entropy = os.urandom,
        verify: keys.Verify = keys.verify_signature,
    ) -> None:
        if query.transport != "masked" or vector.dtype != np.uint32 or vector.shape != (query.dim,):
            raise ConfigError(f"a private sum needs transport masked and a uint32 vector of {query.dim}")
        if query.directory_sha256 != directory.sha256:
            raise PolicyRefused(RefusalCode.DIRECTORY)
        own = directory.get(device_id)
        if own is None or own != signing_key.public_key() or not is_digest(ledger_head):
            raise ConfigError(f"{device_id[:64]}: not in the directory under this key, or no head of a ledger")
        self.query, self.device_id, self.problem = query, device_id, ""
        self._directory, self._key, self._vector, self._head = directory, signing_key, vector, ledger_head
        self._journal, self._entropy, self._verify = journal, entropy, verify
        self._context = bytes.fromhex(query.sha256)
        self._event = query.event_id(device_id)
        self._stored = journal.load(self._event)
        self._stage = OVER if self._stored else 0  # a device that restarted inside a sum has lost its keys
        self._answered: dict[bytes, bytes] = {}
        self._shares: dict[int, bytes] = {}

    def reply(self, frame: bytes) -> bytes:
        """Return the frame that answers a request: an answer, or a refusal with a code of the closed list.

        No exception leaves. `problem` says why a request was refused, for the device's own owner.
        """
        try:
            digest = hashlib.sha256(frame).digest()
            again = self._answered.get(digest) or self._on_disk(digest)
            if again is not None:
                return again
            request = decode_request(frame)
            _check(isinstance(request, FromServer), "not a request of a sum")
            answer = self._next(cast("FromServer", request), digest)
        except _Refused as error:
            return self._refusal(RefusalCode.STALE if self._stage == OVER else RefusalCode.SUM, str(error))
        except ConfideError as error:  # bytes that are no request, a signature that does not hold
            return self._refusal(RefusalCode.SUM, str(error))
        except Exception as error:  # noqa: BLE001  whatever it was, its text may not leave, and its keys are not used again
            self._end()
            return self._refusal(RefusalCode.UNABLE, type(error).__name__)
        self._answered[digest] = answer
        return answer

    def _on_disk(self, digest: bytes) -> bytes | None:
        for step in (ADVERTISED, MASKED):
            stored = self._stored.get(step, b"")
            if stored[:32] == digest:
                return stored[32:]
        return None

    def _next(self, request: FromServer, digest: bytes) -> bytes:
        _check(request.query_sha256 == self.query.sha256, "a request of another sum")
        _check(self._stage < OVER, "this sum is over for this device")
        _check(type(request) is STAGES[self._stage], "not the next request of this sum")
        if isinstance(request, Begin):
            answer = self._advertise(digest)
        elif isinstance(request, RosterRequest):
            answer = self._share(request)
        elif isinstance(request, MaskRequest):
            answer = self._mask(request, digest)
        elif isinstance(request, ConfirmRequest):
            answer = self._confirm(request)
        else:
            answer = self._unmask(request)
        self._stage += 1
        return answer

    def _advertise(self, digest: bytes) -> bytes:
        self._secrets = keys.RoundSecrets.drawn(self._entropy)
        unsigned = Row(
            keys.public_key(self._secrets.mask_secret),
            keys.public_key(self._secrets.share_secret),
            keys.commitment(self._context, self.device_id, self._secrets.self_seed),
            b"",
        )
        body = Advertise(self.query.sha256, self.device_id, unsigned).encode()
        row = Row(unsigned.mask_key, unsigned.share_key, unsigned.commitment, self._key.sign(keys.ADVERTISED + body))
        self._row = row
        answer = Advertise(self.query.sha256, self.device_id, row).encode()
        self._store(ADVERTISED, digest + answer)
        return answer

    def _share(self, request: RosterRequest) -> bytes:
        """Check roster and neighbours, then seal two shares for each neighbour and keep one of the own self seed."""
        roster = Roster(self.query, request.names, request.root)
        rank = self._checked_names(roster)
        neighbours = roster.ring.neighbours(rank)
        _check(len(request.rows) == len(neighbours), "not one row for each neighbour")
        peers = dict(zip(neighbours, request.rows, strict=True))
        self._check_rows(roster, peers)
        self._check_root(roster, rank, request, peers)
        places = [other + 1 for other in (rank, *neighbours)]
        threshold = roster.ring.links.threshold
        seeds = split_secret(self._secrets.self_seed, threshold, places, self._entropy)
        masks = split_secret(self._secrets.mask_secret, threshold, places, self._entropy)
        sealing, masking = keys.Exchange.of(self._secrets.share_secret), keys.Exchange.of(self._secrets.mask_secret)
        agreed = {other: (sealing.agreed(row.share_key), masking.agreed(row.mask_key)) for other, row in peers.items()}
        sealed = tuple(
            keys.seal(
                self._context,
                roster.sha256,
                agreed[other][0],
                self.device_id,
                roster.names[other],
                seeds[at] + masks[at],
                self._entropy,
            )
            for at, other in enumerate(neighbours, 1)
        )
        self._roster, self._rank, self._peers, self._agreed = roster, rank, peers, agreed
        self._shares[rank] = seeds[0] + bytes(SECRET_BYTES)
        unsigned = Shares(self.query.sha256, self.device_id, sealed, b"")
        signature = self._key.sign(keys.SHARED + roster.sha256 + unsigned.signed_part())
        return Shares(self.query.sha256, self.device_id, sealed, signature).encode()

    def _checked_names(self, roster: Roster) -> int:
        names, cohort = roster.names, self.query.cohort
        _check(list(names) == sorted(set(names)), "a roster that is not sorted, or names a device twice")
        _check(cohort.min_survivors <= len(names) <= cohort.invited, "a roster below the floor or above the invited")
        _check(all(name in self._directory for name in names), "a roster names a device outside the directory")
        _check(self.device_id in roster.ranks, "a roster without this device")
        return roster.ranks[self.device_id]

    def _check_rows(self, roster: Roster, peers: dict[int, Row]) -> None:
        for other, row in peers.items():
            unsigned = Row(row.mask_key, row.share_key, row.commitment, b"")
            body = Advertise(self.query.sha256, roster.names[other], unsigned).encode()
            self._verify(self._directory[roster.names[other]], row.signature, keys.ADVERTISED + body)
        public = [key for row in (self._row, *peers.values()) for key in (row.mask_key, row.share_key)]
        _check(len(set(public)) == len(public), "two devices, or two purposes, with one key")

    def _check_root(self, roster: Roster, rank: int, request: RosterRequest, peers: dict[int, Row]) -> None:
        own = leaf(self.device_id, self._row)
        if roster.ring.links.complete:
            leaves = [own if r == rank else leaf(name, peers[r]) for r, name in enumerate(roster.names)]
            _check(not request.proof and merkle_root(leaves) == roster.root, "a roster that its root does not cover")
        else:
            proven = proven_root(own, rank, len(roster.names), request.proof)
            _check(proven == roster.root, "a roster that does not hold this device's keys")

    def _mask(self, request: MaskRequest, digest: bytes) -> bytes:
        """Open the neighbours' shares, put all masks on the vector, and store it before it leaves."""
        sharing = request.sharing
        self._check_set(sharing, (True,) * len(self._roster.names), "those who shared")
        present = [other for other in self._peers if sharing[other]]
        _check(len(request.sealed) == len(present), "not one sealed message for each neighbour")
        view = keys.view_sha256(self._roster.sha256, sharing)
        for other, sealed in zip(present, request.sealed, strict=True):
            name = self._roster.names[other]
            agreed = self._agreed[other][0]
            shares = keys.opened(self._context, self._roster.sha256, agreed, name, self.device_id, sealed)
            if shares is not None:  # who seals nonsense is not helped; its own secrets then rest on fewer shares
                self._shares[other] = shares
        masked = self._vector.copy()
        add_streams(masked, self._streams(present, view))
        unsigned = Masked(self.query.sha256, self.device_id, self._head, masked, b"")
        signature = self._key.sign(keys.MASKED + view + unsigned.signed_part())
        answer = Masked(self.query.sha256, self.device_id, self._head, masked, signature).encode()
        self._store(MASKED, digest + answer)
        self._sharing, self._view = sharing, view
        del self._secrets, self._vector, self._agreed  # best effort: Python wipes nothing
        return answer

    def _streams(self, present: list[int], view: bytes) -> list[Stream]:
        own_key = keys.self_mask_key(self._context, view, self.device_id, self._secrets.self_seed)
        own, streams = (self.device_id, self._row.mask_key), [Stream(own_key, 1)]
        for other in present:
            peer = (self._roster.names[other], self._peers[other].mask_key)
            low, high = (own, peer) if self._rank < other else (peer, own)
            key = keys.pair_mask_key(self._context, view, self._agreed[other][1], low, high)
            streams.append(Stream(key, 1 if self._rank < other else -1))
        return streams

    def _confirm(self, request: ConfirmRequest) -> bytes:
        self._check_set(request.survivors, self._sharing, "the survivors")
        self._survivors = request.survivors
        signature = self._key.sign(keys.SURVIVED + self._view + flags_bytes(request.survivors))
        return Confirm(self.query.sha256, self.device_id, signature).encode()

    def _unmask(self, request: UnmaskRequest) -> bytes:
        """Check that enough survivors signed this device's set of survivors, note that it is revealed, give shares."""
        signers = [rank for rank, signed in enumerate(request.signers) if signed]
        _check(len(request.signers) == len(self._roster.names), "a set of another roster")
        _check(len(signers) >= self.query.cohort.min_survivors, "too few signatures on the survivors")
        _check(all(self._survivors[rank] for rank in signers), "a signature of a device that did not survive")
        message = keys.SURVIVED + self._view + flags_bytes(self._survivors)
        for rank, signature in zip(signers, request.signatures, strict=True):
            self._verify(self._directory[self._roster.names[rank]], signature, message)
        held = tuple(self._sharing[rank] and rank in self._shares for rank in range(len(self._roster.names)))
        shares = tuple(self._one_share(rank) for rank, is_held in enumerate(held) if is_held)
        self._store(REVEALED, hashlib.sha256(message).digest())
        unsigned = Unmask(self.query.sha256, self.device_id, held, shares, b"")
        signature = self._key.sign(keys.UNMASKED + self._view + unsigned.signed_part())
        self._shares.clear()
        return Unmask(self.query.sha256, self.device_id, held, shares, signature).encode()

    def _one_share(self, rank: int) -> bytes:
        """Return the share of the self seed of a survivor, of the mask key of a device that dropped out; never both."""
        both = self._shares[rank]
        return both[:SECRET_BYTES] if self._survivors[rank] else both[SECRET_BYTES:]

    def _check_set(self, chosen: Flags, among: Flags, what: str) -> None:
        """Refuse a set that is too small, leaves this device out, or would let a part be cut out of the ring."""
        _check(len(chosen) == len(among), f"{what}: a set of another roster")
        _check(not any(c and not a for c, a in zip(chosen, among, strict=True)), f"{what}: more than took part before")
        _check(chosen[self._rank], f"{what}: without this device")
        _check(sum(chosen) >= self.query.cohort.min_survivors, f"{what}: fewer than the floor")
        _check(self._roster.ring.every_run_holds(chosen), f"{what}: a run of the ring is too empty")
        vetted = sum(c and name in self._directory.vetted for c, name in zip(chosen, self._roster.names, strict=True))
        _check(vetted >= self.query.cohort.honest, f"{what}: too few vetted devices")

    def _store(self, step: str, data: bytes) -> None:
        """Make a step durable before its answer leaves; if that fails, nothing of this sum leaves any more."""
        try:
            self._journal.store(self._event, step, data)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._stage = OVER
        self._answered.clear()

    def _refusal(self, code: RefusalCode, problem: str) -> bytes:
        self.problem = problem
        return Refusal(self.query.sha256, self.device_id, code).encode()


def _check(holds: object, problem: str) -> None:
    if not holds:
        raise _Refused(problem)
