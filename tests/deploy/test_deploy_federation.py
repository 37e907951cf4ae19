"""`deploy/local`: two real devices over Flower's SuperLink on loopback; each of their processes is killed in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

import confide
from client.agent_home import AgentHome
from deploy.local.federation import Choice, Federation
from privacy.ledger import read_ledger
from privacy.query import Query
from server.campaign import MAX_ATTEMPTS
from server.folder import OperatorFolder
from server.released import described
from tests.federation_by_command import WORDS, Commands, until

pytestmark = pytest.mark.slow
ROOT = Path(confide.__file__).parent
ROUNDS = 5


class Rehearsal:
    """A federation under test: what its server and its devices have written so far."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.federation, self.commands = Federation(folder), Commands(folder)
        people = folder / "people.jsonl"
        rows = [
            {"user": user, "i": i, "split": "history", "text": f"The {word} is {user}'s own {WORDS[i - 1]}."}
            for user in ("ada", "ben")
            for i, word in enumerate(WORDS)
        ]
        people.write_text("".join(json.dumps(row) + "\n" for row in rows))
        choice = Choice(
            model=str(model), people=people, rounds=ROUNDS, layers=2, rank=4, samples=6, sample_tokens=24,
            own_tokens=96, scrub=False, hold_s=1,
        )  # fmt: skip
        self.federation.up(choice)
        self.rounds = self.federation.home / "checkpoints" / "rounds"

    @property
    def first(self) -> Path:
        return self.federation.homes[0].folder

    def sums(self, number: int) -> list[Path]:
        return sorted(self.rounds.glob(f"round-{number:05d}-*.sum"))

    def lost(self, number: int) -> int:
        return len(list(self.rounds.glob(f"round-{number:05d}-*.lost")))

    def queries(self) -> list[Query]:
        return [Query.from_bytes(path.read_bytes()) for path in sorted(self.rounds.glob("*.query"))]

    def when(self, number: int, step: str) -> None:
        """Return as soon as the first device has come so far in round `number`."""
        device, journal = self.first.name, self.first / "answers"

        def came() -> bool:
            events = [q.event_id(device).hex() for q in self.queries() if q.round == number]
            return any((journal / f"{event}.{step}").exists() for event in events)

        until(came, f"{step} in round {number}")
        assert not self.sums(number), "the round was over before anything could be killed in it"

    def finish(self, number: int) -> None:
        until(lambda: bool(self.sums(number)), f"the sum of round {number}")

    def check_budgets(self) -> None:
        """No answer is missing in a ledger: what left a device, or may have, is charged there, within its policy."""
        for home in self.federation.homes:  # in this order, because the next round goes on meanwhile
            device = home.folder.name
            sums = sum(len(self.sums(number)) for number in range(ROUNDS))
            seen = {file.name.partition(".")[0] for file in (home.folder / "answers").iterdir()}
            account = read_ledger(home.ledger_file).account
            charged = {r.event for r in account.charged()}
            rho = {q.event_id(device).hex(): q.rho or Fraction(0) for q in self.queries()}
            assert seen <= charged <= set(rho)
            assert len(charged) >= sums
            assert account.spent_rho() == sum(rho[event] for event in charged) <= home.policy.budget_rho
            federation = read_ledger(self.federation.home / "ledger" / "federation.jsonl").account
            assert federation.spent_rho(device) >= account.spent_rho(), "the federation claims no less than was spent"


@pytest.fixture
def rehearsal(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Rehearsal]:
    folder = tmp_path / "f"
    folder.mkdir()
    try:
        yield Rehearsal(folder, tiny_model_dir)
    finally:
        assert Federation(folder).down() == []


def test_a_round_and_then_every_process_killed_in_turn(rehearsal: Rehearsal) -> None:
    federation, first, kill = rehearsal.federation, rehearsal.first, rehearsal.commands.kill
    federation.run()
    rehearsal.finish(0)
    rehearsal.check_budgets()

    rehearsal.when(1, "advertised")
    kill("client.resident", first)
    rehearsal.finish(1)
    assert rehearsal.lost(1) >= 1, "the killed agent was out of the sum that it was killed in"
    rehearsal.check_budgets()

    rehearsal.when(2, "advertised")
    kill("client.launcher", first)
    rehearsal.finish(2)
    rehearsal.check_budgets()

    rehearsal.when(3, "advertised")
    kill("flower-supernode", first)
    rehearsal.finish(3)
    rehearsal.check_budgets()

    rehearsal.when(4, "masked")
    kill("flwr-serverapp")
    until(lambda: not federation.processes.running("server\0run"), "the run ends without its program")
    assert not federation.finished()
    federation.run()
    rehearsal.finish(4)
    assert rehearsal.lost(4) >= 1, "a masked vector may have left: that attempt is never asked again"
    rehearsal.check_budgets()

    until(federation.finished, "the release")
    assert described(OperatorFolder(federation.server))["rounds"] == ROUNDS
    assert all(rehearsal.lost(n) < MAX_ATTEMPTS for n in range(ROUNDS))
    for name, status in federation.status()["devices"].items():
        assert status["relays"]["own"] > 0 and status["relays"]["stock"] == 0, name
        ledger = AgentHome(federation.folder / "devices" / name).ledger_file
        assert status["accepted"] == len(read_ledger(ledger).account.reservations)
    for home in federation.homes:
        assert not list((home.folder / "flower").rglob("*.py")), "nothing of the server's bundle lies on a device"

    assert federation.down() == []
    until(lambda: not rehearsal.commands.running(), "nothing that was started is left", 30.0)


def test_the_four_scripts_rehearse_a_campaign(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = tmp_path / "f"
    more = ["--model", str(tiny_model_dir), "--layers", "2", "--rank", "4", "--samples", "6", "--hold", "1"]

    def script(name: str, *words: str) -> dict[str, object]:
        command = [str(ROOT / "deploy" / "local" / name), "--folder", str(folder), *words]
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
        told: dict[str, object] = json.loads(done.stdout)
        return told

    try:
        script("up", *more, "--no-scrub")
        until(lambda: script("status")["finished"], "the release", pause_s=5.0)
    finally:
        assert script("down") == {"left": []}
    assert script("status")["devices"] == {"device-1": None, "device-2": None}
