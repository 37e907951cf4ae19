"""`confide device join | take-part | persona | leave`: a person's device in a federation of others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from client.device_shell import AsJson, asked_of_agent, open_vault, say
from client.vault import home_folder
from client.vault_key import PASSPHRASE_VARIABLE
from privacy.enrolment import open_invitation, same_number
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from client.agent_home import AgentHome

START_S = 180.0


def join(
    invitation: Annotated[Path, typer.Argument(help="The invitation that the operator gave you.")],
    code: Annotated[str, typer.Option(help="The code that the operator told you over another way.")],
    safety_number: Annotated[str, typer.Option(help="The federation's number, as the operator read it out.")] = "",
    name: Annotated[str, typer.Option(help="Your device's name for the others; drawn by chance if left out.")] = "",
    organisation: Annotated[str, typer.Option(help="Whom the device belongs to, for the others.")] = "none",
    model: Annotated[str, typer.Option(help="The base model: a name, a folder, a hub id; the invitation's.")] = "",
    without_vault: Annotated[
        bool, typer.Option("--without-vault", help="For trials: text in plain files of CONFIDE_HOME.")
    ] = False,
    relay_user: Annotated[
        str, typer.Option(help="As root: the system user of relay and SuperNode, made if missing; none: your own.")
    ] = "",
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start agent and SuperNode as well.")] = True,
    as_json: AsJson = False,
) -> None:
    """Join a federation: compare its safety number, pin its keys, make yours, write what the operator admits."""
    from client.base_model import base_model_path
    from client.join import ENROLMENT
    from client.join import join as join_in

    try:
        file = invitation.read_bytes()
    except OSError as error:
        raise ConfigError(f"{invitation.name} cannot be read: {error.strerror}") from None
    offered = open_invitation(file)
    compared(offered.federation, offered.safety_number, safety_number)
    with Console(stderr=True).status("the base model", spinner="dots"):
        path = base_model_path(model or offered.model)
    with opened(without_vault) as home:
        enrolment = join_in(home, file, code, path, name, organisation)
        folder, passphrase = home.folder, home.vault.opener.passphrase if home.vault is not None else None
        relay, about = walled_off(home, relay_user)
    place = folder / ENROLMENT
    facts = {
        "device": enrolment.device,
        "federation": offered.federation,
        "federation_safety_number": offered.safety_number,
        "safety_number": enrolment.safety_number,
        "enrolment": str(place),
        "relay_user": relay,
        "started": begin(folder, passphrase) if start else None,
    }
    lines = [
        f"This device is {enrolment.device} in {offered.federation}. Its safety number: {enrolment.safety_number}",
        f"Send {place} to the operator, and read the number out over another way.",
        "Agent and SuperNode run; they take part once you are admitted." if start else "`confide device take-part`",
        "The dial decides what is answered: `confide device dial`.",
        about,
    ]
    say(facts, "\n".join(lines), as_json)


def take_part(
    without_vault: Annotated[bool, typer.Option("--without-vault", help="For trials, see join.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep this device's agent and SuperNode running, until Ctrl-C or SIGTERM."""
    from client.take_part import take_part as keep

    with opened(without_vault) as home:
        passphrase = home.vault.opener.passphrase if home.vault is not None else None
        closed = type(home)(home.folder)

    def ready() -> None:
        say({"agent": "ready", "supernode": "started"}, "Agent and SuperNode run.", as_json)

    keep(closed, ready, passphrase, lambda line: typer.echo(f"confide: {line}", err=True))


