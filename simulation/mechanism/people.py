"""A small federation whose inputs the auditor knows: real devices and a real private sum, training a plain function.

    updates by the auditor -> Device.part / Device.answer (policy, ledger, clip, rounding, noise, masks) -> SumServer

Nobody's text is in it. Nothing of `client.agent`, `privacy` or `privacy.secagg` is replaced: keys, directory, policy,
ledgers and journals are made the way the local engine makes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.agent import Device, open_devices
from client.contribution import Learner, Rows
from privacy.adapter import AdapterLayout, Cores, Site, rows_sha256
from privacy.directory import Directory
from privacy.errors import ConfideError
from privacy.fixedpoint import from_ring
from privacy.noise import device_noise_key
from privacy.objective import NEXT_TOKEN, OBJECTIVES, PURPOSES
from privacy.policy import Policy
from privacy.query import Cohort, Limits, Query
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.keys import RememberedChecks
from privacy.secagg.server import SumServer
from privacy.wire import Answer, Refusal, decode
from simulation.mechanism.layer import NoSum

Vector = NDArray[np.float64]
FEDERATION = "audit"
BASIS = "b" * 64
TABLES = "d" * 64
SITES = 4


class KnownUpdates:
    """A learner that trains nothing: the update of each person is what the auditor put in `updates`.

    `slot_of` names the slot that fits a person best; `looks_on` is called when a device would train.
    """

    def __init__(self, layout: AdapterLayout) -> None:
        self.layout = layout
        self.updates: Mapping[str, Vector] = {}
        self.slot_of: Mapping[str, int] = {}
        self.looks_on: Callable[[str, Query], object] = lambda user, query: None

    def update(self, user: str, start: Cores, query: Query, seed: int) -> Vector:
        """Return what the auditor put in for `user`, zeros where nothing was."""
        self.looks_on(user, query)
        found = self.updates.get(user)
        return np.zeros(self.layout.dim) if found is None else found

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        """Return less for the slot that the auditor chose for `user`; slot k starts from cores that are all k."""
        slot = float(cores[self.layout.sites[0].module].flat[0])
        return abs(slot - self.slot_of.get(user, 0))

    @property
    def public_sha256(self) -> str:
        """Return the hash of tables that nobody needs here."""
        return TABLES

    def distance(self, user: str, row: Rows, query: Query) -> float:
        """Return less for the slot that the auditor chose, told by the end of the row."""
        return abs(float(row[-1]) - self.slot_of.get(user, 0))

    def declared(self, user: str) -> int | None:
        """Return the slot that the auditor chose, if any."""
        return self.slot_of.get(user)

    def figures(self, user: str, rows: Rows, query: Query, slot: int, seed: int) -> Vector:
        """Return what the auditor put in for `user`, for an objective that trains no adapter."""
        return self.update(user, {}, query, seed)


@dataclass(frozen=True)
class Told:
    """A sum as the server has it: `total` int64 [dim], the devices in it, and what else it was sent, by device."""

    query: Query
    total: NDArray[np.int64]
    survivors: tuple[str, ...]
    frames: Mapping[str, tuple[bytes, ...]]


def layout_of(rank: int, sites: int = SITES) -> AdapterLayout:
    """Return a layout of `sites` cores, rank^2 numbers each."""
    names = (f"model.layers.{i}.q_proj" for i in range(sites))
    return AdapterLayout(tuple(Site(name, rank, rank, rank) for name in names))


class People:
    """`count` people with a device each, in `folder`; use as a context, so that the ledgers are closed.

    `noise_root` takes the place of the run's noise root: for audits that must be repeatable. It is not derived from
    anything public by itself; whoever passes a known one audits with noise that is known to all. That is fine here,
    and only here: nobody's data is in it. `trained` takes the place of known updates, where something is trained.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        layout: AdapterLayout,
        noise_root: bytes,
        *,
        max_participations: int = 10_000,
        budget_rho: Fraction = Fraction(10**6),
        trained: Learner | None = None,
    ) -> None:
        self.users = [f"person-{i:04d}" for i in range(count)]
        self.keys = {user: signing_key(user) for user in self.users}
        self.directory = Directory.of_keys(FEDERATION, {user: key.public_key() for user, key in self.keys.items()})
        self.layout, self.learner = layout, KnownUpdates(layout)
        self.cores: Cores | None = None  # what queries start from; None: see `start`
        self.tail = 0  # numbers behind the cores of each row: a centroid, where a choice rests on one
        self.policy = Policy(
            federation=FEDERATION,
            purposes=PURPOSES,
            objectives=tuple(sorted(OBJECTIVES)),
            public_sha256=TABLES,
            min_noise_multiplier=Fraction(1, 100),
            max_clip_norm=Fraction(1),
            min_invited=1,
            min_survivor_fraction=Fraction(2, 3),
            max_participations=max_participations,
            budget_rho=budget_rho,
            max_dim=2**24,
            limits=Limits(512, 8),
            basis_sha256=BASIS,
            release_signer="e" * 64,
            allow_unprotected=True,
        )
        verify = RememberedChecks()
        self.devices: dict[str, Device] = open_devices(
            folder / "ledger",
            self.policy,
            self.users,
            self.keys,
            lambda user: device_noise_key(noise_root, user),
            trained or self.learner,
            folder / "answers",
            self.directory,
            lambda _: MemoryJournal(),
            verify,
        )
        self._verify, self.folder = verify, folder

    def query(self, number: int, **changes: Any) -> Query:
        """Return the query of round `number` to everybody: masked, z = 1, one slot, unless `changes` says otherwise."""
        slots = int(changes.get("slots", 1))
        plain = Query(
            federation=FEDERATION,
            campaign="mechanism",
            round=number,
            attempt=0,
            purpose="train.global" if slots == 1 else "train.persona",
            slots=slots,
            slot_dim=self.layout.dim,
            clip_norm=Fraction(1, 10),
            noise_multiplier=Fraction(1),
            cohort=Cohort(len(self.users)),
            transport="masked",
            release_sha256=rows_sha256(BASIS, self.start(slots)),
            basis_sha256=BASIS,
            policy_sha256=self.policy.sha256,
            ledger_head="c" * 64,
            objective=NEXT_TOKEN,
            limits=Limits(512, 8),
            directory_sha256=self.directory.sha256,
        )
        return replace(plain, **changes)

    def start(self, slots: int) -> Rows:
        """Return the rows that a query of so many slots starts from: `cores`, or else slot k is all k."""
        if self.cores is not None:
            return np.tile(self.layout.flatten(self.cores).astype(np.float32), (slots, 1))
        return np.repeat(np.arange(slots, dtype=np.float32)[:, None], self.layout.dim + self.tail, axis=1)

    def sum(self, query: Query, updates: Mapping[str, Vector], dropped: Collection[str] = ()) -> Told:
        """Return the private sum of `query`; the masked vectors of `dropped` never arrive. Raises NoSum."""
        self.learner.updates = updates
        slots = self.start(query.slots)
        parts = {user: self.devices[user].part(query.to_bytes(), slots) for user in self.users}
        server = SumServer(query, self.users, dict(self.directory), verify=self._verify)
        sent: dict[str, list[bytes]] = {user: [] for user in self.users}
        try:
            while not server.finished:
                for user, request in server.requests().items():
                    if server.stage == "mask" and user in dropped:
                        parts[user](request)  # made and charged; it is lost on the way
                        continue
                    sent[user].append(parts[user](request))
                    if not server.receive(user, sent[user][-1]):
                        raise NoSum(f"stage {server.stage}: {user} {_said(sent[user][-1])}")
                server.advance()
        except ConfideError as error:
            raise NoSum(f"no sum came about: {type(error).__name__}") from error
        return Told(query, server.total, server.survivors, {user: tuple(frames) for user, frames in sent.items()})

    def answer(self, user: str, query: Query, update: Vector) -> Answer:
        """Return one device's answer in the clear (transport `ideal` or `off`). Raises NoSum where it refuses."""
        frame = self.reply(user, query, update)
        message = _decoded(frame)
        if not isinstance(message, Answer):
            raise NoSum(f"{user} {_said(frame)}")
        return message

    def reply(self, user: str, query: Query, update: Vector) -> bytes:
        """Return the frame that `Device.answer` gives, whatever it is."""
        self.learner.updates = {user: update}
        return self.devices[user].answer(query.to_bytes(), self.start(query.slots))

    def integers(self, user: str, query: Query, update: Vector) -> NDArray[np.int64]:
        """Return the vector of `answer`, lifted, int64 [dim]."""
        return from_ring(self.answer(user, query, update).vector)

    def charged(self, user: str) -> Fraction:
        """Return the zCDP that the device's own ledger charged so far."""
        return self.devices[user].ledger.spent_rho()

    def close(self) -> None:
        """Close the ledgers."""
        for device in self.devices.values():
            device.ledger.close()

    def __enter__(self) -> People:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def signing_key(name: str) -> Ed25519PrivateKey:
    """Return the signing key of an invented person: it protects nobody."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"confide/audit/device\x00" + name.encode()).digest())


def root_of(seed: int | None, name: str, entropy: Callable[[int], bytes]) -> bytes:
    """Return 32 bytes for `name`: of the operating system, or for a repeatable audit of its `seed`."""
    return entropy(32) if seed is None else hashlib.sha256(f"confide/audit/{seed}/{name}".encode()).digest()


def one_hot(dim: int, place: int, length: float) -> Vector:
    """Return a vector [dim] with `length` at `place`, else zeros."""
    vector = np.zeros(dim)
    vector[place] = length
    return vector


def least_survivors(users: Sequence[str], query: Query) -> list[str]:
    """Return whom to lose so that exactly as many survive as the query needs."""
    return list(users[query.cohort.min_survivors :])


def _said(frame: bytes) -> str:
    message = _decoded(frame)
    return f"refused: {message.code}" if isinstance(message, Refusal) else "sent what the sum does not take"


def _decoded(frame: bytes) -> object:
    try:
        return decode(frame)
    except ConfideError:
        return None
