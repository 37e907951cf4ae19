"""`confide device serve | open | token`: the page and the API of this device, on loopback alone."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from client.device_shell import AsJson, open_vault, say
from client.spoken import spoken
from client.vault import home_folder
from privacy.errors import ConfigError

PORT = 8917


def serve(
    port: Annotated[int, typer.Option(help="The port on 127.0.0.1; 0: any free one.", min=0, max=65535)] = PORT,
    idle_minutes: Annotated[int, typer.Option(help="End after so long without a request; 0: never.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Stay in memory and serve the page, the API and, where you joined one, the federation. Ctrl-C ends it."""
    from client.agent_home import AgentHome
    from client.face.serve import serve as serve_home

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", FutureWarning)  # of packages about each other

    def listening(facts: dict[str, Any]) -> None:
        say(facts, f"{facts['url']}#token={facts['token']}", as_json)

    with open_vault() as vault:
        home = AgentHome(vault.folder, vault)
        with home.alone():
            serve_home(home, port, listening, idle_s=60.0 * idle_minutes)


def open_page(
    show: Annotated[bool, typer.Option("--show", help="Print the address with its token; open nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open the page of the program that serves this device."""
    from client.face.serve import RUNNING

    try:
        facts = json.loads((home_folder() / RUNNING).read_bytes())
        address = f"{facts['url']}#token={facts['token']}"
    except (OSError, ValueError, KeyError):
        raise ConfigError("nothing serves this device: start `confide device serve`") from None
    opened = not (show or as_json) and webbrowser.open(address)
    say(facts | {"opened": opened}, facts["url"] if opened else address, as_json)


def autostart(
    state: Annotated[str, typer.Argument(help="on or off.")],
    as_json: AsJson = False,
) -> None:
    """Serve from the start of your session on, or no longer. The vault must open by your keyring."""
    from client.autostart import switch
    from client.vault_key import KEYRING, opens_by

    if state not in ("on", "off"):
        raise ConfigError("say on or off")
    if state == "on" and opens_by(home_folder()) != KEYRING:
        raise ConfigError("this vault opens by a passphrase, which nobody can type when a session starts")
    command = shutil.which("confide") or str(Path(sys.argv[0]).resolve())
    path = switch(state == "on", command, Path.home())
    say({"autostart": state == "on", "file": str(path)}, f"{path}: {state}.", as_json)


def token(
    name: Annotated[str, typer.Argument(help="The program that will use it; nothing: show all.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="chat, memories, embeddings, learn; chat alone if none.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Make the token of this name worthless.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a program of yours a token for the API, for some of what it can do; it is shown once."""
    from client.face.tokens import CHAT, drop_token, new_token, token_names

    with open_vault() as vault:
        made = ""
        if name and drop:
            drop_token(vault, name)
        elif name:
            made = new_token(vault, name, scope or [CHAT])
        names = token_names(vault)
    lines = [f"{each}: {', '.join(scopes)}" for each, scopes in names.items()] or [spoken("No program has a token.")]
    say({"token": made or None, "tokens": names}, made or "\n".join(lines), as_json)


def prefer(
    demonstrations: Annotated[
        bool, typer.Option("--demonstrations", help="Your own words against samples too.")
    ] = False,
    record_epsilon: Annotated[
        float | None, typer.Option(help="Each choice protected by this epsilon: may be exported.", min=0.01)
    ] = None,
    seconds: Annotated[float, typer.Option(help="The longest training.", min=1)] = 180.0,
    as_json: AsJson = False,
) -> None:
    """Train your own adapter on what you preferred on the page; kept only where pairs held back agree."""
    from rich.console import Console

    from client.assistant import model_of
    from client.background import training_alone
    from client.dpo import DPO
    from client.preferring import learn

    with open_vault() as vault, training_alone(vault.folder), Console(stderr=True).status("reading") as status:
        made = learn(
            vault, model_of(vault), DPO(seconds=seconds), demonstrations,
            lambda done, steps: status.update(f"training: {done} of {steps} steps"), record_epsilon,
        )  # fmt: skip
    text = (
        f"{made.words} "
        + spoken(
            "{pairs} trained on; of {held_back} pairs held back {agreed} agree.",
            pairs=made.pairs,
            held_back=made.held_back,
            agreed=f"{made.agreed:.0%}",
        )
        + " "
        + spoken(
            "How far it says what you say: {before} nats before, {after} after.",
            before=f"{made.shift_before:+.2f}",
            after=f"{made.shift_after:+.2f}",
        )
    )
    if made.privacy is not None:
        text += (
            f" Epsilon {made.privacy.epsilon:.2f} (delta {made.privacy.delta:g}) for each choice; one text of yours"
            f" stood in at most {made.most_choices_of_a_document} of them."
            f" `confide device export FOLDER --adapter {made.adapter}` lets it leave."
        )
    say(made.to_json(), text, as_json)


def mount(device: typer.Typer) -> None:
    """Put the commands of this module under `confide device`."""
    device.command()(serve)
    device.command("open")(open_page)
    device.command()(autostart)
    device.command()(token)
    device.command()(prefer)
