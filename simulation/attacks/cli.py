"""`confide audit attacks`: 0 = no attack is shown to do more than is allowed, 1 = one is, 2 = they could not be run."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from privacy.errors import ConfigError
from privacy.files import write_atomic
from simulation.attacks import attributes, inversion, matching, persona, release
from simulation.attacks import facts as private_facts
from simulation.attacks.outcome import Attack
from simulation.attacks.subject import RANDOM_WEIGHTS, Subject, subject_of
from simulation.mechanism.cli import Json, Save, Seed, quiet_devices
from simulation.mechanism.code import code_sha256
from simulation.mechanism.people import root_of

ABOUT: Final = (
    "Invented people and secrets on {model}: how well an attack works on another model and on people’s own text is "
    "another figure; what differential privacy allows is the same."
)
RANDOM: Final = "a language model of random weights"


class Family(StrEnum):
    """Attacks that share a federation."""

    RELEASE = "release"
    INVERSION = "inversion"
    PERSONA = "persona"
    TRAIT = "trait"
    FACTS = "facts"


@dataclass(frozen=True)
class Files:
    """Files of people that some attacks need: texts and true profiles, the trait to guess, the field of facts."""

    people: Path | None = None
    profiles: Path | None = None
    trait: str = "age"
    facts: str = "privacy_info"


def attacks(
    only: Annotated[list[Family] | None, typer.Option(help="Only these. Default: all that need no files.")] = None,
    people: Annotated[
        Path | None, typer.Option(help="People for the trait attacks, a line each text: user, text.")
    ] = None,
    facts: Annotated[str, typer.Option(help="The field of the profiles that holds private facts.")] = "privacy_info",
    profiles: Annotated[Path | None, typer.Option(help="Their true traits, a line each person: user, profile.")] = None,
    trait: Annotated[str, typer.Option(help="The trait of the profiles that is guessed.")] = "age",
    model: Annotated[
        str,
        typer.Option(help="An embedded model, with a default federation's basis; minutes. Default: random weights."),
    ] = "",
    seed: Seed = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Attack a small federation with protection off and on; each success beside what (ε, δ) allows."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of packages about each other; this process is the command's own
    found: list[Attack] = []
    subject = subject_of(model)
    with tempfile.TemporaryDirectory(prefix="confide-attacks-") as name, quiet_devices():
        for family in only or [each for each in Family if each not in (Family.TRAIT, Family.FACTS)]:
            made = run(family, Path(name) / family, seed, Files(people, profiles, trait, facts), subject)
            found += made
            if not as_json:
                for attack in made:
                    say(attack)
    if not found:
        raise ConfigError("no attack was chosen")
    holds = all(attack.holds for attack in found)
    more = {"about": ABOUT.format(model=model or RANDOM), "code_sha256": code_sha256(), "holds": holds}
    text = json.dumps({"attacks": [attack.as_dict() for attack in found], **more}, indent=2)
    if save is not None:
        write_atomic(save, text.encode() + b"\n")
    if as_json:
        typer.echo(text)
    if not holds:
        typer.echo("confide: an attack does more than is allowed", err=True)
        raise typer.Exit(1)


def run(
    family: Family, folder: Path, seed: int | None, files: Files = Files(), subject: Subject = RANDOM_WEIGHTS
) -> list[Attack]:
    """Return the attacks of a family, at full size, in `folder`; ConfigError where a file that it needs is missing."""
    root, rng = root_of(seed, family, os.urandom), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[Family, Callable[[], list[Attack]]] = {
        Family.RELEASE: lambda: release.attack_release(folder, root, rng, subject.release, subject.make),
        Family.INVERSION: lambda: [
            inversion.attack_update(folder, root, rng, subject.inversion, subject.make),
            *(
                [matching.attack_by_matching(folder / "matching", root, rng, subject.matching)]
                if subject.matching
                else []
            ),
        ],
        Family.PERSONA: lambda: [persona.attack_persona(folder, root, rng, persona.Size())],
        Family.TRAIT: lambda: _traits(folder, root, files, subject),
        Family.FACTS: lambda: _facts(folder, root, rng, files, subject),
    }
    return made[family]()


def _traits(folder: Path, root: bytes, files: Files, subject: Subject) -> list[Attack]:
    if files.people is None or files.profiles is None:
        raise ConfigError("the attacks on traits need --people and --profiles")
    given = attributes.read_traits(files.people, files.profiles, files.trait)
    return attributes.attack_traits(folder, root, given, attributes.scrubbed, subject.trait, subject.make)


def _facts(folder: Path, root: bytes, rng: np.random.Generator, files: Files, subject: Subject) -> list[Attack]:
    if files.profiles is None:
        raise ConfigError("the attack on facts needs --profiles")
    given = private_facts.read_facts(files.profiles, files.facts)
    return [private_facts.attack_facts(folder, root, rng, given, subject.release, subject.make)]


def say(attack: Attack) -> None:
    """Print one attack."""
    mark = "✓" if attack.holds else "✗"
    teeth = "" if attack.has_teeth else "  NO TEETH: it does not work unprotected either, and shows nothing"
    typer.echo(f"{mark} {attack.title}{teeth}")
    for name, each in (("unprotected", attack.unprotected), ("protected", attack.protected)):
        typer.echo(f"    {name:12} {each.value:.3f} ({each.low:.3f} to {each.high:.3f}): {each.said}")
    typer.echo(f"    {attack.allowed_said}; chance {attack.chance:.3f}")
