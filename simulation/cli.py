"""`confide simulate` and `confide evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from privacy.errors import ConfigError

if TYPE_CHECKING:
    from simulation.config import RunConfig
    from simulation.evaluate_run import Scorecard
    from simulation.progress import Progress
    from simulation.report_schema import Report

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value on top of the configuration; repeatable.")]


def simulate(
    out: Annotated[Path, typer.Option("--out", help="The RUN folder; an unfinished run there goes on.")],
    config: Annotated[Path | None, typer.Argument(help="A TOML file; without one, the embedded defaults.")] = None,
    set_: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a finished or another run in --out.")] = False,
    replay_noise: Annotated[
        Path | None, typer.Option(help="A 32-byte noise key: for tests; stamps NOT PRIVATE.")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="key=a,b: a run for every value, below --out, and grid.csv; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Every run so often, each with a seed of its own.")] = 1,
    as_json: Json = False,
) -> None:
    """Run a federation of people on this machine: release, report and audit in the RUN folder."""
    from rich.console import Console

    from simulation.config import load_config
    from simulation.progress import Progress
    from simulation.quiet import quiet_libraries
    from simulation.workers import prepare_workers

    settings = load_config(config, set_ or [])
    if not settings.cluster:
        prepare_workers()  # they import while this process does
    from simulation.report import report_json
    from simulation.run import simulate as run
    from simulation.terminal import print_report

    quiet_libraries()
    if grid or seeds > 1:
        _grid(config, set_ or [], grid or [], seeds, out, overwrite, as_json)
        return
    report = run(settings, out, Progress(quiet=as_json), overwrite=overwrite, replay=replay_noise)
    if as_json:
        sys.stdout.write(report_json(report).decode())
    else:
        print_report(report, Console())
        typer.echo(f"\n{out / 'report.html'}   {out / 'audit.html'}   {out / 'release'}")


def _grid(
    config: Path | None, settings: list[str], grid: list[str], seeds: int, out: Path, overwrite: bool, as_json: bool
) -> None:
    import json

    from simulation.grid import TABLE, run_grid
    from simulation.progress import Progress
    from simulation.run import simulate as run

    progress = Progress(quiet=as_json)

    def one(point: RunConfig, folder: Path) -> Report:
        progress.note(f"{folder.relative_to(out)}")
        return run(point, folder, progress, overwrite=overwrite)

    lines = run_grid(config, settings, grid, seeds, out, one)
    if as_json:
        sys.stdout.write(json.dumps({"runs": lines}, indent=1) + "\n")
    else:
        typer.echo(f"{len(lines)} runs   {out / TABLE}")


def evaluate(
    run: Annotated[
        list[Path] | None, typer.Argument(help="RUN folders with a finished release: one, or one for each task.")
    ] = None,
    people: Annotated[
        list[str] | None,
        typer.Option(help="JSONL file of people never seen before, or `chitchat`; repeatable. Default: the run's own."),
    ] = None,
    arms: Annotated[str | None, typer.Option(help="Comma-separated; default: all but own_record_dp.")] = None,
    own_people: Annotated[
        int | None, typer.Option(min=0, help="At most so many get the arms of their own. Default: all of --people.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the scorecard of all tasks: the page, JSON, Markdown.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="With --out: so many times, own adapters trained anew.")] = 1,
    criteria: Annotated[
        bool, typer.Option("--criteria", help="With --out: also facts, style, tone, content, register, newer facts.")
    ] = False,
    with_: Annotated[
        list[Path] | None, typer.Option("--with", help="With --out: a finished scorecard to put beside it; repeatable.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="With --out: an application, recipes/*.toml.")] = None,
    card: Annotated[
        list[str] | None,
        typer.Option(help="With --out: key=value of what it may cost (docs/scorecard.md); repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score held-out people against the release of a run; nothing is tuned on them, nothing is kept."""
    import json

    from simulation.evaluate_run import DEFAULT_ARMS, evaluate_run
    from simulation.progress import Progress
    from simulation.quiet import quiet_libraries

    quiet_libraries()
    named = [arm.strip() for arm in arms.split(",")] if arms is not None else None
    progress = Progress(quiet=as_json)
    if out is not None:
        sources, settings, others = people or [], card or [], with_ or []
        _scorecard(
            out, run or [], sources, others, recipe, named, own_people, seeds, criteria, settings, progress, as_json
        )
        return
    if not run:
        raise ConfigError("name the folder of a run")
    if len(run) > 1 or len(people or []) > 1:
        raise ConfigError("several runs or sources of people make a scorecard: say where with --out FOLDER")
    found = evaluate_run(
        run[0], people[0] if people else None, named or list(DEFAULT_ARMS), progress, own_people=own_people
    )
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, sort_keys=True) + "\n")
    else:
        _print_scorecard(found)


def _scorecard(
    out: Path,
    runs: list[Path],
    sources: list[str],
    others: list[Path],
    recipe: Path | None,
    arms: list[str] | None,
    people: int | None,
    seeds: int,
    criteria: bool,
    settings: list[str],
    progress: Progress,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from simulation.report import report_json
    from simulation.scorecard.evaluate import questions, scorecard
    from simulation.scorecard.merge import merged, read_card
    from simulation.scorecard.output import card_markdown, write_card
    from simulation.scorecard.recipe import Recipe
    from simulation.scorecard.tasks import task_named
    from simulation.scorecard.without_model import KINDS, card_without_model

    made = Recipe.read(recipe) if recipe is not None else Recipe("Scorecard", "")
    chosen = made.settings(settings)
    finished = [read_card(folder) for folder in others]
    if others and not runs and not sources:
        card = merged(finished)
    elif task_named(chosen.task).kind in KINDS:
        card = card_without_model(sources, chosen, progress, people)
    else:
        card = scorecard(
            questions(runs, sources),
            arms or made.arms,
            chosen,
            progress,
            people=people,
            seeds=max(seeds, made.seeds),
            criteria=criteria or made.criteria,
        )
    if others and (runs or sources):
        card = merged([card, *finished])
    write_card(out, card)
    if as_json:
        sys.stdout.write(report_json(dict(card)).decode())
    else:
        Console().print(Markdown(card_markdown(card)))
        typer.echo(f"\n{out / 'report.html'}   {out / 'report.json'}")


def _print_scorecard(card: Scorecard) -> None:
    from rich.console import Console
    from rich.text import Text

    from simulation.terminal import arms_table, people_table

    console = Console()
    for reason in card["not_private"]:
        console.print(Text(f"NOT PRIVATE: {reason}", style="bold red"))
    seen = card["people_in_training"]
    whose = f"{seen} of them took part in the run" if seen else "none of them took part in the run"
    console.print(Text(f"{card['people_scored']} people of {card['data']}, {whose}"))
    console.print(arms_table(card["arms"], not_private=bool(card["not_private"])))
    console.print(people_table(card["people"]))
    for warning in card["warnings"]:
        console.print(Text(warning))
