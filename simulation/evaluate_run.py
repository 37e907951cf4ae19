"""`confide evaluate`: people against a signed release, most of all people whom the federation has never seen."""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from client.base_model import base_model_path
from client.documents import Person, own_words
from privacy.canonical import Json
from privacy.chain import Entry
from privacy.errors import ConfigError, DataError, ModelError
from privacy.ledger import public_key_of, read_ledger
from privacy.release import STAMP, Release, verify_release
from simulation.basis_cache import model_sha256
from simulation.config import RunConfig, config_of
from simulation.crowd import Crowd
from simulation.evaluate import Evaluation, score_everybody, score_mixtures, score_own, score_personas
from simulation.host import HostPool, Hosts, HostSettings
from simulation.metrics import comparisons, person_rows, summarise
from simulation.population import load_people
from simulation.progress import Progress
from simulation.report_schema import Arm, Comparison, PersonRow
from simulation.run_folder import MANIFEST
from simulation.setting import SCORED_OF_A_CROWD, default_workers, drawn, split_people

SHARED_ARMS = ("base", "global", "persona", "mixture")
OWN_ARMS = ("own", "own_record_dp", "retrieval", "all", "wrong_person")
DEFAULT_ARMS = tuple(arm for arm in (*SHARED_ARMS, *OWN_ARMS) if arm != "own_record_dp")


class Scorecard(TypedDict):
    """What `confide evaluate --json` prints. `people_in_training` of the scored took part, by their pseudonyms.

    `privacy` is the signed claim of the release; it speaks of those who took part, not of those scored here. The own
    arms train on the scored people's own history, here and now, and leave nothing behind.
    """

    release: str
    data: str
    people_scored: int
    people_in_training: int
    not_private: list[str]
    arms: dict[str, Arm]
    comparisons: list[Comparison]
    people: list[PersonRow]
    assignment: dict[str, str]
    privacy: dict[str, Json]
    seconds: float
    warnings: list[str]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a verified release, the run's configuration and model, and who took part."""

    config: RunConfig
    release: Release
    model_path: Path
    policy_file: bytes
    root_key: bytes
    devices: frozenset[str]


def evaluate_run(
    run: Path,
    people: str | None,
    arms: Sequence[str],
    progress: Progress,
    *,
    own_people: int | None = None,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts] = HostPool,
) -> Scorecard:
    """Return the scores of `people` (a source; None = the run's own) under the release of `run`; nothing is tuned.

    `own_people` limits how many get the arms of their own; None = everybody, of the run's own people as many as in its
    report. Raises ConfigError for a folder that is no run or an arm that does not exist, ReleaseInvalid for a release
    that is not whole and signed, ModelError for another base model.
    """
    started = time.monotonic()
    if unknown := sorted(set(arms) - {*SHARED_ARMS, *OWN_ARMS}):
        raise ConfigError(f"unknown arm {unknown[0]}; known: {', '.join((*SHARED_ARMS, *OWN_ARMS))}")
    subject = open_run(run)
    chosen, warnings, data = people_of(subject, people)
    if own_people is None and people is None:
        own_people = subject.config.own.people
    users = [person.user for person in chosen]
    with (
        tempfile.TemporaryDirectory(prefix="confide-") as place,
        open_hosts(hosts_of(subject, chosen, Path(place))) as h,
    ):
        evaluation, assignment = _score(subject, h, users, arms, own_people, progress)
    kept = {arm: scores for arm, scores in evaluation.arms.items() if arm in arms}
    words = {person.user: own_words(person.history) for person in chosen}
    rng = np.random.default_rng([subject.config.seed, 7])
    return Scorecard(
        release=subject.release.sha256,
        data=data,
        people_scored=len(users),
        people_in_training=len(subject.devices & set(users)),
        not_private=[] if subject.release.facts.private else [f"the release is stamped {STAMP}"],
        arms={arm: row for arm, row in summarise(evaluation.arms, rng).items() if arm in arms},
        comparisons=[c for c in comparisons(evaluation.arms, rng) if {c["arm"], c["against"]} <= set(arms)],
        people=person_rows(kept, words),
        assignment=assignment,
        privacy=dict(subject.release.facts.privacy),
        seconds=time.monotonic() - started,
        warnings=warnings,
    )


