"""`confide device agent | dial | consent | attributes`: what a person decides, and the program that keeps to it."""

from __future__ import annotations

import json
import logging
import time
import warnings
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from client.device_shell import AsJson, open_vault, say
from client.spoken import spoken
from client.vault import Vault
from privacy.errors import ConfigError

ALL_LAYERS = 10_000  # a release's cores may sit on any layer
Scrubbing = Annotated[str, typer.Option(help="identifiers, standard or strict: how much goes before text may leave.")]


def agent(
    enrol: Annotated[bool, typer.Option("--enrol", help="Make the keys, print the public one, end.")] = False,
) -> None:
    """Stay in memory and answer: you, and the federation that you joined, as far as the dial goes."""
    from client.agent_home import AgentHome
    from client.resident import enrolled, run

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    warnings.simplefilter("ignore", FutureWarning)  # of packages about each other
    with open_vault() as vault:
        home = AgentHome(vault.folder, vault)
        with home.alone():
            if enrol:
                typer.echo(json.dumps(enrolled(home)))
            else:
                run(home)


def dial(
    stop: Annotated[str, typer.Argument(help="alone, metrics, personas or all; nothing: show where it stands.")] = "",
    scrubbing: Scrubbing = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure what the adopted release is worth to you.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How far this device answers a federation, and how much is scrubbed before; it stands at `alone` until turned."""
    from client.budget import given, policy_of
    from client.dial import turn, turns, where
    from client.gains import gains
    from client.scrub_strength import set_strength, strength_of

    with open_vault() as vault:
        if stop:
            turn(vault, stop)
        if scrubbing:
            set_strength(vault, scrubbing)
        if measure:
            measure_release(vault)
        at, changes, strength, gained = where(vault), turns(vault), strength_of(vault), gains(vault)
        policy, spent = policy_of(vault.folder), given(vault.folder)
    facts = dial_facts(at, strength, gained, policy, spent) | {"turns": len(changes)}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    print_dial(facts)


def measure_release(vault: Vault) -> None:
    """Score the release that was adopted last on the owner's held-back text; the gains are kept in the vault."""
    from client.assistant import MODEL_SETTING
    from client.base_model import DEFAULT_MODEL, base_model_path
    from client.gains import measure
    from client.model import LanguageModel
    from client.releases import LATEST, kept

    release = kept(vault, vault.setting(LATEST))
    if release is None:
        raise ConfigError("no release to measure: `confide device adopt RELEASE`")
    with Console(stderr=True).status("measuring", spinner="dots") as status:
        path = base_model_path(vault.setting(MODEL_SETTING, DEFAULT_MODEL))
        measure(vault, LanguageModel.load(path, ALL_LAYERS), release, lambda name: status.update(f"measuring {name}"))


def dial_facts(at: str, strength: str, gained: dict[str, float], policy: Any, spent: list[Any]) -> dict[str, Any]:
    """Return what the dial shows: each stop with its purposes, the gain measured, and what a year there may cost."""
    from client.budget import epsilon_of, year_cap
    from client.dial import DELTA, STOPS
    from client.scrub_strength import LEFT_ALONE, REMOVES

    year = max((each.year_rho for each in spent), default=None)
    stops = [
        {
            "stop": name,
            "asks": [p for p in purposes if policy is None or p in policy.purposes],
            "gain": gained.get(name),
            "epsilon_a_year": year_cap(policy, name),
        }
        for name, purposes in STOPS.items()
    ]
    return {
        "dial": at,
        "stops": stops,
        "delta": DELTA,
        "federation": policy.federation if policy is not None else None,
        "epsilon_last_365_days": epsilon_of(year) if year else 0.0,
        "answers": sum(each.answers for each in spent),
        "scrubbing": strength,
        "strengths": {name: REMOVES[name] for name in LEFT_ALONE},
        "gain_alone": gained.get("alone"),
    }


def print_dial(facts: dict[str, Any]) -> None:
    """Print the two dials as tables."""
    table = Table(box=SIMPLE)
    for heading in ("", "stop", "what may be asked", "gain on your text", "epsilon a year, at most"):
        table.add_column(heading)
    for row in facts["stops"]:
        gain = "not measured" if row["gain"] is None else f"{row['gain']:+.1%}"
        here = ">" if row["stop"] == facts["dial"] else ""
        table.add_row(here, row["stop"], ", ".join(row["asks"]) or "nothing", gain, f"{row['epsilon_a_year']:.2f}")
    strengths = Table(box=SIMPLE)
    for heading in ("", "scrubbing", "what goes before anything is learned for others"):
        strengths.add_column(heading)
    for name, removes in facts["strengths"].items():
        strengths.add_row(">" if name == facts["scrubbing"] else "", name, removes)
    console = Console()
    console.print(table)
    if facts["federation"] is None:
        console.print("No federation is joined: every stop costs epsilon 0.", highlight=False)
    else:
        console.print(
            f"Within 365 days {facts['answers']} answers cost epsilon {facts['epsilon_last_365_days']:.2f}"
            f" (delta {facts['delta']:g}). A stop bounds what is asked; the allowance is one for all of it.",
            highlight=False,
        )
    console.print(strengths)
    console.print("Gains are against the model as it is, on text of yours that had no say.", highlight=False)


def consent(
    source: Annotated[int, typer.Argument(help="A source, by its number in `confide device status`.")],
    purpose: Annotated[str, typer.Argument(help="own: your own model. shared: what leaves in private sums.")],
    state: Annotated[str, typer.Argument(help="on or off.")],
    as_json: AsJson = False,
) -> None:
    """What a source may be used for. A new one serves your own model and nobody else."""
    from client.consent import consent as set_consent

    if state not in ("on", "off"):
        raise ConfigError("say on or off")
    with open_vault() as vault:
        changed = set_consent(vault, source, purpose, state == "on")
    words = spoken("Source {source}, {purpose}: {state}, now.", source=source, purpose=purpose, state=state)
    if not changed:
        words = spoken("Source {source}, {purpose}: {state}, as before.", source=source, purpose=purpose, state=state)
    say({"source": source, "purpose": purpose, "granted": state == "on", "changed": changed}, words, as_json)


def attributes(
    name: Annotated[str, typer.Argument(help="age, born, place, language, …; nothing: show all.")] = "",
    value: Annotated[str, typer.Argument(help="What it is; nothing: take it out.")] = "",
    as_json: AsJson = False,
) -> None:
    """What your own model may know of you. A prompt sees the general form alone: an age band, a region."""
    from client.attributes import generalised

    with open_vault() as vault:
        if name:
            key = name.strip().casefold()
            if not key or len(key) > 40 or len(value) > 200:
                raise ConfigError("an attribute has a name of at most 40 characters and a value of at most 200")
            with vault.change() as rows:
                rows.execute("DELETE FROM attribute WHERE name = ?", (key,))
                if value:
                    rows.execute("INSERT INTO attribute VALUES (?, ?, ?)", (key, value, time.time()))
        kept = dict(vault.select("SELECT name, value FROM attribute ORDER BY name"))
    general = generalised(kept, datetime.now(UTC).date())
    lines = [f"{key}: {text}" for key, text in kept.items()]
    shown = ", ".join(f"{k} {v}" for k, v in general.items())
    lines.append(spoken("A prompt sees: {shown}.", shown=shown) if shown else spoken("A prompt sees nothing of it."))
    say({"attributes": kept, "general": general}, "\n".join(lines), as_json)