def persona(
    name: Annotated[str, typer.Argument(help="The persona you count yourself to; nothing: show them.")] = "",
    none: Annotated[bool, typer.Option("--none", help="To none of them, from now on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which of the federation's declared personas you count yourself to. It stays in the vault; sums hide it."""
    from client.join import PERSONA, count_to, joined_invitation

    if name and none:
        raise ConfigError("name a persona or say --none, not both")
    with opened(without_vault=False) as home:
        if name or none:
            count_to(home, name)
        declared, now = joined_invitation(home).personas, home.vault.setting(PERSONA)
    lines = list(declared) or ["This federation declares no personas: nobody is asked for one."]
    if declared:
        lines.append(f"You count yourself to: {now or 'none of them; your answers then hold zeros for all'}.")
    say({"personas": list(declared), "persona": now or None}, "\n".join(lines), as_json)


def relay_user(
    name: Annotated[str, typer.Argument(help="The system user of relay and SuperNode, made if missing.")] = "",
    as_json: AsJson = False,
) -> None:
    """As root: give the relay of the device in CONFIDE_HOME a system user of its own, which can open nothing of it."""
    from client.agent_home import AgentHome
    from client.relay_user import USER, set_up

    place = set_up(AgentHome(home_folder()), name or USER)
    text = f"The relay runs as {name or USER} in {place.folder}, from the next start of `confide device take-part` on."
    say({"relay_user": name or USER, "folder": str(place.folder)}, text, as_json)


def relay(folder: Annotated[Path, typer.Argument(help="The relay's folder, as relay-user said it.")]) -> None:
    """As the relay's user: keep the SuperNode of a device running; what a system service does."""
    from client.take_part import take_part_as_relay

    take_part_as_relay(folder, lambda line: typer.echo(f"confide: {line}", err=True))


def leave(
    without_vault: Annotated[bool, typer.Option("--without-vault", help="For trials, see join.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave the federation: ends its programs here and forgets what was pinned. Your ledger and text stay."""
    from client.join import leave as leave_it
    from client.relay_user import remove

    with opened(without_vault) as home:
        stop(home.folder)
        asked_of_agent(home.folder, {"do": "end"})
        if home.joined:
            remove(home)
        leave_it(home)
    text = "Left. Your ledger still says what was given; tell the operator, who takes you out of the directory."
    say({"left": True}, text, as_json)


def walled_off(home: AgentHome, name: str) -> tuple[str | None, str]:
    """Give the relay a user of its own where this is root; return its name, None for the person's, and a line of it.

    Raises ConfigError where a named user cannot be had.
    """
    from client.relay_user import NONE, set_up

    if name in ("", NONE):  # no default until a SuperNode was seen to run so, end to end
        return None, "Its relay runs under your own user."
    set_up(home, name)
    return name, f"Its relay runs as {name}, who can open nothing of yours."


def compared(federation: str, number: str, typed: str) -> None:
    """Return once the person has compared the number. Raises ConfigError where it differs, or nobody can say."""
    if typed:
        if not same_number(typed, number):
            raise ConfigError(f"the invitation's safety number is {number}, not the one you were told: do not join")
        return
    if not sys.stdin.isatty():
        raise ConfigError("no terminal to compare the safety number at: --safety-number, as the operator read it out")
    Console(stderr=True).print(f"{federation}: safety number {number}", highlight=False)
    if not typer.confirm("Is this, digit by digit, what the operator read out to you?", err=True):
        raise ConfigError("then this is another federation's invitation: nothing was written")


def opened(without_vault: bool) -> Any:
    """Return a context with the agent's home of this device, its vault open."""
    from client.agent_home import AgentHome

    if without_vault:
        home = AgentHome(home_folder())
        if home.has_vault:
            raise ConfigError("this device has a vault: leave --without-vault away")
        return nullcontext(home)
    return _WithVault()


class _WithVault:
    def __enter__(self) -> AgentHome:
        from client.agent_home import AgentHome

        self._closing = closing(open_vault())
        vault = self._closing.__enter__()
        return AgentHome(vault.folder, vault)

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)


def begin(folder: Path, passphrase: str | None) -> int:
    """Start `confide device take-part` in the background, wait until the agent answers, and return its process id.

    Raises ConfigError with where to look if it ends before.
    """
    from client.take_part import answers

    stop(folder)
    logs = folder / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-P", "-m", "client.take_part_alone", str(folder)]
    environment = {**os.environ, "CONFIDE_HOME": str(folder), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    if passphrase:
        environment[PASSPHRASE_VARIABLE] = passphrase
    with (logs / "take-part.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    until = time.monotonic() + START_S
    while not answers(folder):
        if process.poll() is not None or time.monotonic() > until:
            raise ConfigError(f"the agent did not start: see {logs}")
        time.sleep(0.2)
    return process.pid


def stop(folder: Path) -> None:
    """End what `begin` started over `folder`, if it runs."""
    import signal

    path = folder / "take-part.pid"
    try:
        pid = int(path.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if b"client.take_part_alone" not in words or str(folder).encode() not in words:
        return
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 40.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)
