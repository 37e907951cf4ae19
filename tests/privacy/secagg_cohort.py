"""Devices with real keys and the loop that drives a private sum over them: what the tests of `privacy.secagg` share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.directory import Directory
from privacy.query import Cohort, Query
from privacy.secagg.device import SumDevice
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.keys import RememberedChecks
from privacy.secagg.server import SumServer
from privacy.wire import Refusal, decode
from tests.privacy.conftest import QUERY

STAGES = ("advertise", "shares", "mask", "confirm", "unmask")


def name_of(index: int) -> str:
    return f"device-{index:04d}"


@lru_cache(maxsize=4096)
def signing_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"test key of " + name.encode()).digest())


@lru_cache(maxsize=64)
def directory_of(n: int) -> Directory:
    names = map(name_of, range(n))
    return Directory.of_keys("test", {name: signing_key(name).public_key() for name in names})


def masked_query(n: int, dim: int = 8, **changes: Any) -> Query:
    settings: dict[str, Any] = {"cohort": Cohort(n), "slot_dim": dim, "transport": "masked"}
    return replace(QUERY, **settings | {"directory_sha256": directory_of(n).sha256} | changes)


def vectors_of(n: int, dim: int, seed: int = 0) -> dict[str, NDArray[np.uint32]]:
    rng = np.random.default_rng(seed)
    return {name_of(i): rng.integers(0, 2**32, dim, dtype=np.uint32) for i in range(n)}


def exact_sum(vectors: Mapping[str, NDArray[np.uint32]], names: Collection[str]) -> NDArray[np.int64]:
    """Return the sum modulo 2^32, lifted, in Python integers."""
    rows = [[int(v) for v in vectors[name]] for name in names]
    totals = [sum(column) % 2**32 for column in zip(*rows, strict=True)]
    return np.array([t - 2**32 if t >= 2**31 else t for t in totals], dtype=np.int64)


Tamper = Callable[[str, str, bytes], bytes | None]
"""(stage, device, frame) -> the frame that arrives, None if none does."""


@dataclass
class Round:
    """n devices and a server; `drops[stage]` names the devices whose answer of that stage never arrives."""

    n: int
    dim: int = 8
    query: Query = field(init=False)
    changes: dict[str, Any] = field(default_factory=dict)
    threads: int = 1
    remember: bool = False
    to_device: Tamper | None = None
    to_server: Tamper | None = None

    def __post_init__(self) -> None:
        self.query = masked_query(self.n, self.dim, **self.changes)
        self.vectors = vectors_of(self.n, self.dim)
        checks: dict[str, Any] = {"verify": RememberedChecks()} if self.remember else {}
        self.devices = {name: self.device(name, **checks) for name in self.vectors}
        self.server = SumServer(self.query, sorted(self.vectors), directory_of(self.n), self.threads, **checks)
        self.accepted: list[tuple[str, str]] = []
        self.refused: list[tuple[str, str]] = []
        self.seen: list[tuple[str, str, str, bytes]] = []

    def device(self, name: str, **settings: Any) -> SumDevice:
        defaults: dict[str, Any] = {
            "journal": MemoryJournal(),
            "ledger_head": hashlib.sha256(name.encode()).hexdigest(),
        }
        return SumDevice(
            settings.pop("query", self.query),
            name,
            directory_of(self.n),
            signing_key(name),
            self.vectors[name],
            **defaults | settings,
        )

    def run_stage(self, gone: Collection[str] = ()) -> None:
        """Ask, let the devices answer but those `gone`, and close the stage."""
        stage = self.server.stage
        for name, request in self.server.requests().items():
            if name in gone:
                continue
            asked = request if self.to_device is None else self.to_device(stage, name, request)
            if asked is None:
                continue
            self.seen.append((stage, name, "down", asked))
            answer: bytes | None = self.devices[name].reply(asked)
            assert answer is not None
            self.seen.append((stage, name, "up", answer))
            if isinstance(decode(answer), Refusal):
                self.refused.append((stage, name))
            answer = answer if self.to_server is None else self.to_server(stage, name, answer)
            if answer is not None and self.server.receive(name, answer):
                self.accepted.append((stage, name))
        self.server.advance()

    def run(self, drops: Sequence[Collection[str]] = ((), (), (), (), ())) -> NDArray[np.int64]:
        """Return the sum of the whole protocol; `drops` holds the devices that are gone from each stage on."""
        gone: set[str] = set()
        for leaving in drops:
            gone |= set(leaving)
            self.run_stage(gone)
        assert self.server.finished
        return self.server.total
