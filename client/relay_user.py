"""The relay's own system user: SuperNode and launcher run under it and can open nothing of the person's.

    /var/lib/confide-relay/PLACE/          the relay user's: supernode (its key, 0600), flower/, launcher/
    /var/lib/confide-relay/PLACE/seam/     the person's, the relay's group may enter: relay.sock, authority.crt,
                                           bundle.sha256, address

The agent listens in `seam` and takes callers of its own user and the relay's, as the kernel names them. PLACE is drawn
from where the person's folder lies. Setting this up needs root, once; so does starting the SuperNode from the person's
own program (`client.take_part`), unless a system service does that (`deploy/systemd/confide-relay@.service`).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.agent_home import AgentHome, AgentSettings
from client.join import AUTHORITY, NODE_KEY, PIN, joined_invitation
from privacy.errors import ConfigError
from privacy.files import write_atomic

USER, NONE = "confide-relay", "none"
PLACES = Path("/var/lib/confide-relay")
PLACES_VARIABLE = "CONFIDE_RELAY"
ADDRESS = "address"
SOURCE = Path(__file__).resolve().parents[1]
NOLOGIN = "/usr/sbin/nologin"


@dataclass(frozen=True)
class RelayPlace:
    """The folder of a device's relay. Whose it is says under which user the relay runs."""

    folder: Path

    @property
    def seam(self) -> Path:
        """Return the folder that agent and relay share."""
        return self.folder / "seam"

    @property
    def user(self) -> int:
        """Return the relay's user id. Raises ConfigError where the folder is gone."""
        return self._stat().st_uid

    @property
    def group(self) -> int:
        """Return the relay's group id. Raises ConfigError where the folder is gone."""
        return self._stat().st_gid

    def _stat(self) -> os.stat_result:
        try:
            return self.folder.stat()
        except OSError:
            raise ConfigError(f"{self.folder} is gone: `confide device relay-user` as root makes it anew") from None


def place_of(settings: AgentSettings) -> RelayPlace | None:
    """Return where this device's relay has its own user, None where it runs as the person."""
    return RelayPlace(Path(settings.relay)) if settings.relay else None


def set_up(home: AgentHome, name: str = USER) -> RelayPlace:
    """Make the user `name` if it is missing and the relay's folder, note it in `agent.json`, and return the place.

    The person is whoever owns the device's folder. Raises ConfigError, and notes nothing, where this is not root, where
    the user is root or the person, or cannot run this installation's Python.
    """
    if os.geteuid():
        raise ConfigError("a user of the relay's own needs root, once: `sudo confide device relay-user`")
    joined_invitation(home)
    person, relay = home.folder.stat(), user_of(name)
    if relay.pw_uid in (0, person.st_uid):
        raise ConfigError(f"{name} is root or the person: the relay's user is somebody else")
    _require_python(relay)
    place = RelayPlace(places() / hashlib.sha256(os.fsencode(home.folder.absolute())).hexdigest()[:16])
    if not places().exists():
        places().mkdir(parents=True)
        places().chmod(0o755)
    place.folder.mkdir(mode=0o711, exist_ok=True)
    _owned(place.folder, relay.pw_uid, relay.pw_gid, 0o711)
    place.seam.mkdir(exist_ok=True)
    _owned(place.seam, person.st_uid, relay.pw_gid, 0o2750)  # what the person makes in it is of the relay's group
    write_atomic(place.folder / NODE_KEY, (home.folder / NODE_KEY).read_bytes(), mode=0o600)
    _owned(place.folder / NODE_KEY, relay.pw_uid, relay.pw_gid, 0o600)
    settings = home.folder / "agent.json"
    home.save(replace(home.settings, relay=str(place.folder)))
    os.chown(settings, person.st_uid, person.st_gid)
    put_pins(home, place)
    return place


def put_pins(home: AgentHome, place: RelayPlace) -> None:
    """Write what the relay must know into the seam, as the person holds it now: address, authority, the one bundle."""
    pins = {name: (home.folder / name).read_bytes() for name in (AUTHORITY, PIN)}
    pins[ADDRESS] = joined_invitation(home).address.encode()
    for name, data in pins.items():
        write_atomic(place.seam / name, data, mode=0o640)
        if not os.geteuid():
            os.chown(place.seam / name, home.folder.stat().st_uid, place.group)


def remove(home: AgentHome) -> None:
    """Remove the relay's folder where this is root; of a person, what is theirs in it. The user stays."""
    place = place_of(home.settings)
    if place is None:
        return
    if not os.geteuid():
        shutil.rmtree(place.folder, ignore_errors=True)
        return
    for name in (ADDRESS, AUTHORITY, PIN):
        (place.seam / name).unlink(missing_ok=True)


def environment(place: RelayPlace) -> Mapping[str, str]:
    """Return what the SuperNode's environment holds of the one who starts it: nothing of the person's."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ}
    return kept | {"PATH": os.defpath, "HOME": str(place.folder)}


def places() -> Path:
    """Return the folder of all relays' folders: $CONFIDE_RELAY, or /var/lib/confide-relay."""
    return Path(os.environ.get(PLACES_VARIABLE) or PLACES)


def user_of(name: str) -> pwd.struct_passwd:
    """Return a system user, made where it is missing: no home, no shell, no password. Raises ConfigError."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    try:
        done = subprocess.run([*command, "--shell", NOLOGIN, name], capture_output=True, text=True, check=False)
    except OSError:
        raise ConfigError(f"no useradd here: make a system user {name} by this machine's own way") from None
    if done.returncode:
        raise ConfigError(f"no user {name}: {(done.stderr.strip().splitlines() or ['useradd failed'])[-1]}")
    return pwd.getpwnam(name)


def _require_python(relay: pwd.struct_passwd) -> None:
    """Raise ConfigError where the relay's user cannot run what a SuperNode starts."""
    command = [sys.executable, "-P", "-c", "import client.launcher"]
    try:
        done = subprocess.run(
            command, env={"PATH": os.defpath, "PYTHONPATH": str(SOURCE)}, cwd="/", capture_output=True, check=False,
            user=relay.pw_uid, group=relay.pw_gid, extra_groups=[],
        )  # fmt: skip
        runs = done.returncode == 0
    except OSError:
        runs = False
    if not runs:
        raise ConfigError(
            f"{relay.pw_name} cannot run {sys.executable}: install confide where every user can read it, such as /opt"
        )


def _owned(path: Path, user: int, group: int, mode: int) -> None:
    os.chown(path, user, group)
    path.chmod(mode)
