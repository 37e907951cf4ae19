"""Real devices that learn by hand: policy, ledger, keys, deliveries and service, with a learner that trains nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.agent import Device, open_devices
from client.contribution import Rows
from client.deliveries import Deliveries
from client.service import AgentService, Lazy, Pace, Worker
from privacy.adapter import Basis, Cores, state_sha256
from privacy.canonical import sha256_hex
from privacy.directory import Directory
from privacy.policy import Policy
from privacy.query import Cohort, Limits, Query
from privacy.secagg.messages import Begin
from privacy.session import Delivery, Start, Training, basis_item

ROWS = np.linspace(-1, 1, 32, dtype=np.float32)
BASIS = Basis({"model.layers.0.q_proj": (ROWS.reshape(4, 8), ROWS.reshape(8, 4))})
LAYOUT = BASIS.layout
SERVER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PLANTED = "Zebedee-Quillfeather-7731"


def signing_key(name: str) -> Ed25519PrivateKey:
    """Return the device's key of these tests."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"by hand " + name.encode()).digest())


class Learner:
    """Trains nothing: sleeps as long as is said for a user, runs `on_update`, returns a vector of the user's own."""

    layout = LAYOUT
    public_sha256: str | None = None

    def __init__(self) -> None:
        self.seconds: Mapping[str, float] = {}
        self.on_update: Callable[[str], object] = lambda _: None
        self.trained: list[str] = []

    def update(self, user: str, start: Cores, query: Query, seed: int) -> NDArray[np.float64]:
        self.trained.append(user)
        time.sleep(self.seconds.get(user, 0.0))
        self.on_update(user)
        return np.random.default_rng(list(user.encode())).normal(0, 0.05, LAYOUT.dim)

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        return 0.0

    def distance(self, user: str, row: Rows, query: Query) -> float:
        return 0.0

    def declared(self, user: str) -> int | None:
        return None

    def figures(self, user: str, rows: Rows, query: Query, slot: int, seed: int) -> NDArray[np.float64]:
        return np.zeros(query.slot_dim)


class Crew:
    """`n` devices behind one service, as one process of an agent has them."""

    def __init__(
        self,
        folder: Path,
        n: int = 3,
        transport: str = "ideal",
        pace: Pace | None = None,
        worker: Worker | Lazy | None = None,
        **changes: Any,
    ) -> None:
        self.users = [f"d{i:02d}" for i in range(n)]
        self.keys = {user: signing_key(user) for user in self.users}
        self.directory = Directory.of_keys("test", {user: key.public_key() for user, key in self.keys.items()})
        self.policy = replace(policy(), **{"min_invited": n, **changes})
        self.slots = np.zeros((1, LAYOUT.dim), dtype=np.float32)
        self.query = replace(
            query(self.policy), cohort=Cohort(n), transport=transport, directory_sha256=self.directory.sha256
        )
        self.learner, self.noise_root = Learner(), bytes(32)
        self.deliveries = Deliveries(self.policy)
        self.devices: dict[str, Device] = open_devices(
            folder / "ledgers",
            self.policy,
            self.users,
            self.keys,
            self.noise_key,
            self.learner,
            folder / "answers",
            self.directory,
        )
        self.service = AgentService(list(self.devices.values()), self.deliveries, worker or Lazy(), pace or Pace())

    def noise_key(self, user: str) -> bytes:
        return hashlib.sha256(b"noise of " + user.encode()).digest()

    @property
    def items(self) -> tuple[bytes, bytes]:
        start = Start("test", "first", 0, self.slots).signed(SERVER_KEY)
        return basis_item(BASIS.to_bytes()), start.item()

    @property
    def delivery(self) -> bytes:
        return Delivery(self.items).encode()

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(map(sha256_hex, self.items))

    @property
    def training(self) -> bytes:
        return Training(self.query.to_bytes()).encode()

    @property
    def collect(self) -> bytes:
        return Begin(self.query.sha256).encode()

    def close(self) -> None:
        for device in self.devices.values():
            device.ledger.close()


def policy() -> Policy:
    """Return a policy that grants `query`."""
    return Policy(
        federation="test",
        purposes=("train.global",),
        min_noise_multiplier=Fraction(1, 2),
        max_clip_norm=Fraction(1),
        min_invited=3,
        min_survivor_fraction=Fraction(2, 3),
        max_participations=3,
        budget_rho=Fraction(20),
        max_dim=100,
        limits=Limits(own_tokens=512, local_steps=8),
        basis_sha256=BASIS.sha256,
        release_signer=SERVER_KEY.public_key().public_bytes_raw().hex(),
    )


def query(of: Policy) -> Query:
    """Return a query of round 0 that `of` grants."""
    return Query(
        federation="test",
        campaign="first",
        round=0,
        attempt=0,
        purpose="train.global",
        slots=1,
        slot_dim=LAYOUT.dim,
        clip_norm=Fraction(1, 10),
        noise_multiplier=Fraction(1),
        cohort=Cohort(3),
        transport="ideal",
        release_sha256=state_sha256(BASIS.sha256, LAYOUT, [LAYOUT.zero_cores()]),
        basis_sha256=BASIS.sha256,
        policy_sha256=of.sha256,
        ledger_head="c" * 64,
        objective="next-token",
        limits=Limits(own_tokens=512, local_steps=2),
    )
