"""A federation of real devices made by the commands that people type: what the tests of deployment share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import confide
from client.agent_home import AgentHome
from client.consent import consent
from client.dial import ALL, turn
from client.importers import SHARED, add
from client.take_part import end, gave_up, meaning
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfideError
from privacy.ledger import read_ledger
from privacy.query import Query
from tests.namespaces import Network

ROOT = Path(confide.__file__).parent
WORDS = ("kettle", "ladder", "garden", "letter", "window", "bridge", "winter", "pocket")
PATIENCE_S = 900.0  # a busy machine multiplies everything


def until(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S, pause_s: float = 0.05) -> None:
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"not within {patience_s:.0f} s: {what}"
        time.sleep(pause_s)


def supernode_ends(command: list[str], environment: dict[str, str], log: Path) -> str:
    """Return in one line why a SuperNode ends that should end, as `Kept` reads it; its process may have to be told."""
    log.write_bytes(b"")
    with log.open("ab") as words:
        process = subprocess.Popen(command, env=environment, stdout=words, stderr=words, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or gave_up(log, 0), "the SuperNode gives up", 300.0)
    finally:
        end(process)
    return meaning(log.read_bytes())


class Commands:
    """`confide` as a process of its own; all that it starts names `folder` in its command line or environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIDE_", "FLWR_"))}
        return {**kept, "PYTHONPATH": str(ROOT), **more}

    def confide(
        self,
        *words: str | Path,
        home: Path | None = None,
        passphrase: str = "",
        before: Sequence[str] = (),
        **more: str,
    ) -> dict[str, Any]:
        """Return the JSON object that a command prints. Raises ConfideError with its one line if it fails."""
        more |= {"CONFIDE_HOME": str(home)} if home is not None else {}
        more |= {"CONFIDE_PASSPHRASE": passphrase} if passphrase else {}
        command = [*before, sys.executable, "-P", "-m", "confide", *map(str, words), "--json"]
        done = subprocess.run(command, env=self.environment(**more), capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise ConfideError(lines[-1] if len(lines) == 1 else f"not one line: {done.stderr[-800:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def background(self, name: str, *words: str | Path, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "confide", *map(str, words), "--json"]
        environment = self.environment(**more)
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=err, start_new_session=True)
        self.started.append(process)
        return process

    def running(self, *words: str | Path) -> list[int]:
        """Return the ids of processes whose command line and environment name this folder and hold all `words`."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                told = (path / "cmdline").read_bytes() + b"\0" + (path / "environ").read_bytes()
            except OSError:
                continue
            if all(str(word).encode() in told for word in (self.folder, *words)) and int(path.name) != os.getpid():
                found.append(int(path.name))
        return found

    def kill(self, *words: str | Path) -> None:
        until(lambda: self.running(*words), f"a process of {words}")
        for pid in self.running(*words):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def end(self) -> list[int]:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.running():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 30.0
            while self.running() and time.monotonic() < end:
                for process in self.started:
                    process.poll()
                time.sleep(0.1)
        return self.running()


class Federation:
    """One server and its devices, for a tiny model."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        basis: Path,
        devices: int,
        network: Network | None = None,
        **choices: str | int,
    ) -> None:
        self.commands, self.model, self.devices, self.network = Commands(folder), model, devices, network
        self.passphrases: dict[int, str] = {}
        self.server, ports = folder / "server", free_ports(3)
        host = network.server if network is not None else "127.0.0.1"
        self.address, self.ports = f"{host}:{ports[0]}", ports
        options: dict[str, str | int] = {
            "rounds": 2,
            "cohort": devices,
            "hold": 1,
            "stage": 180,
            "own-tokens": 96,
            "layers": 2,
            "listen": host,
            "control": ports[1],
            "observe": ports[2],
            **choices,
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        made: list[str | Path] = [
            "--model",
            model,
            "--basis",
            basis,
            "--federation",
            "trial",
            "--address",
            self.address,
        ]
        self.founded = self.commands.confide("server", "init", self.server, *made, *words)

    def home(self, number: int) -> AgentHome:
        return AgentHome(self.commands.folder / f"device-{number}")

    @property
    def homes(self) -> list[AgentHome]:
        return [self.home(n) for n in range(1, self.devices + 1)]

    def start(self, **more: str) -> subprocess.Popen[bytes]:
        """Start the server, with `more` in its environment, and return once devices can connect."""
        process = self.process = self.commands.background("start", "server", "start", self.server, **more)
        out = self.commands.folder / "start.out"
        until(lambda: process.poll() is not None or out.read_bytes().endswith(b"}\n"), "the server is ready")
        assert process.poll() is None, (self.commands.folder / "start.err").read_text()
        return process

    def enrol(
        self,
        number: int,
        code: str = "",
        texts: Sequence[str] = (),
        vault: bool = False,
        relay_user: str = "none",
        before: Sequence[str] = (),
        **more: str,
    ) -> dict[str, Any]:
        """Let a device join with a few texts, in plain files or in a vault; `before` and `more` are for its command."""
        home, name = self.home(number).folder, f"device-{number}"
        texts = texts or [f"The {word} of {number} is not the {WORDS[i - 1]}." for i, word in enumerate(WORDS)]
        code = code or self.commands.confide("server", "invite", self.server)["code"]
        if vault:
            self.passphrases[number] = f"of {name} alone"
            self._fill_vault(number, texts)
        words: list[str | Path] = ["device", "join", self.server / "invitation.json", "--code", code]
        words += ["--relay-user", relay_user]
        words += ["--safety-number", self.founded["safety_number"], "--name", name]
        words += ["--model", self.model, "--no-start", *([] if vault else ["--without-vault"])]
        passphrase = self.passphrases.get(number, "")
        joined = self.commands.confide(*words, home=home, passphrase=passphrase, before=before, **more)
        values = json.loads((home / "agent.json").read_text()) | {"sampling_rate": 1.0}
        if not vault:
            values |= {"scrub": False}
            rows = [{"user": name, "i": i, "split": "history", "text": text} for i, text in enumerate(texts)]
            (home / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (home / "agent.json").write_text(json.dumps(values))
        return joined | {"code": code}

    def _fill_vault(self, number: int, texts: Sequence[str]) -> None:
        notes = self.commands.folder / f"notes-{number}"
        notes.mkdir()
        for i, text in enumerate(texts):
            (notes / f"{i:02}.txt").write_text(text)
        with closing(Vault.create(self.home(number).folder, Opener(passphrase=self.passphrases[number]))) as vault:
            add(vault, notes)
            consent(vault, 1, SHARED, True)
            turn(vault, ALL)

    def of_device(self, number: int, *words: str | Path) -> dict[str, Any]:
        """Return what `confide device …` prints on the device."""
        home, passphrase = self.home(number).folder, self.passphrases.get(number, "")
        return self.commands.confide("device", *words, home=home, passphrase=passphrase)

    def admit(self, number: int, joined: dict[str, Any]) -> dict[str, Any]:
        words = ["--safety-number", joined["safety_number"], "--vetted"]
        return self.commands.confide(
            "server", "admit", self.server, self.home(number).folder / "enrolment.json", *words
        )

    def take_part(self, number: int, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a device's agent and SuperNode, as a service manager would."""
        home = self.home(number).folder
        inside = before or (self.network.inside(number) if self.network is not None else [])
        command = [*inside, sys.executable, "-P", "-m", "client.take_part_alone", str(home)]
        more = {"CONFIDE_HOME": str(home)}
        if number in self.passphrases:
            more["CONFIDE_PASSPHRASE"] = self.passphrases[number]
        with (home / "take-part.err").open("ab") as err:
            process = subprocess.Popen(
                command, env=self.commands.environment(**more), stderr=err, start_new_session=True
            )
        self.commands.started.append(process)
        return process

    @property
    def rounds(self) -> Path:
        return self.server / "server" / "checkpoints" / "rounds"

    def sums(self, number: int) -> list[Path]:
        return sorted(self.rounds.glob(f"round-{number:05d}-*.sum"))

    def lost(self, number: int) -> int:
        return len(list(self.rounds.glob(f"round-{number:05d}-*.lost")))

    def queries(self) -> list[Query]:
        return [Query.from_bytes(path.read_bytes()) for path in sorted(self.rounds.glob("*.query"))]

    def came_to(self, home: AgentHome, number: int, step: str) -> bool:
        """Return whether the device's journal holds `step` of an attempt of round `number`."""
        device, journal = home.folder.name, home.folder / "answers"
        events = [q.event_id(device).hex() for q in self.queries() if q.round == number]
        return any((journal / f"{event}.{step}").exists() for event in events)

    def check_books(self) -> None:
        """What left a device, or may have, is charged in its ledger, within its policy, and in the federation's."""
        federation = read_ledger(self.server / "server" / "ledger" / "federation.jsonl").account
        for home in self.homes:
            if not home.ledger_file.exists():
                continue
            device = home.folder.name
            seen = {file.name.partition(".")[0] for file in (home.folder / "answers").iterdir()}
            account = read_ledger(home.ledger_file).account
            charged = {r.event for r in account.charged()}
            assert seen <= charged
            rho = {q.event_id(device).hex(): q.rho or Fraction(0) for q in self.queries()}
            mine = sum((rho[event] for event in charged if event in rho), Fraction(0))
            assert mine <= account.spent_rho() <= home.policy.budget_rho
            assert federation.spent_rho(device) >= account.spent_rho(), "the federation claims no less than was spent"


def made_basis(folder: Path, model: Path) -> Path:
    """Return the file of a basis of the tiny model, from a few of its own samples."""
    from client.basis import BasisSettings, own_samples, whitened_basis
    from client.model import LanguageModel

    path, loaded = folder / "basis.safetensors", LanguageModel.load(model, top_layers=2)
    whitened_basis(loaded, own_samples(loaded, 6, 24, seed=0), BasisSettings(rank=4)).save(path)
    return path


def free_ports(count: int) -> list[int]:
    from deploy.local.federation import free_ports as free

    return free(count)
