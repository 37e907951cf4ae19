"""What the commands of `confide device` share: the vault opened as its owner opens it, and one way to print."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from client.vault import Vault, home_folder
from client.vault_key import PASSPHRASE, PASSPHRASE_VARIABLE, Opener, opener_from, opens_by
from privacy.errors import VaultError

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
