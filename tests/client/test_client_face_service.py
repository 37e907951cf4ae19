"""The program around the page: one a vault, gone when idle, started with the session, tokens by command."""

from __future__ import annotations

import json
import plistlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import confide
from client.autostart import AGENT, UNIT, launch_agent, switch, systemd_unit
from client.face.serve import bound
from privacy.errors import ConfigError
from tests.face_served import served

DEPLOY = Path(confide.__file__).parent / "deploy" / "session"


def told(*words: str) -> Any:
    """Return what a command of `confide device` says as JSON; its error line where it fails."""
    done = CliRunner().invoke(confide.confide, ["device", *words, "--json"])
    return json.loads(done.stdout) if done.exit_code == 0 else f"{done.stderr}{done.exception or ''}"


def test_one_program_a_vault_and_its_page_opens_by_command(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONFIDE_PASSPHRASE", "x")
    assert "nothing serves this device" in told("open", "--show")
    with served(tmp_path, tiny_model_dir) as face:
        assert told("open", "--show") == {"url": face.url, "token": face.token, "opened": False}
        assert (face.folder / "face.json").stat().st_mode & 0o077 == 0
        assert "another agent runs" in told("serve", "--port", "0")
        with pytest.raises(ConfigError, match="cannot be had"):
            bound(face.port)
        made = told("token", "editor", "--scope", "chat", "--scope", "memories")
        assert face.request("GET", "/v1/models", token=made["token"])[0] == 200, "with no new start"
        assert told("token") == {"token": None, "tokens": {"editor": ["chat", "memories"]}}
        assert told("token", "editor", "--drop")["tokens"] == {}
        assert face.request("GET", "/v1/models", token=made["token"])[0] == 401
        assert "no token editor" in told("token", "editor", "--drop")
        assert "opens by a passphrase" in told("autostart", "on") and "on or off" in told("autostart", "x")
    assert not (face.folder / "face.json").exists()


def test_it_ends_by_itself_when_nobody_asks_and_not_before(tmp_path: Path, tiny_model_dir: Path) -> None:
    with served(tmp_path, tiny_model_dir, idle_s=1.5) as face:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert face.request("POST", "/page/find", {"question": "ferry"})[0] == 200
            time.sleep(0.2)
        until = time.monotonic() + 20
        while (face.folder / "face.json").exists():
            assert time.monotonic() < until, "it is still there"
            time.sleep(0.1)
        with pytest.raises(OSError):
            face.request("GET", "/")


class Ran:
    """Takes commands and runs none; `status` is what each of them gives."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.commands = status, [""]

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(" ".join(command))
        return self.status


def test_it_starts_with_the_session_on_linux(tmp_path: Path) -> None:
    ran = Ran()
    path = switch(True, "/somewhere/confide", tmp_path, "linux", ran)
    assert (
        path == tmp_path / ".config/systemd/user" / UNIT
        and "ExecStart=/somewhere/confide device serve" in path.read_text()
    )
    assert ran.commands[1:] == ["systemctl --user daemon-reload", f"systemctl --user enable --now {UNIT}"]
    switch(False, "/somewhere/confide", tmp_path, "linux", ran)
    assert not path.exists() and ran.commands[-1] == f"systemctl --user disable --now {UNIT}"
    with pytest.raises(ConfigError, match="does not start"):
        switch(False, "/somewhere/confide", tmp_path, "linux", ran)
    with pytest.raises(ConfigError, match="by hand"):
        switch(True, "/somewhere/confide", tmp_path, "linux", Ran(1))


def test_it_starts_with_the_session_on_macos_and_nowhere_unknown(tmp_path: Path) -> None:
    ran = Ran()
    path = switch(True, "/somewhere/confide", tmp_path, "darwin", ran)
    assert plistlib.loads(path.read_bytes())["ProgramArguments"] == ["/somewhere/confide", "device", "serve"]
    assert path.name == AGENT and ran.commands[-1].startswith("launchctl load -w ")
    with pytest.raises(ConfigError, match="no way"):
        switch(True, "/somewhere/confide", tmp_path, "win32", ran)


def test_the_files_in_deploy_are_what_the_command_writes() -> None:
    mark, _, unit = (DEPLOY / UNIT).read_text().partition("\n")
    assert mark.startswith("#") and unit == systemd_unit("%h/.local/bin/confide")
    agent = (DEPLOY / AGENT).read_bytes()
    first, mark_line, rest = agent.split(b"\n", 2)
    assert mark_line.startswith(b"<!--") and first + b"\n" + rest == launch_agent("/usr/local/bin/confide")
    assert plistlib.loads(agent) == plistlib.loads(launch_agent("/usr/local/bin/confide"))
