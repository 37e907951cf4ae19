"""Flower's SuperLink as an operator runs it: on loopback, TLS, SuperNodes by registered key, no telemetry.

Its control interface has no accounts, so it is never listened on elsewhere; `server.gateway` is the door for devices.
What is asked of it goes through Flower's own command `flwr`, whose settings lie in the operator's folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from privacy.errors import ConfideError
from privacy.files import write_atomic
from server.folder import OperatorFolder
from server.members import Admitted, members

NAME = "confide"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5"}  # Flower's own is a second, before each run
READY_S, STOP_S, CALL_S = 180.0, 15.0, 180.0


class SuperLink:
    """The SuperLink of one operator's folder, started here or by another process."""

    def __init__(self, operator: OperatorFolder) -> None:
        self.operator, self.folder = operator, operator.folder.absolute() / "superlink"
        self.port = operator.settings.control
        self._bin = Path(sys.executable).parent

    @property
    def address(self) -> str:
        """Return where it listens: loopback and its port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own; one that an earlier, killed server left behind is ended first."""
        self.end_left_over()
        tls = self.operator.folder.absolute() / "tls"
        command = [sys.executable, "-P", str(Path(__file__).with_name("patient_superlink.py"))]
        command += [str(self._bin / "flower-superlink"), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ssl-ca-certfile", str(tls / "ca.crt"), "--ssl-certfile", str(tls / "server.crt")]
        command += ["--ssl-keyfile", str(tls / "server.key"), "--database", str(self.folder / "superlink.db")]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        (self.folder / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._write_settings()
        environment = self._environment({"CONFIDE_SERVER_HOME": str(self.operator.home.absolute())})
        with (self.folder / "logs" / "superlink.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        write_atomic(self.folder / "pid", str(process.pid).encode())
        return process

    def end_left_over(self) -> None:
        """End a SuperLink that an earlier server started over this very database and did not live to end."""
        try:
            pid = int((self.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if str(self.folder / "superlink.db").encode() in words:
            stop(pid)

    def starts_runs(self) -> bool:
        """Return whether the program of Flower's that starts runs is there; the SuperLink itself does not miss it."""
        wanted = (b"flower-superexec", f"127.0.0.1:{self.port}".encode())
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                line = path.read_bytes()
                if all(each in line for each in wanted):
                    return True
        return False

    def start_anew(self) -> None:
        """End the SuperLink, which `confide server start` then starts again, and return once it listens.

        Raises ConfideError where it does not come back.
        """
        before = (self.folder / "pid").read_bytes()
        self.end_left_over()
        until = time.monotonic() + READY_S
        while (self.folder / "pid").read_bytes() == before or not (listens(self.port) and self.starts_runs()):
            if time.monotonic() > until:
                raise ConfideError(
                    f"Flower's SuperLink did not come back: see {self.folder / 'logs' / 'superlink.log'}"
                )
            time.sleep(0.2)

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return once it listens. Raises ConfideError if it ends before, or does not begin to."""
        until = time.monotonic() + READY_S
        while not listens(self.port):
            if process.poll() is not None or time.monotonic() > until:
                raise ConfideError(f"Flower's SuperLink did not start: see {self.folder / 'logs' / 'superlink.log'}")
            time.sleep(0.1)

    def register_all(self) -> None:
        """Register the SuperNodes of everybody admitted, and take out those of the revoked. Raises ConfideError."""
        everybody = members(self.operator)
        for each in everybody:
            if each.revoked:
                self.unregister(each)
        self.register(*(each for each in everybody if not each.revoked))

    def register(self, *devices: Admitted) -> None:
        """Register devices' SuperNodes, each once; their calls are answered from then on. Raises ConfideError.

        All of them take one process, see `server.register_nodes`.
        """
        nodes = self.nodes()
        keys = {each.device: each.node_key for each in devices if each.device not in nodes}
        if not keys:
            return
        command = [sys.executable, "-P", "-m", "server.register_nodes", NAME]
        environment = self._environment({"PYTHONPATH": str(Path(__file__).resolve().parents[1])})
        told = _object(self._told(command, "register_nodes", environment, json.dumps(keys)))
        self._keep_nodes(nodes | {name: str(told[name]) for name in keys})

    def unregister(self, device: Admitted) -> None:
        """Take a device's SuperNode out: from then on its calls are refused. Raises ConfideError."""
        nodes = self.nodes()
        if device.device in nodes:
            self.flwr("supernode", "unregister", nodes[device.device], NAME, "--format", "json")
            self._keep_nodes({name: node for name, node in nodes.items() if name != device.device})

    def nodes(self) -> dict[str, str]:
        """Return the number under which Flower registered each device's SuperNode."""
        path = self.folder / "nodes.json"
        found: dict[str, str] = json.loads(path.read_bytes()) if path.exists() else {}
        return found

    def online(self) -> int:
        """Return how many SuperNodes are connected. Raises ConfideError."""
        told = _object(self.flwr("supernode", "list", NAME, "--format", "json"))
        return sum(node["status"] == "online" for node in told["nodes"])

    def stop_runs(self) -> None:
        """Stop the runs that are not over. Raises ConfideError.

        Flower keeps them in its database and starts them again with itself; two servers over one ledger are one too
        many.
        """
        for run in _object(self.flwr("list", NAME, "--format", "json"))["runs"]:
            if not str(run["status"]).startswith("finished"):
                self.flwr("stop", str(run["run-id"]), NAME)

    def submit(self) -> str:
        """Submit a run of the campaign, new or begun, and return its number. Raises ConfideError."""
        bundle = self.operator.folder.absolute() / "bundle"
        return str(_object(self.flwr("run", str(bundle), NAME, "--format", "json"))["run-id"])

    def run_status(self, run_id: str) -> str:
        """Return the status of a run in Flower's words, such as `finished:completed`. Raises ConfideError."""
        return str(_object(self.flwr("list", NAME, "--run-id", run_id, "--format", "json"))["runs"][0]["status"])

    def flwr(self, *words: str) -> str:
        """Return what Flower's command prints. Raises ConfideError with its last line if it fails."""
        return self._told([str(self._bin / "flwr"), *words], f"flwr {words[0]}", self._environment({}))

    def _told(self, command: list[str], what: str, environment: Mapping[str, str], asked: str = "") -> str:
        try:
            done = subprocess.run(
                command, env=environment, input=asked, capture_output=True, text=True, check=False, cwd=self.folder,
                timeout=CALL_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfideError(f"{what} did not answer within {CALL_S:.0f} s") from None
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()
            raise ConfideError(f"{what} failed: {lines[-1]}")
        return done.stdout

    def _write_settings(self) -> None:
        authority = self.operator.folder.absolute() / "tls" / "ca.crt"
        lines = ["[superlink]", f'default = "{NAME}"', "", f"[superlink.{NAME}]", f'address = "{self.address}"']
        lines += [f"root-certificates = {json.dumps(str(authority))}", ""]
        write_atomic(self.folder / "flower" / "config.toml", "\n".join(lines).encode())

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONFIDE_", "FLWR_"))}
        kept.pop("PYTHONPATH", None)  # the bundle's code and the installed one never mix
        kept["PATH"] = f"{self._bin}{os.pathsep}{kept.get('PATH', os.defpath)}"
        kept["FLWR_HOME"] = str(self.folder / "flower")
        return {**kept, **QUIET, **POLL, **more}

    def _keep_nodes(self, nodes: Mapping[str, str]) -> None:
        write_atomic(self.folder / "nodes.json", json.dumps(dict(sorted(nodes.items())), indent=1).encode())


def stop(pid: int, patience_s: float = STOP_S) -> None:
    """End the session that `pid` leads: SIGTERM, and SIGKILL to what is left after `patience_s`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            return
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            try:
                os.killpg(pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(0.05)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _object(text: str) -> Any:
    """Return the JSON object in what `flwr` printed, whatever stands before it."""
    try:
        return json.loads(text[text.index("{") :])
    except ValueError:
        raise ConfideError("flwr printed no JSON: is this the pinned version of Flower?") from None