def open_run(run: Path) -> Subject:
    """Return the verified release of the folder `run` and what belongs to it."""
    manifest = _manifest(run)
    ledger = run / "ledger" / "federation.jsonl"
    release = verify_release(run / "release", public_key_of(ledger))
    devices = devices_in(read_ledger(ledger, every_signature=False).entries)
    config = config_of(manifest["config"])
    model_path = base_model_path(config.model)
    if model_sha256(model_path) != release.facts.base_model_sha256:
        raise ModelError(f"{config.model} is not the base model that this release was made for: other weights")
    return Subject(
        config=config,
        release=release,
        model_path=model_path,
        policy_file=(run / "ledger" / "policy.json").read_bytes(),
        root_key=public_key_of(ledger).public_bytes_raw(),
        devices=devices,
    )


def devices_in(entries: Sequence[Entry]) -> frozenset[str]:
    """Return the devices that a federation's ledger names: those it began with, and those that came later."""
    named = [entry.body.get("devices") for entry in entries if entry.kind in ("GENESIS", "POLICY")]
    return frozenset(name for each in named if isinstance(each, dict) for name in each)


def _manifest(run: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{run} is no run: cannot read {MANIFEST} ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{run} is no run: {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise ConfigError(f"{run} is no run: {MANIFEST} names no configuration")
    return manifest


def people_of(subject: Subject, source: str | None) -> tuple[list[Person], list[str], str]:
    """Return who is scored, warnings, and the name of the source; people without a test document are left out."""
    config = subject.config
    population = load_people(source or config.people, None if source else config.max_people)
    people = population.people
    if source is None:
        trained, held_out = split_people(population, config)
        people = held_out or trained
    if isinstance(people, Crowd):
        people = people[:SCORED_OF_A_CROWD]
    scored = [person for person in people if person.test]
    if not scored:
        raise DataError(f"{population.source}: nobody has a test document to be scored on")
    return scored, list(population.warnings), Path(population.source).name


def hosts_of(subject: Subject, people: Sequence[Person], place: Path) -> list[HostSettings]:
    """Return the settings of the hosts of `people`, none of whom is a device; `place` is a folder for the basis."""
    basis_file = place / "basis.safetensors"
    subject.release.basis.save(basis_file)
    workers = min(subject.config.workers or default_workers(), len(people))
    return [
        HostSettings(
            config=subject.config,
            model_path=str(subject.model_path),
            basis_file=str(basis_file),
            people=tuple(people[w::workers]),
            policy_file=subject.policy_file,
            root_key=subject.root_key,
            device_root=b"",  # nobody here is a device of the federation: no query, no ledger, no charge
            noise_root=secrets.token_bytes(32),
            run_folder=str(place),
        )
        for w in range(workers)
    ]


def _score(
    subject: Subject,
    hosts: Hosts,
    users: Sequence[str],
    arms: Sequence[str],
    own_people: int | None,
    progress: Progress,
) -> tuple[Evaluation, dict[str, str]]:
    """Return all scores (base and global always, for the gains of the others) and who chose which persona."""
    release, layout, evaluation = subject.release, subject.release.basis.layout, Evaluation()
    flat = {name: layout.flatten(cores) for name, cores in release.adapters.items()}
    score_everybody(hosts, users, {"base": np.zeros(layout.dim), "global": flat["global"]}, evaluation, progress)
    names = sorted(name for name in flat if name.startswith("persona-"))
    assignment: dict[str, str] = {}
    offsets = [flat[name] for name in names]
    if names and "persona" in arms:
        numbers = score_personas(hosts, users, flat["global"], offsets, evaluation)
        assignment = {user: names[number] for user, number in numbers.items()}
    if names and "mixture" in arms:
        score_mixtures(hosts, users, flat["global"], offsets, evaluation)
    own = drawn(users, len(users) if own_people is None else own_people, [subject.config.seed, 5])
    if set(arms) & set(OWN_ARMS) and own:
        score_own(hosts, own, flat["global"], evaluation, progress, record="own_record_dp" in arms)
    return evaluation, assignment
