"""`confide plan`: is a federation of this size worth it, and how large may its adapter be."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from privacy.errors import ConfigError
from privacy.plan import CLEAR_RATIO, WORTH_IT, Campaign, Plan, usable_ratio
from privacy.plan import plan as planned


def plan(
    people: Annotated[int, typer.Option(help="People in the federation.")],
    epsilon: Annotated[float | None, typer.Option(help="Epsilon per person that the whole campaign may cost.")] = None,
    noise_multiplier: Annotated[str | None, typer.Option(help="Or the noise multiplier of one round.")] = None,
    delta: Annotated[float | None, typer.Option(help="Default: the smaller of 1e-6 and 1/(10 people).")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the campaign.")] = 2,
    participations: Annotated[int | None, typer.Option(help="Rounds that each person joins. Default: all.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of invited devices that do not answer.")] = 0.1,
    personas: Annotated[int, typer.Option(help="Persona slots.")] = 1,
    dim: Annotated[int, typer.Option(help="Numbers of one shared core.")] = 13440,
    alpha: Annotated[float, typer.Option(help="Norm of the mean of unit updates: 0.38 at first, 0.15 later.")] = 0.38,
    transport: Annotated[str, typer.Option(help="How answers are added: masked, or ideal (in the clear).")] = "ideal",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what a campaign would cost and be worth, before anyone trains."""
    found = planned(
        Campaign(
            people=people,
            epsilon=epsilon,
            noise_multiplier=None if noise_multiplier is None else _fraction(noise_multiplier),
            delta=delta,
            rounds=rounds,
            participations=participations,
            dropout=dropout,
            personas=personas,
            dim=dim,
            alpha=alpha,
            transport=transport,
        )
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show(found, Console())


def show(found: Plan, console: Console) -> None:
    """Print the plan as a small table, the verdict last."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows(found):
        table.add_row(name, value)
    console.print(table)
    console.print(f"\n[bold {'green' if found.verdict == WORTH_IT else 'yellow'}]{found.verdict}[/]")
    for each in found.suggestions:
        console.print(f"  what would do: {each}")


def rows(found: Plan) -> list[tuple[str, str]]:
    """Return the lines of the table: what, and its figure with its unit."""
    asked, cohort = found.campaign, found.cohort
    at = f"at delta {asked.delta_used:g}"
    return [
        (
            "noise multiplier",
            f"{float(found.noise_multiplier):.3f} a round, {asked.times} of {asked.rounds} rounds each",
        ),
        ("epsilon", f"{found.epsilon:.2f} per user {at} (enforced); {found.epsilon_gdp:.2f} exact Gaussian"),
        (
            "Sybil floor",
            f"{found.sybil_floor_epsilon:.1f} per user {at}, if all other devices are the server's;"
            " no protocol betters it",
        ),
        ("against the server", _server(found, at)),
        (
            "cohort",
            f"{cohort.invited} invited, at least {cohort.min_survivors} answers, noise for {cohort.honest} honest;"
            f" {found.survivors} answers expected",
        ),
        (
            "noise to signal",
            f"{found.noise_ratio:.2f} of a mean step (usable to {usable_ratio(asked):.1f}), {asked.dim:,} numbers",
        ),
        ("noise to clip", f"{found.noise_to_clip:.2f}"),
        (
            "gain kept",
            f"about {found.gain_kept:.0%} of that without noise, if alpha is {asked.alpha:g}: a fit to two kinds of"
            " people, right there within 5 points",
        ),
        (f"largest core at {CLEAR_RATIO}", f"{found.largest_dim:,} numbers"),
        ("gain by rank", _by_rank(found)),
        ("bytes per device", f"{found.bytes_up:,} up, {found.bytes_down:,} down, and the basis once"),
        ("minutes per device", f"{found.minutes:.1f} at {asked.tokens_per_second:.0f} tokens a second"),
    ]


def _by_rank(found: Plan) -> str:
    told = ", ".join(f"{each.rank}: {each.worth:.2f} ({each.bytes_up / 1e6:.1f} MB)" for each in found.by_rank)
    best = max(found.by_rank, key=lambda each: each.worth)
    return f"{told} of what rank 8 gains without noise, embedded model: adapter.rank={best.rank}"


def _server(found: Plan, at: str) -> str:
    figure = f"{found.server_epsilon:.2f} per user {at}"
    if found.campaign.transport != "masked":
        return f"{figure}: answers are added in the clear, it sees each one by itself"
    most = found.cohort.max_colluding
    return f"{figure}, with an honest directory of keys and at most {most} of a cohort's devices on its side"


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"not a number: {text[:40]!r}") from error
