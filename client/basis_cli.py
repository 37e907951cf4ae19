"""`confide model basis`: make the frozen basis of a federation's shared adapters, or compare ways to make it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from client.base_model import DEFAULT_MODEL, Builder, base_model_path
from client.records import read_documents
from privacy.errors import ConfigError, DataError

if TYPE_CHECKING:
    from client.basis import BasisSettings
    from client.model import Encoded, LanguageModel
    from privacy.adapter import Basis

OWN_SAMPLES = "own samples"
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Texts:
    """Where the texts come from: the model's own samples, or the public file."""

    public: Path | None
    samples: int
    tokens: int
    seed: int


def basis(
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id owner/name.")] = DEFAULT_MODEL,
    rank: Annotated[int, typer.Option(min=1, help="Each module's core holds rank x rank numbers.")] = 8,
    layers: Annotated[int, typer.Option(min=1, help="How many layers from the top are adapted.")] = 10,
    damping: Annotated[float, typer.Option(min=0.0, help="Added to eigenvalues, as a share of their mean.")] = 0.01,
    centred: Annotated[bool, typer.Option("--centred", help="Subtract the mean input.")] = False,
    skip_first: Annotated[bool, typer.Option("--skip-first", help="Leave out each text's first position.")] = False,
    public: Annotated[Path | None, typer.Option(help="Text that no participant wrote, as JSON lines.")] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="How many texts: written by the base model, or drawn from --public.")
    ] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="At most so many tokens of each text.")] = 112,
    seed: Annotated[int, typer.Option(help="Fixes the samples, and what is compared.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the basis goes; basis.safetensors if left out.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare sources and settings; writes no basis.")] = False,
    people: Annotated[Path | None, typer.Option(help="Whose text --compare measures with, as JSON lines.")] = None,
    people_tokens: Annotated[int, typer.Option(min=1, help="Own tokens of history, and of test text.")] = 3000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Make a basis from the base model's own samples (no data needed) or from --public text, and print its hash.

    A basis is published before any noise is drawn: no text of a participant may go into it.
    """
    _check(public, people, out, compare)
    warnings.simplefilter("ignore", FutureWarning)  # of packages about each other; this process is the command's own
    from client.basis import BasisSettings

    console = Console(stderr=True)
    settings = BasisSettings(rank=rank, damping=damping, centred=centred, skip_first=skip_first)
    texts = Texts(public, samples, tokens, seed)
    loaded = _loaded(console, model, layers)
    if compare and people is not None:
        rows = _compared(console, loaded, settings, texts, people, people_tokens)
        _print_comparison(rows, as_json)
        return
    made = _made(console, loaded, settings, texts)
    place = out or Path("basis.safetensors")
    made.save(place)
    _print_basis(made, place, OWN_SAMPLES if public is None else public.name, as_json)


def _check(public: Path | None, people: Path | None, out: Path | None, compare: bool) -> None:
    if compare != (people is not None):
        raise ConfigError("--compare needs --people FILE.jsonl, and --people is for --compare only")
    if compare and out is not None:
        raise ConfigError("--compare writes no basis: leave --out away")
    if public is not None and people is not None and public.resolve() == people.resolve():
        raise ConfigError("--public and --people are one file: a basis holds no text of people")


def _loaded(console: Console, name: str, layers: int) -> LanguageModel:
    from client.model import LanguageModel

    with console.status(f"{name}", spinner="dots") as status:
        path = base_model_path(name, builder=Builder(report=lambda step: status.update(f"{name}: {step}")))
        return LanguageModel.load(path, top_layers=layers)


def _sources(console: Console, model: LanguageModel, texts: Texts, with_samples: bool) -> dict[str, list[Encoded]]:
    """Return the texts of each source by its name: the public file where there is one, own samples if asked for."""
    from client.basis import own_samples

    sources = {}
    if with_samples:
        with _bar(console, "the base model writes texts") as advance:
            sources[OWN_SAMPLES] = own_samples(model, texts.samples, texts.tokens, texts.seed, progress=advance)
    if texts.public is not None:
        sources[texts.public.name] = _drawn(model, texts.public, texts)
    return sources


def _drawn(model: LanguageModel, path: Path, texts: Texts) -> list[Encoded]:
    """Return `samples` texts of a file, drawn by `seed`, cut to `tokens` tokens; every token but the first counts."""
    import numpy as np

    documents = read_documents(path)
    order = np.random.default_rng(texts.seed).permutation(len(documents))[: texts.samples]
    chosen = [documents[i] for i in order]
    encoded = [model.encode_text(d.text, [(0, len(d.text))], d.id, texts.tokens) for d in chosen]
    if not any(each.own_tokens for each in encoded):
        raise DataError(f"{path.name}: holds no text to make a basis from")
    return encoded


def _made(console: Console, model: LanguageModel, settings: BasisSettings, texts: Texts) -> Basis:
    from client.basis import whitened_basis

    [chosen] = _sources(console, model, texts, with_samples=texts.public is None).values()
    with _bar(console, "where activations and gradients lie") as advance:
        return whitened_basis(model, chosen, settings, advance)


def _compared(
    console: Console, model: LanguageModel, settings: BasisSettings, texts: Texts, people: Path, people_tokens: int
) -> list[dict[str, Any]]:
    """Return a row for each source and setting, best first."""
    from client.basis_compare import candidates, measured_text, one_step_score

    history, test = measured_text(model, read_documents(people), people_tokens, 2 * texts.tokens, texts.seed)
    sources = _sources(console, model, texts, with_samples=True)
    with _bar(console, "bases") as advance:
        made = list(candidates(model, sources, settings, advance))
    rows = []
    with _bar(console, "one step in each basis") as advance:
        for done, each in enumerate(made):
            score = one_step_score(model, each.basis, history, test)
            row = {"source": each.source, "centred": each.centred, "skip_first": each.skip_first}
            rows.append(row | {"gain": score.gain, "step": score.length, "dim": each.basis.layout.dim})
            advance(done + 1, len(made))
    return sorted(rows, key=lambda row: -row["gain"])


@contextmanager
def _bar(console: Console, label: str) -> Iterator[Advance]:
    """Show a bar at a terminal, else one line; yields the function to be called with (done, total)."""
    if not console.is_terminal:
        console.print(f"{label} …", highlight=False)
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print_basis(made: Basis, place: Path, source: str, as_json: bool) -> None:
    ranks = sorted({site.rank for site in made.layout.sites})
    facts: dict[str, Any] = {
        "path": str(place),
        "sha256": made.sha256,
        "source": source,
        "modules": len(made.layout.sites),
        "rank": ranks[0],
        "dim": made.layout.dim,
        "bytes": place.stat().st_size,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{place}: {facts['bytes'] / 1e6:.1f} MB, from {source}")
    typer.echo(f"{facts['modules']} modules, rank {ranks[0]}: {made.layout.dim:,} numbers to train")
    typer.echo(f"sha256 {made.sha256}")


def _print_comparison(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"rows": rows}))
        return
    table = Table("texts", "centred", "first position", "gain of one step", "best length", box=None)
    for row in rows:
        first = "-" if row["skip_first"] is None else "out" if row["skip_first"] else "in"
        centred = "-" if row["centred"] is None else "yes" if row["centred"] else "no"
        table.add_row(row["source"], centred, first, f"{row['gain']:.2%}", f"{row['step']:.3g}")
    console = Console()
    console.print(table)
    console.print("Fewer bits per held-out own token after one mean-gradient step.", highlight=False)
