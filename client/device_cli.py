"""`confide device`: a person's own model over their own text, which stays on this device."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from client.vault import Vault, home_folder
from client.vault_key import PASSPHRASE, PASSPHRASE_VARIABLE, Opener, opener_from, opens_by
from privacy.errors import VaultError

device = typer.Typer(
    help="Your own model over your own text, which stays on this device.", no_args_is_help=True, add_completion=False
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def open_vault() -> Vault:
    """Return this person's vault, open; asks for the passphrase at a terminal. Raises VaultError."""
    folder = home_folder()
    opener = opener_from()
    if opens_by(folder) == PASSPHRASE and not opener.passphrase:
        opener = Opener(passphrase=_typed("Passphrase: "))
    return Vault.open(folder, opener)


def say(facts: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the facts as one JSON object, or the text for people."""
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)


@device.command()
def init(as_json: AsJson = False) -> None:
    """Make an empty vault. Its key is in your keyring, or under a passphrase."""
    folder, opener = home_folder(), opener_from()
    if not opener.passphrase and opener.keyring is None:
        first = _typed("No keyring here. Choose a passphrase: ")
        if first != _typed("Once more: "):
            raise VaultError("the two passphrases differ; nothing was made")
        opener = Opener(passphrase=first)
    Vault.create(folder, opener).close()
    by = opens_by(folder)
    say({"home": str(folder), "opens_by": by}, f"An empty vault in {folder}, opened by your {by}.", as_json)


def _typed(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise VaultError(f"no terminal to ask for a passphrase: set {PASSPHRASE_VARIABLE}")
    text = typer.prompt(prompt.rstrip(": "), hide_input=True)
    if not text:
        raise VaultError("an empty passphrase protects nothing")
    return str(text)
