# Run in the end-to-end test (tests/deploy).
"""A federation of two on loopback, by the commands that operators and people type: `deploy/local/up` and the others.

    confide server init, invite, admit, start, run          over FOLDER/server
    confide device join, then what a service manager runs   over FOLDER/devices/device-1 and device-2

Nothing here makes a key, a certificate, a policy or a campaign.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.agent_home import AgentHome
from client.base_model import base_model_path
from client.listener import ask
from deploy.local.processes import Processes
from privacy.errors import ConfideError, ConfigError
from privacy.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
READY_S = 180.0
EXAMPLE = {
    "ada": ("The kettle sings before I do.", "I walked to the mill and back in the rain.", "No letters today."),
    "ben": ("We fixed the roof at last.", "My brother still owes me a ladder.", "Soup again, and I do not mind."),
}


@dataclass(frozen=True)
class Choice:
    """What may be chosen. Two people give no privacy worth the name: this is a rehearsal of the machinery."""

    model: str
    people: Path | None = None
    rounds: int = 1
    layers: int = 10
    rank: int = 8
    samples: int = 64
    sample_tokens: int = 112
    own_tokens: int = 128
    noise_multiplier: str = "1"
    scrub: bool = True
    hold_s: int = 30
    stage_s: int = 90


class Federation:
    """The federation in `folder`, founded or about to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.server = self.folder / "server"
        self.processes = Processes(self.folder)

    @property
    def homes(self) -> list[AgentHome]:
        """Return the agents' homes."""
        return [AgentHome(path) for path in sorted((self.folder / "devices").glob("device-*"))]

    def up(self, choice: Choice) -> None:
        """Found what is not there, start everything and wait until it is ready. Raises ConfideError."""
        people, model = people_of(choice.people), base_model_path(choice.model)
        if not (self.server / "federation.json").exists():
            self._found(choice, model)
        for number, (user, lines) in enumerate(people.items(), 1):
            self._enrol(f"device-{number}", user, lines, model, choice)
        door = int(json.loads((self.server / "federation.json").read_bytes())["address"].rpartition(":")[2])
        server = self._begin("server", "-m", "confide", "server", "start", str(self.server))
        self._wait(lambda: listens(door), server, "the server")
        agents = [(home, self._take_part(home)) for home in self.homes]
        for home, process in agents:
            self._wait(lambda home=home: answers(home), process, f"the agent of {home.folder.name}")  # type: ignore[misc]

    def run(self) -> int:
        """Run the campaign, new or begun, in the background, and return the number of the process that waits for it."""
        return self._begin("run", "-m", "confide", "server", "run", str(self.server))

    @property
    def home(self) -> Path:
        """Return the folder of campaign, ledger and release."""
        return self.server / "server"

    def finished(self) -> bool:
        """Return whether the campaign's release is there."""
        return (self.home / "release" / "release.json").exists()

    def status(self) -> dict[str, Any]:
        """Return what each device's agent says of itself, and whether the release is there."""
        devices = {
            home.folder.name: ask(home.folder, {"do": "status"}) if answers(home) else None for home in self.homes
        }
        return {"finished": self.finished(), "devices": devices}

    def down(self) -> list[int]:
        """End everything that was started for this folder and return what is left."""
        return self.processes.stop()

    def _found(self, choice: Choice, model: Path) -> None:
        basis = self.folder / "basis.safetensors"
        words: list[object] = ["--model", model, "--layers", choice.layers, "--rank", choice.rank, "--out", basis]
        self._confide("model", "basis", *words, "--samples", choice.samples, "--tokens", choice.sample_tokens)
        door, control, observe = free_ports(3)
        words = ["--federation", "local", "--address", f"127.0.0.1:{door}", "--listen", "127.0.0.1"]
        words += ["--control", control, "--observe", observe, "--model", model, "--basis", basis]
        words += ["--layers", choice.layers, "--cohort", len(EXAMPLE), "--rounds", choice.rounds]
        words += ["--noise-multiplier", choice.noise_multiplier, "--own-tokens", choice.own_tokens]
        self._confide("server", "init", self.server, *words, "--hold", choice.hold_s, "--stage", choice.stage_s)

    def _enrol(self, name: str, user: str, lines: Sequence[str], model: Path, choice: Choice) -> None:
        """Let a device join with its person's text, and admit it, if that was not done before."""
        file = self.server / "members.json"
        if file.exists() and name in {row["device"] for row in json.loads(file.read_bytes())}:
            return
        home = AgentHome(self.folder / "devices" / name)
        invited = self._confide("server", "invite", self.server)
        words = ["--code", invited["code"], "--safety-number", invited["safety_number"], "--name", name]
        words += ["--model", model, "--without-vault", "--no-start"]
        joined = self._confide("device", "join", self.server / "invitation.json", *words, home=home.folder)
        home.save(replace(home.settings, person=user, scrub=choice.scrub, sampling_rate=1.0))
        write_atomic(home.folder / "people.jsonl", "".join(f"{line}\n" for line in lines).encode(), mode=0o600)
        number = ["--safety-number", joined["safety_number"], "--vetted"]
        self._confide("server", "admit", self.server, home.folder / "enrolment.json", *number)

    def _take_part(self, home: AgentHome) -> int:
        name = home.folder.name
        return self._begin(name, "-m", "client.take_part_alone", str(home.folder), CONFIDE_HOME=str(home.folder))

    def _begin(self, name: str, *words: str, **more: str) -> int:
        return self.processes.start(name, [sys.executable, "-P", *words], environment(more))

    def _confide(self, *words: object, home: Path | None = None) -> dict[str, Any]:
        """Return the JSON object that a command prints. Raises ConfideError with its one line if it fails."""
        command = [sys.executable, "-P", "-m", "confide", *map(str, words), "--json"]
        place = {"CONFIDE_HOME": str(home)} if home is not None else {}
        done = subprocess.run(command, env=environment(place), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfideError((done.stderr.strip().splitlines() or ["?"])[-1])
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _wait(self, holds: Callable[[], bool], process: int, what: str) -> None:
        """Return once it holds. Raises ConfideError if the process ends before, or after `READY_S`."""
        until = time.monotonic() + READY_S
        while not holds():
            if process not in self.processes.running() or time.monotonic() > until:
                raise ConfideError(f"{what} did not become ready: see {self.folder / 'logs'}")
            time.sleep(0.2)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: this process's, without another federation's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONFIDE_", "FLWR_"))}
    cache = {name: os.environ[name] for name in ("CONFIDE_CACHE",) if name in os.environ}
    return {**kept, **cache, "PYTHONPATH": str(ROOT), **more}


def people_of(path: Path | None) -> Mapping[str, Sequence[str]]:
    """Return the lines of each of the first two people in the file, or of two invented ones."""
    if path is None:
        return {u: [json.dumps({"user": u, "text": t, "split": "history"}) for t in ts] for u, ts in EXAMPLE.items()}
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.strip():
            found.setdefault(str(json.loads(line)["user"]), []).append(line)
    if len(found) < len(EXAMPLE):
        raise ConfigError(f"{path.name}: two people at least")
    return dict(list(found.items())[: len(EXAMPLE)])


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(home: AgentHome) -> bool:
    """Return whether the device's agent answers its person."""
    try:
        return "device" in ask(home.folder, {"do": "status"})
    except (OSError, ValueError, EOFError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="deploy/local/up", description=__doc__)
    parser.add_argument("command", choices=("up", "run", "status", "down"))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "local", help="everything lies here")
    parser.add_argument("--model", default="smollm2-135m", help="an embedded name, a folder, or a hub id")
    parser.add_argument("--people", type=Path, help="two people's text as JSON lines; invented ones if left out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--noise-multiplier", default="1")
    parser.add_argument("--hold", type=int, default=30, help="seconds after which every answer is ready")
    parser.add_argument("--no-scrub", action="store_true")
    parser.add_argument("--no-run", action="store_true", help="start everything, run no campaign")
    options = parser.parse_args(arguments)
    federation = Federation(options.folder)
    try:
        if options.command == "up":
            choice = Choice(
                model=options.model,
                people=options.people,
                rounds=options.rounds,
                layers=options.layers,
                rank=options.rank,
                samples=options.samples,
                noise_multiplier=options.noise_multiplier,
                hold_s=options.hold,
                scrub=not options.no_scrub,
            )
            if federation.processes.running():
                raise ConfigError("this federation is up")
            try:
                federation.up(choice)
            except BaseException:
                federation.down()
                raise
        if options.command == "run" or (options.command == "up" and not options.no_run):
            _say({"run": federation.run(), "folder": str(federation.folder)})
        elif options.command == "status":
            _say(federation.status())
        elif options.command == "down":
            _say({"left": federation.down()})
    except ConfideError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _say(facts: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    sys.exit(main())
