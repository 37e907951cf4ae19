"""`confide simulate` and `confide evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, and nothing else there.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="key=value on top of the configuration; repeatable.")]


def simulate(
    out: Annotated[Path, typer.Option("--out", help="The RUN folder; an unfinished run there goes on.")],
    config: Annotated[Path | None, typer.Argument(help="A TOML file; without one, the embedded defaults.")] = None,
    set_: Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run in --out first.")] = False,
    replay_noise: Annotated[
        Path | None, typer.Option(help="A 32-byte noise key: for tests; stamps NOT PRIVATE.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a federation of people on this machine: release, report and audit in the RUN folder."""
    from rich.console import Console

    from simulation.config import load_config
    from simulation.progress import Progress
    from simulation.quiet import quiet_libraries
    from simulation.report import report_json
    from simulation.run import simulate as run
    from simulation.terminal import print_report

    quiet_libraries()
    report = run(
        load_config(config, set_ or []), out, Progress(quiet=as_json), overwrite=overwrite, replay=replay_noise
    )
    if as_json:
        sys.stdout.write(report_json(report).decode())
    else:
        print_report(report, Console())
        typer.echo(f"\n{out / 'report.html'}   {out / 'audit.html'}   {out / 'release'}")
