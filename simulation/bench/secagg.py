"""Masks against Flower's SecAgg+ and against the machine: bare AES-256-CTR keystream and additions.

The peer's side is what its clients and server make per neighbour (`pseudo_rand_gen`, a Mersenne Twister under a 32-bit
seed), without its keys, shares and quantisation; a few masks are timed and multiplied. Ours are the real machines.
Every figure is CPU seconds of all threads together, for masks the best of a few tries, since machines are shared; what
the wall clock said of whole steps stands beside them in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from privacy.directory import Directory
from privacy.query import Cohort, Query
from privacy.secagg.device import SumDevice
from privacy.secagg.graph import links_of
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.keys import RememberedChecks
from privacy.secagg.masks import BLOCK, Stream, add_streams
from privacy.secagg.server import SumServer
from simulation.bench.row import Row

PEER: Final = "Flower 1.41 SecAgg+ masks (pseudo_rand_gen, int64)"
PEER_RANGE: Final = 2**32
LIMIT: Final = "limit: as many bare AES-256-CTR streams and uint32 additions, one thread"


@dataclass(frozen=True)
class Sizes:
    """How much each row does; the defaults are what the figures in the documents are of."""

    invited: int = 100
    dropped: int = 30
    dim: int = 2**20
    large_invited: int = 1000
    large_dropped: int = 200
    large_dim: int = 2**16
    threads: int = 2
    tries: int = 5


@dataclass
class Machines:
    """A server and its devices with real keys; `control` counts each one's bytes (up, down) but the vector's."""

    devices: dict[str, SumDevice]
    server: SumServer
    control: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, template: Query, invited: int, dim: int, threads: int) -> Machines:
        """Return the machines of a private sum like `template`, with a directory made here.

        They share one memory of signatures that held (`RememberedChecks`): in one process a thousand devices would
        check the same ones a thousand times over.
        """
        signing = {f"device-{i:05d}": Ed25519PrivateKey.generate() for i in range(invited)}
        directory = Directory.of_keys(template.federation, {name: key.public_key() for name, key in signing.items()})
        query = replace(
            template,
            cohort=Cohort(invited),
            slots=1,
            slot_dim=dim,
            transport="masked",
            directory_sha256=directory.sha256,
        )
        vector, checks = np.random.default_rng(0).integers(0, 2**32, dim, dtype=np.uint32), RememberedChecks()
        devices = {
            name: SumDevice(query, name, directory, key, vector, "0" * 64, MemoryJournal(), verify=checks)
            for name, key in signing.items()
        }
        return cls(
            devices, SumServer(query, sorted(signing), directory, threads, checks), dict.fromkeys(signing, (0, 0))
        )

    def collect(self, gone: Collection[str]) -> None:
        """Let all but `gone` answer the current stage; raises AssertionError if an answer is not taken."""
        vector_bytes = 4 * self.server.query.dim if self.server.stage == "mask" else 0
        for name, request in self.server.requests().items():
            if name not in gone:
                answer = self.devices[name].reply(request)
                up, down = self.control[name]
                self.control[name] = (up + len(answer) - vector_bytes, down + len(request))
                if not self.server.receive(name, answer):
                    raise AssertionError(f"{name} was not understood: {self.devices[name].problem}")

    def run_to_last(self, gone: Collection[str]) -> None:
        """Run until only the masks are left to remove; `gone` share their keys and send no vector."""
        for _ in range(4):
            self.collect(gone if self.server.stage in ("mask", "confirm") else ())
            self.server.advance()
        self.collect(gone)

    def control_bytes(self) -> str:
        """Return the most bytes that a device sends and reads besides its vector, in words."""
        up, down = (max(bytes_[way] for bytes_ in self.control.values()) for way in (0, 1))
        return f"control bytes a device: {up / 1000:.1f} kB up, {down / 1000:.1f} kB down"


def secagg_rows(template: Query, sizes: Sizes) -> list[Row]:
    """Return the rows `secagg.mask`, `secagg.unmask` and `secagg.round1000`; `template` is any query, resized here."""
    small = (peer_mask_seconds(sizes.dim, sizes.tries), bare_mask_seconds(sizes.dim, sizes.tries))
    large = (peer_mask_seconds(sizes.large_dim, sizes.tries), bare_mask_seconds(sizes.large_dim, sizes.tries))
    return [mask_row(sizes, *small), unmask_row(template, sizes, *small), round_row(template, sizes, *large)]


def peer_mask_seconds(dim: int, tries: int) -> float:
    """Return the seconds of one of Flower's masks and its addition."""
    total = np.zeros(dim, dtype=np.int64)

    def one() -> None:
        np.add(total, pseudo_rand_gen(bytes(range(32)), PEER_RANGE, [(dim,)])[0], out=total)

    return best_seconds(one, tries)


