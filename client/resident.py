"""The agent of one person, resident because a model load costs seconds: `python -P -m client.resident --home HOME`.

    relay.sock   <- the relay of this device (client.launcher)        questions of the federation, answers, nothing else
    person.sock  <- the person, with the token in person.token        {"do": "status"}

It may be killed at any moment. What it charged is in the ledger before anything is computed, what it masked is in
`answers/` before it leaves; an agent that starts again is out of the sum that it was killed in, and in for the next.
`--enrol` makes the device's keys and prints its public key, for the federation's directory, and ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.agent import Device
from client.agent_home import AgentHome
from client.deliveries import Deliveries
from client.dial import allowed
from client.documents import Document, Person
from client.learner import TextLearner
from client.listener import PersonSocket, RelaySocket, Reply
from client.model import LanguageModel
from client.own_text import own_documents
from client.service import AgentService, Pace, Worker
from privacy.accounting import epsilon_zcdp
from privacy.adapter import Basis
from privacy.errors import ConfideError, ConfigError
from privacy.ledger import Ledger
from privacy.query import fraction_text

LAUNCHER = b"client.launcher"
OWN = "our own launcher answers: the server's code never runs on this device"
STOCK = "RED: a stock flwr-clientapp answers: the server's code runs with the person's rights"
NONE = "no relay has come yet"
DELTA = 1e-6


class WatchedRelaySocket(RelaySocket):
    """A relay's socket that counts which program came: our launcher, or another, which the server's code may be.

    For the person to see a device that is set up wrongly. A program that wants to look like our launcher can.
    """

    def __init__(self, path: Path, reply: Reply, tick_s: float) -> None:
        self.own = self.stock = 0
        super().__init__(path, reply, tick_s)

    def serve(self, connection: socket.socket) -> None:
        """Count who connected, then answer."""
        if LAUNCHER in peer_command(connection):
            self.own += 1
        else:
            self.stock += 1
        super().serve(connection)


class Resident:
    """One person's agent over the folder `home`, from start to `close`. Raises ConfideError."""

    def __init__(self, home: AgentHome) -> None:
        settings, policy, directory = home.settings, home.policy, home.directory
        key, noise_key = home.device_key, home.noise_key  # both before there is a ledger, see `AgentHome`
        if directory.get(settings.device) != key.public_key():
            raise ConfigError(f"{settings.device} is not in the directory under this device's key")
        self.home, self.settings, self.policy = home, settings, policy
        self._documents = own_history(home)
        self._model = LanguageModel.load(settings.model, top_layers=settings.layers)
        answers = home.folder / "answers"
        answers.mkdir(mode=0o700, exist_ok=True)
        root = home.root_key.public_bytes_raw().hex()
        owner = {"federation": policy.federation, "owner": settings.device, "root_key": root}
        self.ledger = Ledger(home.ledger_file, key, owner)
        self.ledger.grant((home.folder / "policy.json").read_bytes())
        self.device = Device(settings.device, answers, policy, self.ledger, key, noise_key, None, directory=directory)
        self.device.allowed = allowed(settings.dial)
        # Encoded before anybody asks: how long it takes depends on how much text there is.
        self._learner = TextLearner(self._model, self.settings.training, self.settings.max_document_tokens)
        self.own_tokens = self._learner.add(settings.device, self._documents)
        lock = threading.RLock()
        deliveries = Deliveries(policy, folder=home.folder, on_basis=self._take_basis)
        service = AgentService([self.device], deliveries, Worker(lock), Pace(hold_s=settings.hold_s))
        self.relay = WatchedRelaySocket(home.folder / "relay.sock", service.reply, settings.tick_s)
        self._person = PersonSocket(home.folder / "person.sock", home.new_token(), self.handle)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request of the person."""
        return self.status() if request.get("do") == "status" else {"error": "unknown request"}

    def status(self) -> dict[str, Any]:
        """Return what this device gave and what it cost, by its own ledger, and whose code its relay runs."""
        with self.device.books:
            spent, pending = self.ledger.spent(), len(self.ledger.account.pending())
        return {
            "device": self.settings.device,
            "federation": self.policy.federation,
            "documents": len(self._documents),
            "own_tokens": self.own_tokens,
            "basis": self.device.learner is not None,
            "accepted": spent.participations,
            "answered": spent.participations - pending,
            "participations_left": max(0, self.policy.max_participations - spent.participations),
            "rho": fraction_text(spent.rho),
            "budget_rho": fraction_text(self.policy.budget_rho),
            "epsilon": epsilon_zcdp(spent.rho, DELTA) if spent.rho else 0.0,
            "delta": DELTA,
            "launcher": STOCK if self.relay.stock else OWN if self.relay.own else NONE,
            "relays": {"own": self.relay.own, "stock": self.relay.stock},
        }

    def close(self) -> None:
        """Stop listening and close the ledger. Training that runs ends with the process; its charge stays."""
        self.relay.close()
        self._person.close()
        self.ledger.close()

    def _take_basis(self, basis: Basis) -> None:
        """Put the federation's basis into the model; from here on the device can answer."""
        self._model.attach(basis)
        self.device.learner = self._learner


def own_history(home: AgentHome) -> tuple[Document, ...]:
    """Return the person's documents, scrubbed where the settings say so."""
    settings = home.settings
    person = Person(settings.device, tuple(own_documents(home.folder, settings.person or settings.device)))
    if not settings.scrub:
        return person.history
    from client.scrub import scrub_person  # spaCy loads here

    return scrub_person(person)[0].history


def peer_command(connection: socket.socket) -> bytes:
    """Return the command line of the process at the other end, b"" if it is gone."""
    process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    yield told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent until it is told to end; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m client.resident", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--enrol", action="store_true", help="make the keys, print the public one, end")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", FutureWarning)  # of packages about each other
    home = AgentHome(options.home)
    try:
        with home.alone(), until_told() as told:
            if options.enrol:
                public, _ = home.device_key.public_key().public_bytes_raw().hex(), home.noise_key
                _say({"device": home.settings.device, "public_key": public})
                return 0
            resident = Resident(home)
            _say({"relay": "relay.sock", "person": "person.sock"})
            told.wait()
            resident.close()
    except ConfideError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(facts: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
