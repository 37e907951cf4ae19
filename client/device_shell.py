"""What the commands of `confide device` share: the vault opened as its owner opens it, and one way to print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client.listener import ask
from client.vault import Vault, home_folder
from client.vault_key import PASSPHRASE, PASSPHRASE_VARIABLE, Opener, opener_from, opens_by
from privacy.errors import ConfigError, VaultError

PATIENCE_S = 900.0  # a question waits for a training that runs

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def open_vault() -> Vault:
    """Return this person's vault, open; asks for the passphrase at a terminal. Raises VaultError."""
    folder = home_folder()
    opener = opener_from()
    if opens_by(folder) == PASSPHRASE and not opener.passphrase:
        opener = Opener(passphrase=typed("Passphrase: "))
    return Vault.open(folder, opener)


def typed(prompt: str) -> str:
    """Return what is typed unseen at the terminal. Raises VaultError where there is none, or nothing is typed."""
    if not sys.stdin.isatty():
        raise VaultError(f"no terminal to ask for a passphrase: set {PASSPHRASE_VARIABLE}")
    text = typer.prompt(prompt.rstrip(": "), hide_input=True)
    if not text:
        raise VaultError("an empty passphrase protects nothing")
    return str(text)


def say(facts: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the facts as one JSON object, or the text for people."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


def asked_of_agent(folder: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the agent that runs over `folder` answers its owner, None where none runs.

    Raises ConfigError with the agent's own line where it cannot do what is asked.
    """
    try:
        answer = ask(folder, request, PATIENCE_S)
    except (OSError, EOFError):
        return None
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return answer
