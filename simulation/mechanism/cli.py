"""`confide audit mechanism|bugs`: 0 = every layer holds, 1 = one is violated, 2 = the audit could not be run."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from privacy.errors import ConfigError
from privacy.files import write_atomic
from simulation.mechanism.audit import FULL, LAYERS, QUICK, audit_mechanism
from simulation.mechanism.code import code_sha256
from simulation.mechanism.layer import Check, Layer, Mechanism
from simulation.mechanism.planting import bug_names

MARKS = {True: "✓", False: "✗", None: "–"}


class Size(StrEnum):
    """How much is looked at."""

    FULL = "full"
    QUICK = "quick"


Power_ = Annotated[Size, typer.Option("--power", help="quick: under a minute, and sees less.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Seed = Annotated[
    int | None, typer.Option(help="Repeatable noise and coins. Default: those of the operating system.", min=0)
]
Save = Annotated[Path | None, typer.Option(help="A file that takes the JSON, for the officer’s report.")]


def mechanism(
    plant: Annotated[
        str | None, typer.Option(help="Put this bug into the code first; 1 when it is caught. See: confide audit bugs.")
    ] = None,
    power: Power_ = Size.FULL,
    seed: Seed = None,
    only: Annotated[list[str] | None, typer.Option(help=f"Only this layer: {', '.join(LAYERS)}.")] = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Audit the code as it is here, with invented people: noise, clip, and what an attacker can tell of them."""
    chosen = tuple(only or LAYERS)
    if unknown := set(chosen) - set(LAYERS):
        raise ConfigError(f"--only: no layer {', '.join(sorted(unknown))}; there are {', '.join(LAYERS)}")
    with quiet_devices():
        found = audit_mechanism(
            QUICK if power is Size.QUICK else FULL,
            bug=plant,
            seed=seed,
            only=chosen,
            said=lambda layer: None if as_json else say(layer),
        )
    text = json.dumps({**found.as_dict(), "power": power.value}, indent=2)
    if save is not None:
        write_atomic(save, text.encode() + b"\n")
    typer.echo(text if as_json else verdict(found))
    if not found.holds:
        failed = ", ".join(layer.name for layer in found.layers if not layer.holds)
        typer.echo(f"confide: the mechanism does not hold: {failed}", err=True)
        raise typer.Exit(1)


def bugs(
    names: Annotated[list[str] | None, typer.Argument(help="Bugs to plant. Default: all.")] = None,
    seed: Seed = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Plant each known bug in turn, at quick power, and show which layer turns red: does the audit see anything."""
    known = bug_names()
    chosen = tuple(names or known)
    if not known or set(chosen) - set(known):
        raise ConfigError(f"bugs that can be planted here: {', '.join(known) or 'none, without the tests'}")
    rows = []
    for name in (None, *chosen):
        with quiet_devices():
            found = audit_mechanism(QUICK, bug=name, seed=seed)
        rows.append({"bug": name, "red": reasons(found)})
        if not as_json:
            typer.echo(bug_line(name, found))
    clean, missed = not rows[0]["red"], [row["bug"] for row in rows[1:] if not row["red"]]
    text = json.dumps(
        {"rows": rows, "missed": missed, "clean": clean, "code_sha256": code_sha256(), "holds": clean and not missed},
        indent=2,
    )
    if save is not None:
        write_atomic(save, text.encode() + b"\n")
    if as_json:
        typer.echo(text)
    if missed or not clean:
        what = f"not caught: {', '.join(map(str, missed))}" if missed else "the code without a bug is red"
        typer.echo(f"confide: {what}", err=True)
        raise typer.Exit(1)


def reasons(found: Mechanism) -> dict[str, list[str]]:
    """Return for each layer that is red what did not hold there."""
    return {
        layer.name: [f"{check.name}: {check.detail}" for check in layer.checks if check.holds is False]
        for layer in found.layers
        if not layer.holds
    }


def bug_line(name: str | None, found: Mechanism) -> str:
    """Return one line of the table of bugs."""
    marks = "  ".join(f"{MARKS[layer.holds]} {layer.name}" for layer in found.layers)
    return f"{name or 'as it is':34} {marks}"


def say(layer: Layer) -> None:
    """Print one layer: its figures, then its checks."""
    top = "none is set by the number of trials" if layer.ceiling is None else f"{layer.ceiling:.3f}"
    typer.echo(f"{MARKS[layer.holds]} {layer.name}: {layer.quantity} ({layer.seconds:.0f} s)")
    typer.echo(f"    at least {layer.lower_bound:.3f}; claimed {layer.claimed:.3f}; most that could be shown: {top}")
    typer.echo(f"    power: {layer.power}; false alarms: {layer.false_alarm:g}")
    for check in layer.checks:
        typer.echo(f"    {_line(check)}")


def verdict(found: Mechanism) -> str:
    """Return the last line: what follows, and what does not."""
    if found.planted:
        end = "caught" if not found.holds else "NOT CAUGHT by these layers"
        return f"planted on purpose: {found.planted}: {end}. Says nothing about the code as it is."
    if found.holds:
        return "nothing found against the claims. An audit that finds nothing does not prove them: see each power."
    return "the claims do not hold for this code"


def _line(check: Check) -> str:
    return f"{MARKS[check.holds]} {check.name}: {check.detail}"


class quiet_devices:  # noqa: N801 - used like a function
    """Keep what devices log of their refusals from the terminal: here they refuse because they are made to."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("client.agent")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
