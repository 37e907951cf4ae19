"""The agent of one person, resident because a model load costs seconds: `python -P -m client.resident --home HOME`.

    relay.sock   <- the relay of this device (client.launcher)        questions of the federation, answers, nothing else
    person.sock  <- the person, with the token in person.token        {"do": "status"}, ask, forgot, end

`confide device agent` starts it over a person's vault; without a vault it reads files, for trials and simulation.

It may be killed at any moment. What it charged is in the ledger before anything is computed, what it masked is in
`answers/` before it leaves; an agent that starts again is out of the sum that it was killed in, and in for the next.
`--enrol` makes the device's keys and prints its public key, for the federation's directory, and ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client import background
from client.agent_home import SETTINGS, AgentHome
from client.assistant import model_of
from client.encoder import Encoder
from client.listener import PersonSocket
from client.membership import NONE, OWN, STOCK, Membership, own_history
from client.model import LanguageModel
from client.person_side import PersonSide
from client.vault import Vault
from client.vault_key import opener_from
from privacy.errors import ConfideError, ConfigError

__all__ = ["NONE", "OWN", "STOCK", "Resident", "own_history"]
PERSON_SOCKET = "person.sock"
LOOK_S, QUIET_S, MOST_STARTS = 60.0, 300.0, 8  # between two looks; without a question; of one run of the agent
logger = logging.getLogger(__name__)


class Resident:
    """One person's agent over the folder `home`, from start to `close`: one model in memory for all that it does.

    With a vault it answers its person; where the person has joined a federation, its relay too. Raises ConfideError.
    """

    def __init__(self, home: AgentHome, encoder: Encoder | None = None, ended: threading.Event | None = None) -> None:
        if not home.joined and home.vault is None:
            raise ConfigError(f"{SETTINGS}: no settings, and no vault: there is nothing to answer from")
        directory = home.held_directory if home.joined else None
        if directory is not None and directory.get(home.settings.device) not in (None, home.device_key.public_key()):
            raise ConfigError(f"{home.settings.device} is in the directory under another key than this device's")
        self.home, self.ended = home, ended or threading.Event()
        self.lock, self.model, self._last_s = threading.RLock(), loaded(home), time.monotonic()
        self.forgotten: list[Callable[[], None]] = []  # who else holds text in memory
        self.member = Membership(home, self.model, self.lock) if home.joined else None
        self.person = PersonSide(home.vault, self.model, self.lock, encoder) if home.vault is not None else None
        self._socket = PersonSocket(home.folder / PERSON_SOCKET, home.new_token(), self.handle)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one request of the person; what cannot be done is told in one line."""
        self._last_s = time.monotonic()
        try:
            return self._handle(request)
        except ConfideError as error:
            return {"error": str(error)}

    def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        match request.get("do"):
            case "status":
                return self.status()
            case "ask" if self.person is not None:
                return self.person.ask(request)
            case "forgot":
                if self.member is not None:
                    self.member.forgot()
                if self.person is not None:
                    self.person.forgot()
                for drop in self.forgotten:
                    drop()
                return {"forgot": True}
            case "end":
                self.ended.set()
                return {"ends": True}
        return {"error": "unknown request"}

    def status(self) -> dict[str, Any]:
        """Return what this device gave and what it cost, by its own ledger; of one alone, that it is alone."""
        return self.member.status() if self.member is not None else {"federation": None}

    def idle_s(self) -> float:
        """Return for how long the person has asked nothing."""
        return time.monotonic() - self._last_s

    def close(self) -> None:
        """Stop listening and close the ledger. Training that runs ends with the process; its charge stays."""
        if self.member is not None:
            self.member.close()
        self._socket.close()


def loaded(home: AgentHome) -> LanguageModel:
    """Return the one model of an agent: the federation's where it has joined one, else that of its person's vault."""
    if home.joined:
        return LanguageModel.load(home.settings.model, top_layers=home.settings.layers, quantize=home.settings.quantize)
    assert home.vault is not None
    return model_of(home.vault)


def go_on_when_idle(
    vault: Vault, ended: threading.Event, idle_s: Callable[[], float], every_s: float = LOOK_S, quiet_s: float = QUIET_S
) -> None:
    """Go on with a training that paused, as its person's limits allow, while they ask nothing; until `ended`.

    The training is a process of its own with its own limits (`client.background`). One that dies again and again is
    not started more than `MOST_STARTS` times.
    """
    starts = 0
    while starts < MOST_STARTS and not ended.wait(every_s):
        if idle_s() < quiet_s:
            continue
        try:
            starts += background.go_on(vault) is not None
        except Exception as error:  # noqa: BLE001 - an error's text may hold a person's; its kind is all that is kept
            logger.warning("a training could not go on: %s", type(error).__name__)
            return


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    yield told


def run(home: AgentHome, encoder: Encoder | None = None) -> None:
    """Serve until SIGTERM, Ctrl-C, or the person says that it is over; call with the folder's lock held."""
    with until_told() as told:
        resident = Resident(home, encoder, told)
        if home.vault is not None:
            work = (home.vault, told, resident.idle_s)
            threading.Thread(target=go_on_when_idle, args=work, daemon=True).start()
        _say({"relay": "relay.sock", "person": PERSON_SOCKET} if home.joined else {"person": PERSON_SOCKET})
        told.wait()
        resident.close()


def enrolled(home: AgentHome) -> dict[str, str]:
    """Make the device's keys where they are missing and return its name and public key, for a directory."""
    public, _ = home.device_key.public_key().public_bytes_raw().hex(), home.noise_key
    return {"device": home.settings.device, "public_key": public}


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
        if home.has_vault:
            home = AgentHome(home.folder, Vault.open(home.folder, opener_from()))
        with home.alone():
            if options.enrol:
                _say(enrolled(home))
                return 0
            run(home)
    except ConfideError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(facts: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