def bare_mask_seconds(dim: int, tries: int) -> float:
    """Return the seconds of one keystream and its addition: one open cipher, no keys, no bookkeeping."""
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    size = min(dim, BLOCK)
    zeros, stream, total = bytes(4 * size), bytearray(4 * size), np.zeros(dim, dtype=np.uint32)
    words = np.frombuffer(stream, dtype=np.uint32)

    def twenty() -> None:
        for _ in range(20):
            for at in range(0, dim, size):
                block = total[at : at + size]
                encryptor.update_into(zeros, stream)
                np.add(block, words[: block.size], out=block)

    return best_seconds(twenty, tries) / 20


def best_seconds(action: Callable[[], object], tries: int) -> float:
    """Return the least CPU seconds of several tries."""
    return min(timed(action)[0] for _ in range(tries))


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of all threads and the wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def mask_row(sizes: Sizes, peer: float, limit: float) -> Row:
    """Return what a device's masks take, keys made anew for each, against as many of the peer's."""
    streams = [Stream(i.to_bytes(32, "little"), 1 if i % 2 else -1) for i in range(sizes.invited)]
    vector = np.zeros(sizes.dim, dtype=np.uint32)
    ours = best_seconds(lambda: add_streams(vector, streams), sizes.tries)
    work = f"{sizes.invited} masks on a vector of {sizes.dim}, one thread; not the same: ours are cryptographic"
    return _row("secagg.mask", ours, (peer, limit), sizes.invited, work)


def unmask_row(template: Query, sizes: Sizes, peer: float, limit: float) -> Row:
    """Return what the server takes from the last answer to the sum: secrets rebuilt and proven, masks removed."""
    machines = Machines.of(template, sizes.invited, sizes.dim, sizes.threads)
    machines.run_to_last(sorted(machines.devices)[: sizes.dropped])
    ours, wall = timed(machines.server.advance)
    alive = sizes.invited - sizes.dropped
    masks = alive + _links_to_gone(sizes.invited, sizes.dropped)
    work = (
        f"{sizes.invited} devices, {sizes.dropped} gone after sharing, {masks} masks of {sizes.dim}; ours on "
        f"{sizes.threads} threads ({wall:.2f} s by the clock) with all secrets rebuilt and proven, the peer's masks "
        f"alone; "
        f"{machines.control_bytes()}"
    )
    return _row("secagg.unmask", ours, (peer, limit), masks, work)


def round_row(template: Query, sizes: Sizes, peer: float, limit: float) -> Row:
    """Return what a whole sum of many device machines takes in this process, from the first request to the sum."""
    n, gone = sizes.large_invited, sizes.large_dropped
    machines = Machines.of(template, n, sizes.large_dim, sizes.threads)
    names = sorted(machines.devices)
    dropped = {names[i] for i in np.random.default_rng(1).permutation(n)[:gone]}

    def whole() -> None:
        machines.run_to_last(dropped)
        machines.server.advance()

    ours, wall = timed(whole)
    near = 2 * links_of(Cohort(n)).reach or n - 1
    masks = (n - gone) * (near + 2) + _links_to_gone(n, gone)
    work = (
        f"{n} devices in one process, {gone} gone after sharing, {near} neighbours, vector of {sizes.large_dim}; ours "
        f"({wall:.1f} s by the clock) is everything, signatures that several devices check checked once; the peer's "
        f"masks alone; "
        f"{machines.control_bytes()}"
    )
    return _row("secagg.round1000", ours, (peer, limit), masks, work)


def _links_to_gone(invited: int, gone: int) -> int:
    """Return how many masks tie a device that is gone to one that is there, expected on a ring."""
    near = 2 * links_of(Cohort(invited)).reach or invited - 1
    return round(gone * near * (invited - gone) / (invited - 1))


def _row(work: str, ours: float, one: tuple[float, float], masks: int, same: str) -> Row:
    peer, limit = one[0] * masks, one[1] * masks
    return Row(
        work=work,
        unit="CPU seconds",
        ours=ours,
        peer=peer,
        peer_name=PEER,
        ratio=peer / ours,
        limit=limit,
        limit_ratio=ours / limit,
        same=f"{same}; {LIMIT}",
    )
