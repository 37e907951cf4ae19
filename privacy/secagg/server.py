"""The server's side of a private sum: five stages, each closed once, and a sum that is exact or is not given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from privacy.errors import CohortTooSmall, ConfigError, SignatureInvalid, SumInvalid, WireError
from privacy.fixedpoint import from_ring
from privacy.query import Query
from privacy.secagg import keys as crypto
from privacy.secagg.masks import Stream, add_streams
from privacy.secagg.messages import (
    Advertise,
    Begin,
    Confirm,
    ConfirmRequest,
    Flags,
    FromDevice,
    Masked,
    MaskRequest,
    RosterRequest,
    Row,
    Shares,
    Unmask,
    UnmaskRequest,
    flags_bytes,
)
from privacy.secagg.recovery import Recovery
from privacy.secagg.roster import Roster, leaf, merkle_proofs, merkle_root
from privacy.wire import decode

STAGES: Final = ("advertise", "shares", "mask", "confirm", "unmask", "finished")
ABORTED: Final = "aborted"
_ANSWERS: Final = (Advertise, Shares, Masked, Confirm, Unmask)


class SumServer:
    """One private sum as the server sees it; `invited` are asked, `keys` holds their keys from the directory.

    A loop drives it: send `requests`, hand what comes back to `receive`, call `advance` when the stage is over. Masked
    vectors are added as they arrive, so that memory is O(dim). Once `finished`, `total` is the exact integer sum over
    `survivors` and `heads` names the head of each one's ledger; `liars` maps a device whose shares did not fit to those
    whose secrets they were of. `threads` is for removing masks. Raises ConfigError for a query or cohort that does not
    fit.
    """

    def __init__(
        self,
        query: Query,
        invited: Sequence[str],
        keys: Mapping[str, Ed25519PublicKey],
        threads: int = 1,
        verify: crypto.Verify = crypto.verify_signature,
    ) -> None:
        if query.transport != "masked" or len(set(invited)) != len(invited) or len(invited) != query.cohort.invited:
            raise ConfigError("a private sum needs transport masked and as many devices as its cohort invites")
        if not all(name in keys for name in invited):
            raise ConfigError("a device is invited whose key is not known")
        self.query, self.threads = query, threads
        self.heads: dict[str, str] = {}
        self.survivors: tuple[str, ...] = ()
        self.liars: dict[str, tuple[str, ...]] = {}
        self._keys = {name: keys[name] for name in sorted(invited)}
        self._verify, self._stage = verify, 0
        self._aborted = False
        self._context = bytes.fromhex(query.sha256)
        self._asked: tuple[str, ...] = tuple(self._keys)
        self._rows: dict[str, Row] = {}
        self._sealed: dict[str, tuple[bytes, ...]] = {}
        self._signed: dict[int, bytes] = {}
        self._given: dict[int, dict[int, bytes]] = {}
        self._sum: NDArray[np.uint32] | None = None
        self._total: NDArray[np.int64] | None = None
        self._arrived: set[str] = set()

    @property
    def stage(self) -> str:
        """Return the stage whose answers are awaited, `finished`, or `aborted`."""
        return ABORTED if self._aborted else STAGES[self._stage]

    @property
    def finished(self) -> bool:
        """Return whether `total` is there."""
        return self.stage == "finished"

    @property
    def total(self) -> NDArray[np.int64]:
        """Return the sum over the survivors, int64 [dim]; raises SumInvalid before it is proven."""
        if self._total is None:
            raise SumInvalid(f"there is no sum at stage {self.stage}")
        return self._total

    def requests(self) -> dict[str, bytes]:
        """Return the frame to send to each device that is still asked; the same each time within a stage."""
        if self._aborted or self.finished:
            return {}
        sha256 = self.query.sha256
        if self._stage == 0:
            return dict.fromkeys(self._asked, Begin(sha256).encode())
        if self._stage == 1:
            return self._roster_requests()
        if self._stage == 2:
            return {name: self._mask_request(name).encode() for name in self._asked}
        if self._stage == 3:
            return dict.fromkeys(self._asked, ConfirmRequest(sha256, self._survived).encode())
        least = self.query.cohort.min_survivors
        chosen = sorted(self._signed)[:least]  # as many as a device wants to see, no more bytes
        signers = self._flags(set(chosen))
        request = UnmaskRequest(sha256, signers, tuple(self._signed[rank] for rank in chosen)).encode()
        return dict.fromkeys(self._asked, request)

    def receive(self, device_id: str, frame: bytes) -> bool:
        """Take one frame and return True; False, and no effect, unless it is this device's first valid answer now."""
        if self._aborted or self.finished or device_id not in self._asked_set or device_id in self._arrived:
            return False
        try:
            message = decode(frame)
            if not isinstance(message, _ANSWERS[self._stage]):
                return False
            if message.query_sha256 != self.query.sha256 or message.device_id != device_id:
                return False
            self._take(device_id, message)
        except (WireError, SignatureInvalid):
            return False
        self._arrived.add(device_id)
        return True

    def advance(self) -> None:
        """Close the stage with the answers that are in. Raises CohortTooSmall or SumInvalid: then the sum is void."""
        if self._aborted or self.finished:
            raise ConfigError(f"a private sum that is {self.stage} does not go on")
        try:
            self._close()
        except BaseException:
            self._aborted, self._sum = True, None
            raise
        self._asked = tuple(name for name in self._asked if name in self._arrived)
        self._arrived = set()
        self._stage += 1

    @property
    def _asked_set(self) -> Mapping[str, object]:
        return self._rows if self._stage else self._keys

    def _take(self, name: str, message: FromDevice) -> None:
        """Verify one answer and add it to what is known; raises WireError or SignatureInvalid and changes nothing."""
        key = self._keys[name]
        if isinstance(message, Advertise):
            unsigned = Row(message.row.mask_key, message.row.share_key, message.row.commitment, b"")
            body = Advertise(message.query_sha256, name, unsigned).encode()
            self._verify(key, message.row.signature, crypto.ADVERTISED + body)
            for public in (message.row.mask_key, message.row.share_key):
                _PROBE.agreed(public)  # a point of low order would make everybody else refuse the roster
            self._rows[name] = message.row
            return
        rank = self._roster.ranks[name]
        if isinstance(message, Shares):
            _require(len(message.sealed) == len(self._roster.ring.neighbours(rank)))
            self._verify(key, message.signature, crypto.SHARED + self._roster.sha256 + message.signed_part())
            self._sealed[name] = message.sealed
        elif isinstance(message, Masked):
            _require(message.vector.size == self.query.dim)
            self._verify(key, message.signature, crypto.MASKED + self._view + message.signed_part())
            if self._sum is None:
                self._sum = np.zeros(self.query.dim, dtype=np.uint32)
            self._sum += message.vector
            self.heads[name] = message.ledger_head
        elif isinstance(message, Confirm):
            self._verify(key, message.signature, self._confirmed)
            self._signed[rank] = message.signature
        else:
            self._take_shares(rank, message, key)

    def _take_shares(self, rank: int, message: Unmask, key: Ed25519PublicKey) -> None:
        near = {rank, *self._roster.ring.neighbours(rank)}
        held = [other for other, is_held in enumerate(message.held) if is_held]
        _require(len(message.held) == len(self._roster.names) and all(other in near for other in held))
        self._verify(key, message.signature, crypto.UNMASKED + self._view + message.signed_part())
        for other, share in zip(held, message.shares, strict=True):
            self._given.setdefault(other, {})[rank + 1] = share

    def _close(self) -> None:
        least = self.query.cohort.min_survivors
        if len(self._arrived) < least and self._stage < 4:
            raise CohortTooSmall(
                f"{len(self._arrived)} devices answered at stage {self.stage}, the query needs {least}"
            )
        if self._stage == 0:
            self._close_roster()
        elif self._stage == 1:
            self._sharing = self._flags({self._roster.ranks[name] for name in self._arrived})
            self._require_runs(self._sharing)
            self._view = crypto.view_sha256(self._roster.sha256, self._sharing)
        elif self._stage == 2:
            self._survived = self._flags({self._roster.ranks[name] for name in self._arrived})
            self._require_runs(self._survived)
            self._confirmed = crypto.SURVIVED + self._view + flags_bytes(self._survived)
            self._sealed.clear()
        elif self._stage == 4:
            self._remove_masks()

    def _close_roster(self) -> None:
        """Fix who takes part: those whose keys are theirs alone. A key that stands twice takes all its owners out."""
        owners: dict[bytes, set[str]] = {}
        for name, row in self._rows.items():
            for public in (row.mask_key, row.share_key):
                owners.setdefault(public, set()).add(name)
        shared = {name for names in owners.values() if len(names) > 1 for name in names}
        shared |= {name for name, row in self._rows.items() if row.mask_key == row.share_key}
        self._arrived -= shared
        self._rows = {name: self._rows[name] for name in sorted(self._arrived)}
        if len(self._rows) < self.query.cohort.min_survivors:
            raise CohortTooSmall(f"{len(self._rows)} devices with keys of their own: too few")
        leaves = [leaf(name, row) for name, row in self._rows.items()]
        self._roster = Roster(self.query, tuple(self._rows), merkle_root(leaves))
        complete = self._roster.ring.links.complete
        self._proofs = [()] * len(leaves) if complete else merkle_proofs(leaves)

    def _roster_requests(self) -> dict[str, bytes]:
        names, rows = self._roster.names, tuple(self._rows.values())
        frames = {}
        for rank, name in enumerate(names):
            near = tuple(rows[other] for other in self._roster.ring.neighbours(rank))
            request = RosterRequest(self.query.sha256, names, self._roster.root, self._proofs[rank], near)
            frames[name] = request.encode()
        return frames

    def _mask_request(self, name: str) -> MaskRequest:
        rank, sealed = self._roster.ranks[name], []
        for other in self._roster.ring.neighbours(rank):
            if self._sharing[other]:
                at = self._roster.ring.neighbours(other).index(rank)
                sealed.append(self._sealed[self._roster.names[other]][at])
        return MaskRequest(self.query.sha256, self._sharing, tuple(sealed))

    def _remove_masks(self) -> None:
        """Rebuild what the shares give, prove it by its commitment, take every mask off, and lift the sum."""
        names, ring = self._roster.names, self._roster.ring
        recovery, streams = Recovery(ring.links.threshold), []
        for rank, name in enumerate(names):
            if not self._sharing[rank]:
                continue
            shares = self._given.get(rank, {})
            if self._survived[rank]:
                seed = recovery.secret(rank, shares, partial(self._is_seed, name))
                streams.append(Stream(crypto.self_mask_key(self._context, self._view, name, seed), -1))
            elif any(self._survived[other] for other in ring.neighbours(rank)):
                secret = recovery.secret(rank, shares, partial(self._is_mask_secret, name))
                streams += self._pair_streams(rank, secret)
        assert self._sum is not None
        add_streams(self._sum, streams, self.threads)
        self.liars = {names[place - 1]: tuple(names[r] for r in sorted(of)) for place, of in recovery.liars.items()}
        self.survivors = tuple(name for rank, name in enumerate(names) if self._survived[rank])
        self.heads = {name: self.heads[name] for name in self.survivors}
        self._total, self._sum = from_ring(self._sum), None
        self._given.clear()

    def _pair_streams(self, gone: int, secret: bytes) -> list[Stream]:
        """Return what takes the masks with a device that dropped out off the vectors of its surviving neighbours."""
        exchange, streams = crypto.Exchange.of(secret), []
        for other in self._roster.ring.neighbours(gone):
            if self._survived[other]:
                low, high = ((n := self._roster.names[r], self._rows[n].mask_key) for r in sorted((gone, other)))
                agreed = exchange.agreed(self._rows[self._roster.names[other]].mask_key)
                key = crypto.pair_mask_key(self._context, self._view, agreed, low, high)
                streams.append(Stream(key, -1 if other < gone else 1))
        return streams

    def _is_seed(self, name: str, seed: bytes) -> bool:
        return crypto.commitment(self._context, name, seed) == self._rows[name].commitment

    def _is_mask_secret(self, name: str, secret: bytes) -> bool:
        return crypto.public_key(secret) == self._rows[name].mask_key

    def _require_runs(self, present: Flags) -> None:
        if not self._roster.ring.every_run_holds(present):
            raise CohortTooSmall("too many devices that stand together on the ring have dropped out")

    def _flags(self, ranks: set[int]) -> Flags:
        return tuple(rank in ranks for rank in range(len(self._roster.names)))


_PROBE: Final = crypto.Exchange.of(bytes(32))  # finds points of low order; its secret is nobody's


def _require(holds: bool) -> None:
    if not holds:
        raise WireError("an answer that does not fit this sum")
