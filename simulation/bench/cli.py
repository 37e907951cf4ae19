"""`confide bench`: our figures beside a peer's, as ratios, both measured in the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulation.bench.row import Row

bench = typer.Typer(help="Side by side with peers, as ratios.", no_args_is_help=True)


@bench.callback()
def group() -> None:
    """Side by side with peers, as ratios of figures measured in one run on one machine."""


@bench.command()
def secagg(
    devices: Annotated[int, typer.Option(help="Devices of the round that runs in one process.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Masks and a whole private sum, against Flower's SecAgg+ masks and the machine's bare keystream."""
    from fractions import Fraction

    from privacy.query import Cohort, Limits, Query
    from simulation.bench.secagg import Sizes, secagg_rows

    digest = "0" * 64
    template = Query(
        federation="bench",
        campaign="secagg",
        round=0,
        attempt=0,
        purpose="train.global",
        slots=1,
        slot_dim=1,
        clip_norm=Fraction(1),
        noise_multiplier=Fraction(1),
        cohort=Cohort(devices),
        transport="ideal",
        release_sha256=digest,
        basis_sha256=digest,
        policy_sha256=digest,
        ledger_head=digest,
        objective="next-token",
        limits=Limits(own_tokens=1, local_steps=1),
    )
    rows = secagg_rows(template, Sizes(large_invited=devices, large_dropped=devices // 5))
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    for row in rows:
        typer.echo(
            f"{row['work']}: {row['ours']:.3f} against {row['peer']:.3f} {row['unit']}: {row['ratio']:.1f} x"
            f"   {row['limit_ratio']:.2f} of the limit\n    {row['same']}"
        )
    typer.echo(f"peer: {rows[0]['peer_name']}")


@bench.command()
def train(
    people: Annotated[str, typer.Option(help="chitchat, or a JSONL file of people.")] = "chitchat",
    model: Annotated[str, typer.Option(help="Name, folder or hub id of the base model.")] = "smollm2-135m",
    documents: Annotated[int, typer.Option(help="Documents to train on.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 3,
    rank: Annotated[int, typer.Option(help="Rank of our cores.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Training tokens a second, and seconds to equal quality, against stock PEFT LoRA."""
    from client.base_model import base_model_path
    from client.model import LanguageModel
    from simulation.basis_cache import cached_basis
    from simulation.bench.train import train_rows
    from simulation.config import AdapterConfig
    from simulation.population import load_people
    from simulation.progress import Progress

    progress, adapter = Progress(quiet=as_json), AdapterConfig(rank=rank)
    path: Path = base_model_path(model)
    basis = cached_basis(path, adapter, 0, progress)
    tokens = LanguageModel.load(path, top_layers=adapter.layers)
    everyone = load_people(people, 200).people
    history = [d for i in range(4) for p in everyone[16:] for d in p.history[i : i + 1]][:documents]
    test = [p.test[0] for p in everyone[:16] if p.test]
    encoded = [[e for e in (tokens.encode(d, 256) for d in part) if e.own_tokens] for part in (history, test)]
    rows = train_rows(path, basis, encoded[0], encoded[1], adapter.layers, epochs)
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    for row in rows:
        limit = f"   {row['limit_ratio']:.2f} of the limit" if row["limit_ratio"] is not None else ""
        typer.echo(
            f"{row['work']}: {row['ours']:.0f} against {row['peer']:.0f} {row['unit']}: {row['ratio']:.1f} x{limit}"
        )
    typer.echo(f"peer: {rows[0]['peer_name']}; {rows[0]['same']}")


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


@bench.command()
def simulate(
    people: Annotated[int, typer.Option(help="People, all of whom take part in every round.", min=16)] = 1000,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """A whole simulation of a small model, against Flower's (Ray) and pfl-research's, each in one command."""
    import tempfile

    from simulation.bench.simulate import SimulationSizes, simulation_rows
    from simulation.progress import Progress

    progress = Progress(quiet=as_json)
    progress.note(f"{people} people, {rounds} rounds: ours, then each peer")
    with tempfile.TemporaryDirectory() as folder:
        _show(simulation_rows(Path(folder), SimulationSizes(people, rounds), _missing), as_json)


def _missing(line: str) -> None:
    typer.echo(line, err=True)


def _show(rows: list[Row], as_json: bool) -> None:
    """Write the rows, as JSON or as a line each with what is the same below it."""
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    for row in rows:
        limit = f"   {row['limit_ratio']:.2f} of the limit" if row["limit_ratio"] is not None else ""
        typer.echo(
            f"{row['work']}: {row['ours']:.3g} against {row['peer']:.3g} {row['unit']}: {row['ratio']:.2f} x{limit}\n"
            f"    {row['peer_name']}\n    {row['same']}"
        )
