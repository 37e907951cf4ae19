# Run in the end-to-end test (tests/deploy).
"""A federation of two on loopback: `deploy/local/up`, `deploy/local/down`, and what the test calls in between.

One SuperLink (TLS, SuperNodes by registered key, no telemetry, no installing at run time), and for each device a
SuperNode and an agent. Each SuperNode finds our `flwr-clientapp` first on its PATH, unless it is told `--stock`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from client.agent_home import AgentHome
from client.listener import ask
from deploy.local.choice import Choice
from deploy.local.processes import Processes
from privacy.errors import ConfideError, ConfigError
from privacy.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
LINK = "confide"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # Flower's own is a second, for each message
READY_S = 180.0


class Federation:
    """The federation in `folder`, prepared or about to be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.processes = Processes(self.folder)
        self.bin = Path(sys.executable).parent

    @property
    def homes(self) -> list[AgentHome]:
        """Return the agents' homes."""
        return [AgentHome(path) for path in sorted((self.folder / "devices").glob("device-*"))]

    @property
    def ports(self) -> dict[str, int]:
        """Return the loopback ports, of the SuperLink and of each SuperNode's own interface; drawn once."""
        path = self.folder / "ports.json"
        if not path.exists():
            names = ["superlink", *(home.folder.name for home in self.homes)]
            write_atomic(path, json.dumps(dict(zip(names, free_ports(len(names)), strict=True))).encode())
        found: dict[str, int] = json.loads(path.read_bytes())
        return found

    def up(self, choice: Choice, stock: bool = False) -> None:
        """Prepare what is not there, start everything and wait until it is ready. Raises ConfideError."""
        if not (self.folder / "prepared").exists():
            from deploy.local.prepare import prepare  # torch loads here

            prepare(self.folder, choice)
            write_atomic(self.folder / "prepared", b"")
        self.start_superlink()
        for home in self.homes:
            self.flwr("supernode", "register", str(home.folder / "supernode.pub"), LINK)
        for home in self.homes:
            self.start_agent(home)
        for home in self.homes:
            self.wait_for_agent(home)
            self.start_supernode(home, stock)

    def start_superlink(self) -> None:
        """Start the SuperLink and wait for its port."""
        tls, port = self.folder / "tls", self.ports["superlink"]
        command = [str(self.bin / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "server.crt")]
        command += ["--ssl-keyfile", str(tls / "server.key"), "--database", str(self.folder / "superlink.db")]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        place = {"FLWR_HOME": str(self.folder / "operator"), "CONFIDE_SERVER_HOME": str(self.folder / "server")}
        self.processes.start("superlink", command, self._environment(place))
        self.wait(lambda: listens(port), "the SuperLink")
        lines = ["[superlink]", f'default = "{LINK}"', "", f"[superlink.{LINK}]", f'address = "127.0.0.1:{port}"']
        lines += [f'root-certificates = "{tls / "ca.crt"}"', ""]
        write_atomic(self.folder / "operator" / "config.toml", "\n".join(lines).encode())

    def start_agent(self, home: AgentHome) -> int:
        """Start one device's agent and return its process id."""
        command = [sys.executable, "-P", "-m", "client.resident", "--home", str(home.folder)]
        environment = self._environment({"PYTHONPATH": str(ROOT), "CONFIDE_HOME": str(home.folder)})
        return self.processes.start(f"{home.folder.name}-agent", command, environment)

    def wait_for_agent(self, home: AgentHome) -> None:
        """Return once the device's agent answers its person. Raises ConfideError if it ends before."""
        words = ("client.resident", str(home.folder))

        def ready() -> bool:
            if not self.processes.running(*words):
                raise ConfideError(f"the agent of {home.folder.name} ended: see {self.folder / 'logs'}")
            return answers(home)

        self.wait(ready, f"the agent of {home.folder.name}")

    def start_supernode(self, home: AgentHome, stock: bool = False) -> int:
        """Start one device's SuperNode and return its process id."""
        name, tls = home.folder.name, self.folder / "tls"
        command = [str(self.bin / "flower-supernode"), "--superlink", f"127.0.0.1:{self.ports['superlink']}"]
        command += ["--root-certificates", str(tls / "ca.crt"), "--host", "127.0.0.1", "--port", str(self.ports[name])]
        command += ["--auth-supernode-private-key", str(home.folder / "supernode")]
        place = {"FLWR_HOME": str(home.folder / "flwr"), "CONFIDE_HOME": str(home.folder)}
        if stock:
            place["CONFIDE_SOCKET"] = str(home.folder / "relay.sock")
        else:
            place |= {"PYTHONPATH": str(ROOT), "CONFIDE_PYTHON": sys.executable}
        environment = self._environment(place)
        if not stock:
            environment["PATH"] = f"{ROOT / 'deploy' / 'launcher'}{os.pathsep}{environment['PATH']}"
        return self.processes.start(f"{name}-supernode", command, environment)

    def return_supernode(self, home: AgentHome) -> None:
        """Start a SuperNode that was killed, again and again until the SuperLink takes it.

        A SuperLink refuses a node (exit 305, code 2004) that it still believes to be there: for up to a minute after
        the last sign of life. A service manager that restarts what ended does the same.
        """
        name = f"{home.folder.name}-supernode"
        log = self.folder / "logs" / f"{name}.log"

        def connected() -> bool:
            before = log.stat().st_size
            pid = self.start_supernode(home)
            while (Path("/proc") / str(pid)).exists():
                if b"SuperNode ID" in log.read_bytes()[before:]:
                    return True
                time.sleep(0.2)
            time.sleep(5.0)
            return False

        self.wait(connected, f"the SuperNode of {home.folder.name}")

    def submit(self) -> str:
        """Submit a run of the campaign, new or begun, and return its id."""
        found = json.loads(self.flwr("run", str(ROOT), LINK, "--format", "json"))
        return str(found["run-id"])

    def run_status(self, run_id: str) -> str:
        """Return the status of a run in Flower's words, such as `finished:completed`."""
        runs = json.loads(self.flwr("list", LINK, "--run-id", run_id, "--format", "json"))["runs"]
        return str(runs[0]["status"])

    def finished(self) -> bool:
        """Return whether the campaign's release is there."""
        return (self.folder / "server" / "release" / "release.json").exists()

    def status(self) -> dict[str, Any]:
        """Return what each device's agent says of itself, and whether the release is there."""
        devices = {
            home.folder.name: ask(home.folder, {"do": "status"}) if answers(home) else None for home in self.homes
        }
        return {"finished": self.finished(), "devices": devices}

    def down(self) -> list[int]:
        """End everything that was started for this folder and return what is left."""
        return self.processes.stop()

    def flwr(self, *words: str) -> str:
        """Return what Flower's command prints. Raises ConfideError with its last line if it fails."""
        environment = self._environment({"FLWR_HOME": str(self.folder / "operator")})
        command = [str(self.bin / "flwr"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()
            raise ConfideError(f"flwr {words[0]} failed: {lines[-1]}")
        return done.stdout

    def wait(self, holds: Callable[[], bool], what: str, patience_s: float = READY_S) -> None:
        """Return once `holds`; raises ConfideError after `patience_s`."""
        until = time.monotonic() + patience_s
        while not holds():
            if time.monotonic() > until:
                raise ConfideError(f"{what} is not ready after {patience_s:.0f} s: see {self.folder / 'logs'}")
            time.sleep(0.2)

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONFIDE_", "FLWR_"))}
        kept.pop("PYTHONPATH", None)
        kept["PATH"] = f"{self.bin}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return {**kept, **QUIET, **POLL, **more}


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
    parser.add_argument("--noise-multiplier", type=Fraction, default=Fraction(1))
    parser.add_argument("--hold", type=float, default=30.0, help="seconds after which every answer is ready")
    parser.add_argument("--no-scrub", action="store_true")
    parser.add_argument("--stock", action="store_true", help="Flower's own flwr-clientapp: the server's code runs")
    parser.add_argument("--no-run", action="store_true", help="start everything, submit no campaign")
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
                federation.up(choice, options.stock)
            except BaseException:
                federation.down()
                raise
        if options.command == "run" or (options.command == "up" and not options.no_run):
            _say({"run": federation.submit(), "folder": str(federation.folder)})
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
