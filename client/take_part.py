"""A device's two programs in a federation, kept up: the agent, and a SuperNode that finds our launcher first.

    agent        `python -m client.resident` over the device's folder      text, keys, model; no network
    SuperNode    Flower's, TLS with the pinned authority, this device's own key; starts `flwr-clientapp` per message,
                 which is `launcher/flwr-clientapp` of the folder: ours, never the server's bundle; under the relay's
                 own user where it has one (`client.relay_user`)

Each is started again when it ends: a SuperNode that nobody has registered yet, or whose number the SuperLink still
holds, ends at once and is tried again after a pause that grows to a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from client import relay_user
from client.agent_home import AgentHome
from client.join import AUTHORITY, NODE_KEY, joined_invitation
from client.listener import ask
from client.relay_user import ADDRESS, RelayPlace, place_of, put_pins
from privacy.errors import ConfigError
from privacy.files import write_atomic

SOURCE = Path(__file__).resolve().parents[1]
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5"}  # Flower's own is a second; oftener costs a battery
AGAIN_S = (2.0, 60.0)
STEADY_S = 60.0  # a program that ran so long begins again with the shortest pause
STOP_S = 15.0
LOOK_S = 2.0
GAVE_UP = b"sys.exit(flower_supernode())"  # in the trace of its main program's end
LAUNCHER = """\
#!/bin/sh
# Written by `confide device join`: a SuperNode starts this for each message, in the place of Flower's flwr-clientapp.
exec {python} -P -m client.launcher "$@"
"""


# What a SuperNode's last words mean, the first that is found in them; docs/operations.md says what to do.
MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not one of this federation's authority, or has ended, or"
    " this device's clock is wrong: nothing was sent",
    "code: 2004": "the server does not take this device: not admitted yet, revoked, or its last connection still held",
    "401 Unauthorized": "the server does not know this device's SuperNode: not admitted yet, or revoked, or a clock is"
    " minutes off",
    "ConnectError": "the server cannot be reached",
    "Connection refused": "the server cannot be reached",
    "timed out": "the server cannot be reached",
    # Flower's heartbeat ends the program without a word where its signature is not taken.
    "terminated gracefully": "the server turned this device away: not admitted, revoked, or a clock is minutes off",
}


def gave_up(log: Path, since: int) -> bool:
    """Return whether a SuperNode's main program ended by an error, by the end of what it printed `since` that byte.

    Its process may live on: other threads of Flower's wait for a signal then, and it serves nobody.
    """
    try:
        with log.open("rb") as words:
            words.seek(max(since, words.seek(0, os.SEEK_END) - 16384))
            return GAVE_UP in words.read()
    except OSError:
        return False


def meaning(words: bytes) -> str:
    """Return in one line why a SuperNode ended, by the last it printed; "" where nothing of it is known."""
    text = words[-16384:].decode(errors="replace")
    return next((line for sign, line in MEANINGS.items() if sign in text), "")


class Kept:
    """One program that is started again whenever it ends, until `stop`. `log` takes what it prints.

    The last word of `command` tells it from all others: one that an earlier process left behind is ended by it first.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        why: Callable[[str], None] = lambda _: None,
        place: RelayPlace | None = None,
    ) -> None:
        self._command, self._environment, self._log = command, dict(environment), log
        self._as: dict[str, Any] = (
            {"user": place.user, "group": place.group, "extra_groups": []} if place is not None else {}
        )
        self._folder = place.folder if place is not None else log.parent
        self._ended, self._why, self._said = threading.Event(), why, ""
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._thread = threading.Thread(target=self._keep, daemon=True, name=log.stem)
        self._thread.start()

    def _keep(self) -> None:
        pause = AGAIN_S[0]
        end_left_over(self._log.with_suffix(".pid"), self._command[-1])
        while not self._ended.is_set():
            began, before = time.monotonic(), self._log.stat().st_size if self._log.exists() else 0
            try:
                with self._log.open("ab") as log:
                    process = subprocess.Popen(
                        self._command, env=self._environment, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log,
                        stderr=log, start_new_session=True, **self._as,
                    )  # fmt: skip
            except OSError as error:  # no program there, or none that this user may run; it may come
                self._say(f"{self._command[0]} cannot be started: {error.strerror}")
                pause = min(2 * pause, AGAIN_S[1])
                self._ended.wait(pause)
                continue
            self.process, self.starts = process, self.starts + 1
            write_atomic(self._log.with_suffix(".pid"), str(process.pid).encode())
            looked = began
            while process.poll() is None and not self._ended.wait(0.2):
                if time.monotonic() - looked > LOOK_S:
                    looked = time.monotonic()
                    if gave_up(self._log, before):
                        break
            end(process)
            self._tell(before)
            steady = time.monotonic() - began > STEADY_S
            pause = AGAIN_S[0] if steady else min(2 * pause, AGAIN_S[1])
            self._ended.wait(pause)

    def _tell(self, before: int) -> None:
        """Say why it ended, once for each reason."""
        with self._log.open("rb") as log:
            log.seek(before)
            self._say(meaning(log.read()))

    def _say(self, line: str) -> None:
        if line and line != self._said and not self._ended.is_set():
            self._said = line
            self._why(line)

    def stop(self) -> None:
        """End the program and do not start it again."""
        self._ended.set()
        self._thread.join(2 * STOP_S + 5.0)


