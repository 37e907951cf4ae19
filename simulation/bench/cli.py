"""`confide bench`: our figures beside a peer's, as ratios, both measured in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulation.bench.suite import Bench, BenchSizes

bench = typer.Typer(help="Side by side with peers, as ratios.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Devices = Annotated[int, typer.Option(help="Devices of the round that runs in one process.", min=8)]
People = Annotated[int, typer.Option(help="People, all of whom take part in every round.", min=16)]
Rounds = Annotated[int, typer.Option(help="Rounds.", min=1)]
Documents = Annotated[int, typer.Option(help="Invented documents to search.", min=100)]
Model = Annotated[str, typer.Option(help="Name, folder or hub id of the base model.")]

TrainDocuments = Annotated[int, typer.Option(help="Documents to train on.", min=8)]
TestDocuments = Annotated[int, typer.Option(help="Documents of other people that are scored.", min=1, max=16)]
Epochs = Annotated[int, typer.Option(help="Passes over the documents.", min=1)]


@bench.callback()
def group() -> None:
    """Side by side with peers, as ratios of figures measured in one run on one machine."""


@bench.command("all")
def everything(
    people: People = 1000,
    rounds: Rounds = 5,
    devices: Devices = 1000,
    documents: Documents = 10_000,
    model: Model = "smollm2-135m",
    train_documents: TrainDocuments = 64,
    test_documents: TestDocuments = 16,
    epochs: Epochs = 3,
    only: Annotated[
        str | None,
        typer.Option(help="Comma-separated parts: start, message, generate, retrieve, secagg, train, dp, simulate."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the rows so far, written after each part.")] = None,
    as_json: Json = False,
) -> None:
    """Every row beside its peer and its limit, in one run; half an hour, and what a peer needs is fetched once."""
    from privacy.errors import ConfigError
    from simulation.bench.suite import PARTS, BenchSizes

    names = [name.strip() for name in only.split(",")] if only is not None else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    sizes = BenchSizes(devices, people, rounds, documents, train_documents, test_documents, epochs, model=model)
    _run(names, sizes, as_json, out)


@bench.command()
def secagg(devices: Devices = 1000, as_json: Json = False) -> None:
    """Masks and a whole private sum, against Flower's SecAgg+ masks and the machine's bare keystream."""
    from simulation.bench.suite import BenchSizes

    _run(["secagg"], BenchSizes(devices=devices), as_json)


@bench.command()
def train(
    people: Annotated[str, typer.Option(help="chitchat, or a JSONL file of people.")] = "chitchat",
    model: Model = "smollm2-135m",
    documents: TrainDocuments = 64,
    test_documents: TestDocuments = 16,
    epochs: Epochs = 3,
    rank: Annotated[int, typer.Option(help="Rank of our cores.", min=1)] = 16,
    as_json: Json = False,
) -> None:
    """Training tokens a second, seconds to equal quality and the cost of record-level privacy, against stock PEFT."""
    from simulation.bench.suite import BenchSizes

    sizes = BenchSizes(
        train_people=people, model=model, train_documents=documents, test_documents=test_documents, epochs=epochs,
        rank=rank,
    )  # fmt: skip
    _run(["train", "dp"], sizes, as_json)


@bench.command()
def simulate(people: People = 1000, rounds: Rounds = 5, as_json: Json = False) -> None:
    """A whole simulation of a small model, against Flower's (Ray) and pfl-research's, each in one command."""
    from simulation.bench.suite import BenchSizes

    _run(["simulate"], BenchSizes(people=people, rounds=rounds), as_json)


@bench.command()
def retrieve(documents: Documents = 10_000, as_json: Json = False) -> None:
    """A search among a person's documents, against rank-bm25 and plain sentence-transformers search."""
    from simulation.bench.suite import BenchSizes

    _run(["retrieve"], BenchSizes(documents=documents), as_json)


@bench.command()
def face(
    model: Annotated[str, typer.Option(help="Name, folder or hub id of the base model.")] = "smollm2-135m",
    notes: Annotated[int, typer.Option(help="Invented notes in the vault.", min=8)] = 2000,
    tries: Annotated[int, typer.Option(help="Tries of each figure; the median counts.", min=1)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """The device's page and model by the clock: first word, page, adapters' cost, switching, many at once, idle."""
    import tempfile

    from client.base_model import base_model_path
    from client.model import LanguageModel
    from simulation.bench.face import FaceSizes, model_rows, served_rows
    from simulation.progress import Progress

    sizes, progress = FaceSizes(notes=notes, tries=tries), Progress(quiet=as_json)
    progress.note(f"generation and switching, {tries} tries")
    rows = model_rows(LanguageModel.load(base_model_path(model)), sizes)
    progress.note(f"the program over {notes} notes: import, index, questions, page; then it waits to end by itself")
    with tempfile.TemporaryDirectory() as folder:
        rows += served_rows(Path(folder), model, sizes)
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    for row in rows:
        met = "met" if row["holds"] else "missed"
        typer.echo(
            f"{row['work']}: {row['value']:.3f} {row['unit']}, aim {row['aim']:g}: {met}"
            f"   worst {row['worst']:.3f}\n    {row['how']}"
        )


def _run(names: list[str], sizes: BenchSizes, as_json: bool, out: Path | None = None) -> None:
    """Run parts and write their rows, as JSON or as a line each; raises ConfideError where none could be run."""
    from privacy.errors import ConfideError
    from privacy.files import write_atomic
    from simulation.bench.suite import run_parts
    from simulation.progress import Progress
    from simulation.quiet import quiet_libraries

    quiet_libraries()

    def kept(so_far: Bench) -> None:
        if out is not None:
            write_atomic(out, json.dumps(so_far).encode())

    found = run_parts(names, sizes, Progress(quiet=as_json), done=kept)
    if not found["rows"]:
        raise ConfideError(f"nothing could be run: {found['not_run'][0]}")
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _show(found)


def _show(found: Bench) -> None:
    for row in found["rows"]:
        limit = f"   {row['limit_ratio']:.2f} of the limit" if row["limit_ratio"] is not None else ""
        typer.echo(
            f"{row['work']}: {row['ours']:.3g} against {row['peer']:.3g} {row['unit']}: {row['ratio']:.2f} x{limit}\n"
            f"    {row['peer_name']}\n    {row['same']}"
        )
    for line in found["not_run"]:
        typer.echo(f"not run: {line}")
