"""Two real devices over Flower's SuperLink and SuperNodes on loopback; each of their processes is killed in turn."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.agent_home import AgentHome
from deploy.local.choice import Choice
from deploy.local.federation import Federation
from deploy.local.processes import send
from privacy.ledger import read_ledger
from privacy.query import Query
from privacy.release import verify_release
from server.campaign import MAX_ATTEMPTS

pytestmark = pytest.mark.slow
WORDS = ("kettle", "ladder", "garden", "letter", "window", "bridge", "winter", "pocket")
ROUNDS = 5
ROUND_S = 900.0  # a killed relay costs a minute until its SuperNode notices, and a busy machine doubles everything


def until(holds: Callable[[], bool], what: str, patience_s: float = ROUND_S, pause_s: float = 0.05) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"not within {patience_s:.0f} s: {what}"
        time.sleep(pause_s)


class Rehearsal:
    """A federation under test: what its server and its devices have written so far."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.federation = Federation(folder)
        people = folder / "people.jsonl"
        rows = [
            {"user": user, "i": i, "split": "history", "text": f"The {word} is {user}'s own {WORDS[i - 1]}."}
            for user in ("ada", "ben")
            for i, word in enumerate(WORDS)
        ]
        people.write_text("".join(json.dumps(row) + "\n" for row in rows))
        choice = Choice(
            model=str(model),
            people=people,
            rounds=ROUNDS,
            layers=2,
            rank=4,
            samples=6,
            sample_tokens=24,
            own_tokens=96,
            scrub=False,
            hold_s=1.0,
        )
        self.federation.up(choice)
        self.rounds = self.federation.folder / "server" / "checkpoints" / "rounds"

    @property
    def first(self) -> AgentHome:
        return self.federation.homes[0]

    def sums(self, number: int) -> list[Path]:
        return sorted(self.rounds.glob(f"round-{number:05d}-*.sum"))

    def lost(self, number: int) -> int:
        return len(list(self.rounds.glob(f"round-{number:05d}-*.lost")))

    def queries(self) -> list[Query]:
        return [Query.from_bytes(path.read_bytes()) for path in sorted(self.rounds.glob("*.query"))]

    def steps(self, home: AgentHome, number: int, step: str) -> list[str]:
        """Return the events of round `number` of which the device's journal holds `step`."""
        device, journal = home.folder.name, home.folder / "answers"
        events = [q.event_id(device).hex() for q in self.queries() if q.round == number]
        return [event for event in events if (journal / f"{event}.{step}").exists()]

    def when(self, number: int, step: str) -> None:
        """Return as soon as the first device has come so far in round `number`."""
        until(lambda: bool(self.steps(self.first, number, step)), f"{step} in round {number}")
        assert not self.sums(number), "the round was over before anything could be killed in it"

    def kill(self, *words: str) -> None:
        """Send SIGKILL to the processes of this federation whose command line or environment hold `words`."""
        until(lambda: bool(self.federation.processes.running(*words)), f"a process of {words}")
        for pid in self.federation.processes.running(*words):
            send(pid, signal.SIGKILL)

    def finish(self, number: int) -> None:
        until(lambda: bool(self.sums(number)), f"the sum of round {number}")

    def check_budgets(self) -> None:
        """No answer is missing in a ledger: what left a device, or may have, is charged there, within its policy."""
        for home in self.homes:  # in this order, because the next round goes on meanwhile
            device = home.folder.name
            sums = sum(len(self.sums(number)) for number in range(ROUNDS))
            seen = {file.name.partition(".")[0] for file in (home.folder / "answers").iterdir()}
            account = read_ledger(home.ledger_file).account
            charged = {r.event for r in account.charged()}
            rho = {q.event_id(device).hex(): q.rho or Fraction(0) for q in self.queries()}
            assert seen <= charged <= set(rho)
            assert len(charged) >= sums
            assert account.spent_rho() == sum(rho[event] for event in charged) <= home.policy.budget_rho
            federation = read_ledger(self.federation.folder / "server" / "ledger" / "federation.jsonl").account
            assert federation.spent_rho(device) >= account.spent_rho(), "the federation claims no less than was spent"

    @property
    def homes(self) -> list[AgentHome]:
        return self.federation.homes


@pytest.fixture
def rehearsal(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Rehearsal]:
    folder = tmp_path / "f"
    folder.mkdir()
    try:
        yield Rehearsal(folder, tiny_model_dir)
    finally:
        assert Federation(folder).down() == []


def test_a_round_and_then_every_process_killed_in_turn(rehearsal: Rehearsal) -> None:
    federation, first = rehearsal.federation, rehearsal.first
    federation.submit()
    rehearsal.finish(0)
    rehearsal.check_budgets()

    rehearsal.when(1, "advertised")
    rehearsal.kill("client.resident", str(first.folder))
    federation.start_agent(first)
    rehearsal.finish(1)
    assert rehearsal.lost(1) >= 1, "the killed agent was out of the sum that it was killed in"
    rehearsal.check_budgets()

    rehearsal.when(2, "advertised")
    rehearsal.kill("client.launcher", str(first.folder))
    rehearsal.finish(2)
    rehearsal.check_budgets()

    rehearsal.when(3, "advertised")
    rehearsal.kill("flower-supernode", str(first.folder))
    federation.return_supernode(first)
    rehearsal.finish(3)
    rehearsal.check_budgets()

    rehearsal.when(4, "masked")
    rehearsal.kill("flwr-serverapp")
    federation.submit()
    rehearsal.finish(4)
    assert rehearsal.lost(4) >= 1, "a masked vector may have left: that attempt is never asked again"
    rehearsal.check_budgets()

    until(federation.finished, "the release")
    key = (federation.folder / "server" / "checkpoints" / "server.key").read_bytes()
    release = verify_release(
        federation.folder / "server" / "release", Ed25519PrivateKey.from_private_bytes(key).public_key()
    )
    assert release.facts.round == ROUNDS
    assert all(rehearsal.lost(n) < MAX_ATTEMPTS for n in range(ROUNDS))
    for name, status in federation.status()["devices"].items():
        assert status["relays"]["own"] > 0 and status["relays"]["stock"] == 0, name
        assert status["accepted"] == len(
            read_ledger(AgentHome(federation.folder / "devices" / name).ledger_file).account.reservations
        )
    for home in rehearsal.homes:
        assert not list((home.folder / "flwr").rglob("*.py")), "nothing of the server's bundle lies on a device"

    assert federation.down() == []
    assert federation.processes.running() == []
