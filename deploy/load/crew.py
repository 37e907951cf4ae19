"""Many devices in one process: real policies, ledgers, keys, journals, sums. Run in the end-to-end test (tests/deploy).

Only the training is made up: a device answers a vector of its own, drawn once, in no time. So what is measured is the
protocol, the server and Flower, not a model.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from client.agent import Device, open_devices
from client.contribution import Rows, contribution
from client.deliveries import Deliveries
from client.listener import RelaySocket
from client.service import AgentService, Pace, Worker
from privacy.adapter import AdapterLayout, Basis, Cores
from privacy.answer import make_answer, sum_answers
from privacy.directory import newer_directory
from privacy.enrolment import Enrolment, open_invitation
from privacy.query import Query
from server import members
from server.folder import OperatorFolder, Settings
from server.found import bundle_sha256, found

WIDTH = 64


class MadeUp:
    """A learner that trains nothing: each device's update is a vector of its own, whatever it is asked."""

    public_sha256: str | None = None

    def __init__(self, layout: AdapterLayout) -> None:
        self.layout = layout

    def update(self, user: str, start: Cores, query: Query, seed: int) -> NDArray[np.float64]:
        """Return the vector of `user`, float64 [dim]."""
        drawn = np.random.default_rng(list(hashlib.sha256(user.encode()).digest()))
        return drawn.normal(0.0, 0.001, self.layout.dim)

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        """Return which of several cores fits: the one of the user's hash, by chance."""
        return float(hashlib.sha256(user.encode()).digest()[0])

    def distance(self, user: str, row: Rows, query: Query) -> float:
        """Return the same as `loss`; nothing is near or far here."""
        return 0.0

    def declared(self, user: str) -> int | None:
        """Return None: nobody declares a persona here."""
        return None

    def figures(self, user: str, rows: Rows, query: Query, slot: int, seed: int) -> NDArray[np.float64]:
        """Return zeros: nothing is measured here."""
        return np.zeros(query.slot_dim)


def made_basis(sites: int, rank: int) -> Basis:
    """Return a basis of random orthonormal factors, `sites` modules of WIDTH; nobody's weights are in it."""
    drawn = np.random.default_rng(0)

    def factor() -> NDArray[np.float32]:
        return np.linalg.qr(drawn.normal(size=(WIDTH, rank)))[0].astype(np.float32)

    pairs = {f"model.layers.{i}.self_attn.q_proj": (factor().T.copy(), factor()) for i in range(sites)}
    return Basis(pairs)


def founded(
    folder: Path,
    count: int,
    rounds: int,
    ports: tuple[int, int, int],
    basis: Basis,
    cohort: int = 0,
    stage_s: int = 600,
) -> OperatorFolder:
    """Return a federation for `count` devices on loopback, on the ports of door, SuperLink and page.

    `cohort` of them are invited to a round, all if left out; `stage_s` is the patience of each stage.
    """
    settings = Settings(
        federation="load",
        address=f"127.0.0.1:{ports[0]}",
        model="none",
        model_sha256="1" * 64,
        basis_sha256=basis.sha256,
        bundle_sha256=bundle_sha256(),
        layers=1,
        dim=basis.layout.dim,
        cohort=cohort or count,
        rounds=rounds,
        hold_s=1,
        stage_s=stage_s,
        listen="127.0.0.1",
        control=ports[1],
        observe=ports[2],
        names=("127.0.0.1",),
    )
    operator = OperatorFolder(folder)
    found(operator, settings, basis)
    return operator


class Crew:
    """`count` devices, enrolled and admitted as the commands do, behind one socket until `close`."""

    def __init__(self, operator: OperatorFolder, folder: Path, count: int, basis: Basis) -> None:
        self.names = [f"device-{i:04d}" for i in range(count)]
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.node_keys = [ec.generate_private_key(ec.SECP384R1()) for _ in self.names]
        root = open_invitation((operator.folder / "invitation.json").read_bytes()).root_key
        for name, node_key in zip(self.names, self.node_keys, strict=True):
            key, code = self.keys[name], members.invite(operator)
            public = node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            enrolment = Enrolment(
                "load", root, name, "none", key.public_key().public_bytes_raw().hex(), public, secrets.token_hex(32)
            )
            members.admit(operator, enrolment.signed(key, code), vetted=True)
        directory, file = operator.directory, (operator.home / "ledger" / "directory.json").read_bytes()
        self._noise = {name: secrets.token_bytes(32) for name in self.names}
        policy, self._learner = operator.policy, MadeUp(basis.layout)
        self.devices: Mapping[str, Device] = open_devices(
            folder / "ledgers",
            policy,
            self.names,
            self.keys,
            self._noise.__getitem__,
            self._learner,
            folder / "answers",
            directory,
        )
        self._root = operator.root_public
        deliveries = Deliveries(policy, on_directory=self._take_directory, directory=file)
        self.service = AgentService(
            list(self.devices.values()), deliveries, Worker(threading.RLock()), Pace(hold_s=1.0)
        )
        self.sockets = folder / "s"
        self._socket = RelaySocket(self.sockets / "0.sock", self.service.reply)

    def exact(self, query: Query, total: NDArray[np.int64], survivors: Sequence[str]) -> bool:
        """Return whether `total`, int64 [dim], is number by number the sum of what the survivors sent under masks.

        Each device's vector is made once more, noise and all: its noise key, the event and the update fix it.
        """
        rows = np.zeros((1, self._learner.layout.dim), dtype=np.float32)
        answers = [
            make_answer(contribution(self._learner, name, query, rows, 0), query, name, self._noise[name])
            for name in survivors
        ]
        return bool((sum_answers(query, answers)[0] == total).all())

    def _take_directory(self, file: bytes) -> None:
        """Take a newer directory for all devices, as each would. Raises ConfideError for another."""
        for device in self.devices.values():
            device.directory = newer_directory(file, self._root, device.directory)

    def close(self) -> None:
        """Stop answering and close the ledgers."""
        self._socket.close()
        for device in self.devices.values():
            device.ledger.close()
