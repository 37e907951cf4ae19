"""One device's part in one federation: its ledger, what it lets be asked, what it learns from, its relay's socket.

Where the device has a vault, three things are read out of it at the moment of a query and kept nowhere else: how far
the dial lets it answer, the scrubbed text of the sources whose owner said `shared`, and the keys. The signed ledger
gets a line whenever the dial stands elsewhere than it says.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from client.agent import Device
from client.agent_home import DIRECTORY, AgentHome
from client.deliveries import Deliveries
from client.dial import allowed, checked
from client.documents import Document, Person
from client.importers import SHARED
from client.join import slot_of
from client.kept_answers import ANSWERS, forget_answers
from client.learner import TextLearner
from client.library import documents
from client.listener import RelaySocket, Reply
from client.model import LanguageModel
from client.own_text import own_documents
from client.relay_user import place_of
from client.scrub_strength import strength_of
from client.service import AgentService, Pace, Worker
from client.vault import Vault
from privacy.accounting import epsilon_zcdp
from privacy.adapter import Basis
from privacy.canonical import sha256_hex
from privacy.errors import ConfigError
from privacy.ledger import Ledger
from privacy.query import fraction_text

LAUNCHER = b"client.launcher"
OWN = "our own launcher answers: the server's code never runs on this device"
STOCK = "RED: a stock flwr-clientapp answers: the server's code runs with the person's rights"
NONE = "no relay has come yet"
DELTA = 1e-6
RELAY_SOCKET = "relay.sock"


class WatchedRelaySocket(RelaySocket):
    """A relay's socket that counts which program came: our launcher, or another, which the server's code may be.

    For the person to see a device that is set up wrongly. A program that wants to look like our launcher can.
    """

    def __init__(self, path: Path, reply: Reply, tick_s: float, users: Collection[int] = ()) -> None:
        self.own = self.stock = 0
        super().__init__(path, reply, tick_s, users)

    def serve(self, connection: socket.socket) -> None:
        """Count who connected, then answer."""
        if LAUNCHER in peer_command(connection):
            self.own += 1
        else:
            self.stock += 1
        super().serve(connection)


class Membership:
    """What answers a federation's relay for the owner of `home`, over a loaded model, until `close`.

    `lock` is held by whatever uses the model. Raises ConfideError.
    """

    def __init__(self, home: AgentHome, model: LanguageModel, lock: threading.RLock) -> None:
        settings, policy, directory = home.settings, home.policy, home.held_directory
        key, noise_key = home.device_key, home.noise_key  # both before there is a ledger, see `AgentHome`
        self.home, self.settings, self.policy = home, settings, policy
        self._model, self._lock = model, lock
        answers = home.folder / ANSWERS
        answers.mkdir(mode=0o700, exist_ok=True)
        root = home.root_key.public_bytes_raw().hex()
        owner = {"federation": policy.federation, "owner": settings.device, "root_key": root}
        self.ledger = Ledger(home.ledger_file, key, owner)
        self.ledger.grant((home.folder / "policy.json").read_bytes())
        self.device = Device(settings.device, answers, policy, self.ledger, key, noise_key, None, directory=directory)
        self.device.allowed, self.device.refresh = self._allowed, self._refresh
        # Encoded before anybody asks: how long it takes depends on how much text there is.
        self._learner = TextLearner(model, settings.training, settings.max_document_tokens)
        self._basis: Basis | None = None
        self._learned_from = ""
        self.own_tokens = 0
        self._refresh()
        self._allowed()
        held = (home.folder / DIRECTORY).read_bytes() if directory is not None else b""
        deliveries = Deliveries(policy, None, home.folder, self._take_basis, self._take_directory, held)
        self._worker = Worker(lock)
        self._service = AgentService([self.device], deliveries, self._worker, Pace(hold_s=settings.hold_s))
        place = place_of(settings)
        socket_file = (place.seam if place is not None else home.folder) / RELAY_SOCKET
        users = [place.user] if place is not None else []
        self.relay = WatchedRelaySocket(socket_file, self._service.reply, settings.tick_s, users)

    def forgot(self) -> None:
        """Drop what was made of the owner's text, in memory and in `answers/`, and learn from what is left.

        Sums that are under way lose this device. An answer that was given stays charged, and is not given again.
        """
        self._worker.clear()
        self._service.forget_jobs()
        with self._lock:  # whatever trained until now is dropped with its job
            forget_answers(self.home.folder)
            self._learned_from = ""
            self._refresh()

    def status(self) -> dict[str, Any]:
        """Return what this device gave and what it cost, by its own ledger, and whose code its relay runs."""
        with self.device.books:
            spent, pending = self.ledger.spent(), len(self.ledger.account.pending())
        return {
            "device": self.settings.device,
            "federation": self.policy.federation,
            "documents": len(self._learner.documents[self.settings.device]),
            "own_tokens": self.own_tokens,
            "basis": self.device.learner is not None,
            "accepted": spent.participations,
            "answered": spent.participations - pending,
            "participations_left": max(0, self.policy.max_participations - spent.participations),
            "rho": fraction_text(spent.rho),
            "budget_rho": fraction_text(self.policy.budget_rho),
            "epsilon": epsilon_zcdp(spent.rho, DELTA) if spent.rho else 0.0,
            "delta": DELTA,
            "admitted": self.settings.device in (self.device.directory or {}),
            "directory": self.device.directory.serial if self.device.directory is not None else None,
            "launcher": STOCK if self.relay.stock else OWN if self.relay.own else NONE,
            "relays": {"own": self.relay.own, "stock": self.relay.stock},
            "relay_user": place.user if (place := place_of(self.settings)) is not None else os.getuid(),
        }

    def close(self) -> None:
        """Stop listening and close the ledger. Training that runs ends with the process; its charge stays."""
        self.relay.close()
        self.ledger.close()

    def _allowed(self) -> frozenset[str]:
        """Return what the dial allows now; the ledger notes where it stands, once for each turn."""
        vault = self.home.vault
        if vault is None:
            return allowed(self.settings.dial)
        stop, line = checked(vault)
        with self.device.books:
            body = {"dial": stop, "turn": line}
            noted = next((dict(e.body) for e in reversed(self.ledger.entries()) if "dial" in e.body), None)
            if noted != body:
                self.ledger.append("POLICY", body)
        return allowed(stop)

    def _refresh(self) -> None:
        """Encode the owner's text anew if it is not what it was; put the federation's basis back if a reply took it.

        Which persona the owner counts themselves to is read as well.
        """
        if self._basis is not None and self._model.layout is not self._basis.layout:
            self._model.attach(self._basis)
        vault = self.home.vault
        state = shared_state(vault) if vault is not None else "files"
        if state != self._learned_from:
            self.own_tokens = self._learner.add(self.settings.device, own_history(self.home))
            self._learned_from = state
        slot = slot_of(self.home)
        if slot is None:
            self._learner.named.pop(self.settings.device, None)
        else:
            self._learner.named[self.settings.device] = slot

    def _take_directory(self, file: bytes) -> None:
        """Keep a newer directory of the pinned root key; who is in it takes part in the next sums, nobody else."""
        self.device.directory = self.home.take_directory(file)

    def _take_basis(self, basis: Basis) -> None:
        """Put the federation's basis into the model; from here on the device can answer."""
        with self._lock:
            self._model.attach(basis)
            self._basis = basis
            self.device.learner = self._learner


def own_history(home: AgentHome) -> tuple[Document, ...]:
    """Return what may train what is shared: scrubbed out of the vault, or from files, as the settings say.

    Out of a vault come the texts whose source is consented to for `shared`, always scrubbed.
    """
    if home.vault is not None:
        from client.pseudonym import shared_documents  # spaCy loads here

        return shared_documents(home.vault)
    if home.has_vault:
        raise ConfigError("the text of this folder lies in its vault: open it")
    settings = home.settings
    person = Person(settings.device, tuple(own_documents(home.folder, settings.person or settings.device)))
    if not settings.scrub:
        return person.history
    from client.scrub import scrub_person

    return scrub_person(person)[0].history


def shared_state(vault: Vault) -> str:
    """Return what differs whenever `own_history` would: of which texts, and how strongly they are scrubbed."""
    numbers = [kept.number for kept in documents(vault, SHARED, held_back=False)]
    return sha256_hex(json.dumps([strength_of(vault), numbers]).encode())


def peer_command(connection: socket.socket) -> bytes:
    """Return the command line of the process at the other end, b"" if it is gone."""
    process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