def take_part(
    home: AgentHome,
    ready: Callable[[], None],
    passphrase: str | None = None,
    why: Callable[[str], None] = lambda _: None,
) -> None:
    """Keep agent and SuperNode up until SIGTERM or Ctrl-C; `ready` is called once the agent answers its owner.

    `why` is told in one line why the server takes this device not, whenever the reason is another.

    Raises ConfigError where the device has joined nothing, or this runs over its folder already.
    """
    offered = joined_invitation(home)
    folder, place = home.folder.absolute(), place_of(home.settings)
    if place is not None:
        put_pins(home, place)
    logs = folder / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    agent_environment = environment(folder)
    if passphrase:
        agent_environment["CONFIDE_PASSPHRASE"] = passphrase
    kept = [
        Kept(
            [sys.executable, "-P", "-m", "client.resident", "--home", str(folder)],
            agent_environment,
            logs / "agent.log",
        )
    ]
    try:
        while not answers(folder):
            if told.wait(0.2):
                return
        if place is None:
            command, own = supernode(folder, offered.address), node_environment(folder)
            kept.append(Kept(command, own, logs / "supernode.log", why))
        elif not os.geteuid():
            command, own = supernode(place.seam, offered.address, place.folder), relay_environment(place)
            kept.append(Kept(command, own, logs / "supernode.log", why, place))
        else:
            why("the SuperNode has a user of its own: a system service starts it, confide-relay@")
        ready()
        told.wait()
    finally:
        for each in reversed(kept):
            each.stop()


def take_part_as_relay(folder: Path, why: Callable[[str], None] = lambda _: None) -> None:
    """Keep the SuperNode of the relay's `folder` up until SIGTERM or Ctrl-C, as the user who calls, who owns it.

    For a system service. Raises ConfigError for another user, or a folder that no `confide device relay-user` made.
    """
    place = RelayPlace(folder.absolute())
    if place.user != os.geteuid() or not os.geteuid():
        raise ConfigError(f"{folder} is another user's: run this as the relay's user")
    try:
        address = (place.seam / ADDRESS).read_text()
    except OSError:
        raise ConfigError(f"{folder} is no relay's folder, or its device left: `confide device relay-user`") from None
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    logs = place.folder / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    command = supernode(place.seam, address, place.folder)
    kept = Kept(command, relay_environment(place), logs / "supernode.log", why)
    try:
        told.wait()
    finally:
        kept.stop()


def supernode(folder: Path, address: str, key: Path | None = None) -> list[str]:
    """Return the command of the SuperNode; its own interface listens on a free port of loopback.

    `folder` holds the authority, and the SuperNode's key where no other folder `key` does.
    """
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", address]
    command += ["--root-certificates", str(folder / AUTHORITY), "--host", "127.0.0.1", "--port", str(free_port())]
    return [*command, "--auth-supernode-private-key", str((key or folder) / NODE_KEY)]


def node_environment(folder: Path) -> dict[str, str]:
    """Return the environment of the SuperNode, with our launcher first on its PATH; no passphrase is in it."""
    return _with_launcher(environment(folder), folder, 0o700)


def relay_environment(place: RelayPlace) -> dict[str, str]:
    """Return the environment of a SuperNode with a user of its own: nothing of the person's is in it."""
    found = environment(place.seam, relay_user.environment(place))
    return _with_launcher(found, place.folder, 0o755)


def _with_launcher(found: dict[str, str], folder: Path, mode: int) -> dict[str, str]:
    own = folder / "launcher"
    own.mkdir(mode=mode, exist_ok=True)
    program = own / "flwr-clientapp"
    write_atomic(program, LAUNCHER.format(python=_quoted(sys.executable)).encode(), mode=mode)
    program.chmod(mode)
    return found | {"FLWR_HOME": str(folder / "flower"), "PATH": f"{own}{os.pathsep}{found['PATH']}"}


def environment(folder: Path, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what both programs inherit: the environment `given`, without settings of other federations."""
    kept = {name: value for name, value in given.items() if not name.startswith(("CONFIDE_", "FLWR_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    kept["PYTHONPATH"] = str(SOURCE)
    return {**kept, **QUIET, **POLL, "CONFIDE_HOME": str(folder)}


def answers(folder: Path) -> bool:
    """Return whether the agent answers its owner."""
    try:
        return "device" in ask(folder, {"do": "status"})
    except (OSError, ValueError, EOFError):
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program with all that it started: SIGTERM, then SIGKILL to what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
    process.poll()


def end_left_over(path: Path, word: str) -> None:
    """End the program whose id an earlier process of ours noted at `path`, if `word` is still in its command line."""
    try:
        pid = int(path.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if word.encode() in words:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
            until = time.monotonic() + STOP_S
            while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
                time.sleep(0.05)


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(path: str) -> str:
    if set(path) & set("'\n"):
        raise ConfigError("confide is installed in a folder whose name has a quote or a line break")
    return f"'{path}'"
