"""Training in the background: a child process of the device's own, within its limits, that nobody has to wait for.

    start(vault folder, opener) -> child: opens the vault, trains, compares, notes how it ended in the vault

One training at a time holds `training.lock`; the system lets it go when a process dies, however it dies. The next one
then goes on from the last checkpoint. A passphrase reaches the child by a pipe, never by its arguments or environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from client.vault import HOME_VARIABLE, Vault
from client.vault_key import PASSPHRASE_VARIABLE, Opener, system_keyring
from privacy.errors import ConfideError, ConfigError, TrainingPaused

LOCK = "training.lock"
SETTING = "background"
NICE = 10
RUNNING, PAUSED, DONE, FAILED = "running", "paused", "done", "failed"


@contextmanager
def training_alone(folder: Path) -> Iterator[None]:
    """Hold the right to train in this vault. Raises ConfigError where another process does."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("a training is under way already: `confide device status` says how far it is") from None
        yield
    finally:
        os.close(descriptor)


def under_way(folder: Path) -> bool:
    """Return whether some process trains in this vault now."""
    try:
        with training_alone(folder):
            return False
    except ConfigError:
        return True


def start(folder: Path, opener: Opener, asked: dict[str, Any]) -> int:
    """Start a training in the background and return its process number; `asked` is kind, model, record_epsilon.

    Raises ConfigError where one is under way.
    """
    with training_alone(folder):
        pass
    environment = {name: value for name, value in os.environ.items() if name != PASSPHRASE_VARIABLE}
    environment |= {HOME_VARIABLE: str(folder), "PYTHONPATH": _path()}
    read, write = os.pipe()
    nowhere = [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
    with os.fdopen(write, "wb") as pipe:  # closed when all is written, or when no child came to read it
        try:
            child = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "client.background"],
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), *nowhere],
                setsid=True,  # a terminal that is closed does not end it
            )
        finally:
            os.close(read)
        pipe.write(json.dumps({**asked, "passphrase": opener.passphrase}).encode())
    return child


def state(vault: Vault) -> dict[str, Any]:
    """Return how the last training in the background stands: state, steps, words; {} where there was none.

    One that died without a word is called paused: see `go_on`.
    """
    found: dict[str, Any] = json.loads(vault.setting(SETTING, "{}"))
    if found.get("state") == RUNNING and not under_way(vault.folder):
        return {**found, "state": PAUSED, "words": "its process ended; it goes on from its last checkpoint"}
    return found


def go_on(vault: Vault) -> int | None:
    """Start a training again that paused or died, if the hour allows it; return its process number, else None."""
    from client.limits import kept_limits

    last = state(vault)
    if last.get("state") != PAUSED or not kept_limits(vault).allow(datetime.now().astimezone()):
        return None
    with contextlib.suppress(ConfigError):  # another command was faster
        return start(vault.folder, vault.opener, last["asked"])
    return None


def run(vault: Vault, asked: dict[str, Any]) -> None:
    """Train as asked, compare with what served, choose anew, and note how it ended."""
    from client.adopt import train_and_settle
    from client.assistant import open_assistant
    from client.limits import kept_limits

    with training_alone(vault.folder):
        _note(vault, asked, RUNNING, "")
        try:
            assistant = open_assistant(vault, asked.get("model", ""))
            last = time.monotonic()

            def report(done: int, steps: int) -> None:
                nonlocal last
                if time.monotonic() - last > 5:
                    _note(vault, asked, RUNNING, f"step {done} of {steps}")
                    last = time.monotonic()

            limits = kept_limits(vault)
            kind, epsilon = asked.get("kind", "lora"), asked.get("record_epsilon")
            _, words = train_and_settle(vault, assistant.model, kind, epsilon, limits, report)
            choice = assistant.personalize()
            _note(vault, asked, DONE, f"{words} {choice.words}")
        except ConfideError as error:
            _note(vault, asked, PAUSED if isinstance(error, TrainingPaused) else FAILED, str(error))
            raise


def _note(vault: Vault, asked: dict[str, Any], at: str, words: str) -> None:
    facts = {"state": at, "process": os.getpid(), "time": time.time(), "words": words, "asked": asked}
    vault.set_setting(SETTING, json.dumps(facts))


def _path() -> str:
    """Return where the child finds the packages that run here, whatever folder it starts in."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))


def main() -> int:
    """Run what the pipe asks for; return 1 where it failed, the reason is in the vault."""
    asked = json.loads(sys.stdin.buffer.read())
    os.nice(NICE)
    passphrase = asked.pop("passphrase")
    opener = Opener(passphrase=passphrase) if passphrase else Opener(keyring=system_keyring())
    try:
        with Vault.open(Path(os.environ[HOME_VARIABLE]), opener) as vault:
            run(vault, asked)
    except ConfideError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
