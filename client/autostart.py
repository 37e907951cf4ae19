"""Starting the device's program with the person's session: a systemd user unit, or a launch agent on macOS.

    Linux   ~/.config/systemd/user/confide.service      `systemctl --user enable --now confide`
    macOS   ~/Library/LaunchAgents/confide.device.plist `launchctl load -w`

At that moment nobody can type a passphrase, so the vault must open by the keyring. The same files with the place where
pipx puts the command lie in `deploy/`.
"""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from privacy.errors import ConfigError
from privacy.files import write_atomic

UNIT, AGENT = "confide.service", "confide.device.plist"
Run = Callable[[Sequence[str]], int]


def systemd_unit(command: str) -> str:
    """Return the unit that serves with the session; `command` is the full path of `confide`."""
    return f"""\
[Unit]
Description=confide: a person's own model over their own text, on loopback alone
Documentation=man:systemd.exec(5)

[Service]
ExecStart={command} device serve
Restart=on-failure
RestartSec=5
UMask=0077
NoNewPrivileges=yes
LimitCORE=0
MemorySwapMax=0

[Install]
WantedBy=default.target
"""


def launch_agent(command: str) -> bytes:
    """Return the launch agent that serves with the session."""
    return plistlib.dumps(
        {
            "Label": "confide.device",
            "ProgramArguments": [command, "device", "serve"],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "Umask": 0o077,
            "HardResourceLimits": {"Core": 0},
        }
    )


def run(command: Sequence[str]) -> int:
    """Run a command and return its exit status; raises ConfigError where there is no such program."""
    program = shutil.which(command[0])
    if program is None:
        raise ConfigError(f"{command[0]} is not here: start `confide device serve` by your session's own means")
    return subprocess.run([program, *command[1:]], check=False, capture_output=True).returncode


def switch(on: bool, command: str, home: Path, platform: str = sys.platform, run: Run = run) -> Path:
    """Start with the session from now on, or no longer; return the file that says so. Raises ConfigError."""
    if platform == "darwin":
        path, data = home / "Library" / "LaunchAgents" / AGENT, launch_agent(command)
        act = ["launchctl", "load" if on else "unload", "-w", str(path)]
    elif platform.startswith("linux"):
        path, data = home / ".config" / "systemd" / "user" / UNIT, systemd_unit(command).encode()
        act = ["systemctl", "--user", "enable" if on else "disable", "--now", UNIT]
    else:
        raise ConfigError(f"no way to start with the session is known for {platform}")
    if not on and not path.exists():
        raise ConfigError("it does not start with the session")
    if on:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        if platform != "darwin":
            run(["systemctl", "--user", "daemon-reload"])
    failed = run(act)
    if not on:
        path.unlink()
    if failed:
        raise ConfigError(f"{path} is {'written' if on else 'gone'}, but `{' '.join(act)}` failed: do it by hand")
    return path
