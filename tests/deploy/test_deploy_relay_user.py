"""The relay under a system user of its own: made by `confide device join`, and unable to open anything of the person's.

Two things of this machine are put aside for the commands that need it, in a mount namespace of theirs: a Python under
/root, which no other user may enter, is put where it was in an empty /root; and /etc is a copy, so that the user that
is made is nobody's on the machine.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.launcher import SOCKET
from client.listener import RELAY_PREAMBLE, ask
from client.membership import OWN
from client.relay_user import RelayPlace
from privacy.errors import ConfideError
from server.events import events
from tests.federation_by_command import Federation, made_basis, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DEVICES, USER = 2, "confide-relay"
STRANGER = 65534
ASIDE = """
set -e
HOME_OF_ROOT=$(getent passwd 0 | cut -d: -f6)
mount --make-rprivate /
mkdir -p "$1/etc" "$1/python"
[ -e "$1/etc/passwd" ] || cp -a /etc/. "$1/etc/"
mount --bind "$1/etc" /etc
case "$2" in "$HOME_OF_ROOT"/*)
  mount --bind "$2" "$1/python"
  mount -t tmpfs -o mode=755 none "$HOME_OF_ROOT"
  mkdir -p "$2"
  mount --bind "$1/python" "$2";;
esac
shift 2
exec "$@"
"""


@dataclass
class Walled:
    """A federation in which the relay of device 1 has a user of its own."""

    federation: Federation
    place: RelayPlace
    joined: dict[str, Any]

    @property
    def home(self) -> Path:
        return self.federation.home(1).folder

    def running(self) -> Mapping[str, set[int]]:
        """Return under which users the programs of device 1 run now, by what they are."""
        found: dict[str, set[int]] = {}
        for word in ("client.resident", "flower-supernode", "client.launcher"):
            folder = self.home if word == "client.resident" else self.place.folder
            for path in Path("/proc").glob("[0-9]*"):
                try:
                    command, rest = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
                    if word.encode() in command and str(folder).encode() in command + rest:
                        found.setdefault(word, set()).add(path.stat().st_uid)
                except OSError:
                    continue
        return found


def as_user(user: int, group: int, *command: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        list(map(str, command)), user=user, group=group, extra_groups=[], capture_output=True, check=False, cwd="/"
    )


@pytest.fixture
def aside() -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder that others may enter, so that no wall but ours holds, and what stands before a command."""
    if os.geteuid():
        pytest.skip("a user of the relay's own needs root")
    folder = Path(tempfile.mkdtemp(prefix="cf"))
    folder.chmod(0o755)
    (folder / "fed").mkdir()
    before = ["unshare", "--mount", "sh", "-c", ASIDE, "sh", str(folder), sys.base_prefix]
    try:
        if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
            pytest.skip("no mount namespace here")
        yield folder, before
    finally:
        shutil.rmtree(folder)


@contextmanager
def walled(aside: tuple[Path, list[str]], model: Path, devices: int) -> Iterator[Walled]:
    """Yield a federation of which device 1 joined and takes part; its server does not run yet."""
    folder, before = aside
    there = folder / "fed"
    made = Federation(there, model, made_basis(there, model), devices, rounds=1, stage=300)
    try:
        wall = {"before": before, "CONFIDE_RELAY": str(folder / "relays")}
        joined = made.enrol(1, vault=True, relay_user=USER, **wall)  # type: ignore[arg-type]
        assert joined["relay_user"] == USER
        made.take_part(1, before)
        [place] = (folder / "relays").iterdir()
        yield Walled(made, RelayPlace(place), joined)
    finally:
        assert made.commands.end() == []


def check_walls(walled: Walled) -> None:
    """The relay's user opens nothing of the person's; strangers nothing of the relay's either."""
    place, relay, group = walled.place, walled.place.user, walled.place.group
    assert relay not in (0, STRANGER)
    secrets = [walled.home / name for name in ("vault.db", "vault.key", "agent.json", "person.token", "supernode")]
    for path in [*secrets, *(walled.home / "ledger").iterdir()]:
        assert path.exists()
        assert b"Permission denied" in as_user(relay, group, "cat", path).stderr, path.name
    [agent] = walled.federation.commands.running("client.resident", walled.home)
    assert walled.federation.passphrases[1].encode() in Path(f"/proc/{agent}/environ").read_bytes()
    assert b"Permission denied" in as_user(relay, group, "cat", f"/proc/{agent}/environ").stderr
    assert as_user(relay, group, "ls", walled.home).returncode != 0
    for mine in ("bundle.sha256", "authority.crt", "address"):
        assert as_user(relay, group, "cat", place.seam / mine).returncode == 0, mine
        assert as_user(relay, group, "sh", "-c", f'echo x > "{place.seam / mine}"').returncode != 0, mine
    assert as_user(STRANGER, STRANGER, "ls", place.seam).returncode != 0
    assert as_user(STRANGER, STRANGER, "cat", place.folder / "supernode").returncode != 0


def test_the_whole_round_of_a_relay_under_its_own_user(aside: tuple[Path, list[str]], tiny_model_dir: Path) -> None:
    with walled(aside, tiny_model_dir, DEVICES) as made:
        federation, seen = made.federation, dict[str, set[int]]()
        federation.start()
        joined = federation.enrol(2)
        assert joined["relay_user"] is None
        federation.take_part(2)
        for number, each in ((1, made.joined), (2, joined)):
            federation.admit(number, each)
        run = federation.commands.background("run", "server", "run", federation.server)

        def over() -> bool:
            for word, users in made.running().items():
                seen.setdefault(word, set()).update(users)
            return run.poll() is not None

        until(over, "the campaign is over")
        assert run.returncode == 0, (federation.commands.folder / "run.err").read_text()
        assert [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"] == [DEVICES]
        relay = made.place.user
        assert seen == {"client.resident": {0}, "flower-supernode": {relay}, "client.launcher": {relay}}
        told = ask(made.home, {"do": "status"})
        assert told["launcher"] == OWN and told["relay_user"] == relay and told["answered"] == 1
        check_walls(made)


CALL = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(20)
try:
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(sys.argv[2]))
    connection.settimeout(3)
    print("closed" if connection.recv(1) == b"" else "answered")
except PermissionError:
    print("denied")
except (BrokenPipeError, ConnectionResetError):
    print("closed")
except TimeoutError:
    print("listened to")
"""


def called(walled: Walled, user: int, group: int) -> str:
    """Return what becomes of a caller under this user at the agent's socket."""
    # The system's Python: the one of this test may lie where no other user may enter.
    command = [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-c", CALL]
    done = as_user(user, group, *command, walled.place.seam / SOCKET, RELAY_PREAMBLE.hex())
    return done.stdout.decode().strip() or done.stderr.decode()[-200:]


def test_the_agents_socket_takes_the_relays_user_by_the_kernels_word_and_nobody_else(
    aside: tuple[Path, list[str]], tiny_model_dir: Path
) -> None:
    with walled(aside, tiny_model_dir, DEVICES) as made:
        path, place = made.place.seam / SOCKET, made.place
        until(path.is_socket, "the agent listens")
        until(lambda: "flower-supernode" in made.running(), "the SuperNode runs")
        assert made.running() == {"client.resident": {0}, "flower-supernode": {place.user}}
        assert path.stat().st_mode & 0o777 == 0o660 and path.stat().st_gid == place.group
        assert called(made, place.user, place.group) == "listened to"
        assert called(made, 0, 0) == "listened to", "the person"
        assert called(made, STRANGER, STRANGER) == "denied"
        assert called(made, STRANGER, place.group) == "closed", "of the group, but another user: the agent hangs up"
        check_walls(made)


def test_a_relay_that_could_not_start_is_refused_when_it_is_set_up(tmp_path: Path, tiny_model_dir: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    made = Federation(tmp_path, tiny_model_dir, made_basis(tmp_path, tiny_model_dir), 2)
    try:
        with pytest.raises(ConfideError, match="root or the person"):
            made.enrol(1, relay_user="root")
        of_root = Path(pwd.getpwuid(0).pw_dir)
        if not of_root.stat().st_mode & 1 and of_root in Path(sys.base_prefix).parents:
            with pytest.raises(ConfideError, match=r"cannot run .*install confide where every user can read it"):
                made.enrol(2, relay_user="nobody")
    finally:
        assert made.commands.end() == []
