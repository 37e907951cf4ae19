"""The relay under a system user of its own: made by `confide device join`, and unable to open anything of the person's.

Two things of this machine are put aside for the commands that need it, in a mount namespace of theirs: a Python under
/root, which no other user may enter, is put where it was in an empty /root; and /etc is a copy, so that the user that
is made is nobody's on the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.launcher import SOCKET
from client.listener import RELAY_PREAMBLE, ask
from client.membership import OWN
from client.relay_user import RelayPlace
from privacy.errors import ConfideError
from server.events import events
from tests.federation_by_command import Federation, made_basis, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DEVICES, USER = 4, "confide-relay"
STRANGER = 65534
ASIDE = """
set -e
mount --make-rprivate /
mkdir -p "$1/etc" "$1/python"
[ -e "$1/etc/passwd" ] || cp -a /etc/. "$1/etc/"
mount --bind "$1/etc" /etc
case "$2" in /root/*)
  mount --bind "$2" "$1/python"
  mount -t tmpfs -o mode=755 none /root
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
def walled(tiny_model_dir: Path) -> Iterator[Walled]:
    if os.geteuid():
        pytest.skip("a user of the relay's own needs root")
    folder = Path(tempfile.mkdtemp(prefix="cf"))  # not pytest's own, which no other user may enter: no wall but ours
    folder.chmod(0o755)
    there = folder / "fed"
    there.mkdir()
    aside = ["unshare", "--mount", "sh", "-c", ASIDE, "sh", str(folder), sys.base_prefix]
    if subprocess.run([*aside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace here")
    made = Federation(there, tiny_model_dir, made_basis(there, tiny_model_dir), DEVICES, rounds=1, stage=300)
    try:
        made.start()
        for number in range(1, DEVICES + 1):
            if number == 1:
                wall = {"before": aside, "CONFIDE_RELAY": str(folder / "relays")}
                joined = made.enrol(number, vault=True, relay_user=USER, **wall)  # type: ignore[arg-type]
                assert joined["relay_user"] == USER
                made.take_part(number, aside)
            else:
                joined = made.enrol(number)
                assert joined["relay_user"] is None
                made.take_part(number)
            made.admit(number, joined)
        [place] = (folder / "relays").iterdir()
        yield Walled(made, RelayPlace(place))
    finally:
        left = made.commands.end()
        shutil.rmtree(folder)
        assert left == []


def test_the_relay_runs_as_its_own_user_and_can_open_nothing_of_the_persons(walled: Walled) -> None:
    federation, place = walled.federation, walled.place
    run = federation.commands.background("run", "server", "run", federation.server)
    seen: dict[str, set[int]] = {}

    def over() -> bool:
        for word, users in walled.running().items():
            seen.setdefault(word, set()).update(users)
        return run.poll() is not None

    until(over, "the campaign is over")
    assert run.returncode == 0, (federation.commands.folder / "run.err").read_text()
    assert [e["survivors"] for e in events(federation.server / "server") if e["event"] == "sum"] == [DEVICES]
    relay, group = place.user, place.group
    assert relay not in (0, STRANGER)
    assert seen == {"client.resident": {0}, "flower-supernode": {relay}, "client.launcher": {relay}}
    told = ask(walled.home, {"do": "status"})
    assert told["launcher"] == OWN and told["relay_user"] == relay and told["answered"] == 1

    secrets = [walled.home / name for name in ("vault.db", "vault.key", "agent.json", "person.token", "supernode")]
    for path in [*secrets, *(walled.home / "ledger").iterdir()]:
        assert path.exists()
        assert b"Permission denied" in as_user(relay, group, "cat", path).stderr, path.name
    [agent] = federation.commands.running("client.resident", walled.home)
    assert b"Permission denied" in as_user(relay, group, "cat", f"/proc/{agent}/environ").stderr
    assert as_user(relay, group, "cat", f"/proc/{agent}/root{walled.home}/vault.db").returncode != 0
    assert as_user(relay, group, "ls", walled.home).returncode != 0
    for mine in ("bundle.sha256", "authority.crt", "address"):
        assert as_user(relay, group, "cat", place.seam / mine).returncode == 0, mine
        assert as_user(relay, group, "sh", "-c", f'echo x > "{place.seam / mine}"').returncode != 0, mine
    assert as_user(STRANGER, STRANGER, "ls", place.seam).returncode != 0
    assert as_user(STRANGER, STRANGER, "cat", place.folder / "supernode").returncode != 0


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


def test_the_agents_socket_takes_the_relays_user_by_the_kernels_word_and_nobody_else(walled: Walled) -> None:
    path, place = walled.place.seam / SOCKET, walled.place
    until(path.is_socket, "the agent listens")
    assert path.stat().st_mode & 0o777 == 0o660 and path.stat().st_gid == place.group

    def called(user: int, group: int) -> str:
        # Debian's Python: the one of this test may lie where no other user may enter.
        command = [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-c", CALL]
        done = as_user(user, group, *command, path, RELAY_PREAMBLE.hex())
        return done.stdout.decode().strip() or done.stderr.decode()[-200:]

    assert called(place.user, place.group) == "listened to"
    assert called(0, 0) == "listened to", "the person"
    assert called(STRANGER, STRANGER) == "denied"
    assert called(STRANGER, place.group) == "closed", "of the group, but another user: the agent hangs up"
    with socket.socket(socket.AF_UNIX) as person:
        person.connect(os.fspath(walled.home / "person.sock"))
    assert called(place.user, place.group) == "listened to"


def test_a_relay_that_could_not_start_is_refused_when_it_is_set_up(tmp_path: Path, tiny_model_dir: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    made = Federation(tmp_path, tiny_model_dir, made_basis(tmp_path, tiny_model_dir), 2)
    try:
        with pytest.raises(ConfideError, match="root or the person"):
            made.enrol(1, relay_user="root")
        if not Path("/root").stat().st_mode & 1 and sys.base_prefix.startswith("/root/"):
            with pytest.raises(ConfideError, match=r"cannot run .*install confide where every user can read it"):
                made.enrol(2, relay_user="nobody")
    finally:
        assert made.commands.end() == []
