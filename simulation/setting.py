"""What a run stands on, made ready before its first query: people, model, basis, keys, policy, ledger, hosts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.base_model import base_model_path
from client.documents import Person
from client.figures import PublicTables
from privacy.adapter import Basis
from privacy.directory import Directory, signed_directory
from privacy.files import write_atomic
from privacy.ledger import Ledger
from privacy.plan import Campaign as Planned
from privacy.plan import plan
from privacy.policy import Policy, signed_policy
from simulation.basis_cache import cached_basis
from simulation.config import RunConfig
from simulation.engine import least_cohort, policy_of, require_cohort
from simulation.host import HostSettings
from simulation.population import Population, as_organisations, load_people
from simulation.progress import Progress
from simulation.public_tables import tables_of
from simulation.record_level import check_by_record
from simulation.run_folder import RunFolder, RunSecrets


@dataclass(frozen=True)
class Setting:
    """Everything that stays the same from the first query of a run to its report."""

    config: RunConfig
    folder: RunFolder
    progress: Progress
    population: Population
    trained: tuple[Person, ...]
    held_out: tuple[Person, ...]
    model_path: Path
    basis: Basis
    secrets: RunSecrets
    policy: Policy
    replayed: bool
    tables: PublicTables | None = None

    @property
    def directory(self) -> Directory:
        """Return who takes part, with their keys."""
        keys = {user: key.public_key() for user, key in self.secrets.devices.items()}
        return Directory.of_keys(self.config.federation, keys)

    @property
    def users(self) -> list[str]:
        """Return the ids of those who take part."""
        return [person.user for person in self.trained]

    @property
    def everyone(self) -> list[str]:
        """Return the ids of all people, those held out last."""
        return self.users + [person.user for person in self.held_out]

    @property
    def scored(self) -> list[str]:
        """Return whom the evaluation scores: those held out, or everybody where nobody is."""
        return [person.user for person in self.held_out] or self.users

    @property
    def own_people(self) -> list[str]:
        """Return who gets own adapters and a row in the table of persons: drawn by `seed`, before anything is run."""
        return drawn(self.scored, self.config.own.people, [self.config.seed, 5])

    @property
    def cohort(self) -> int:
        """Return how many devices a round invites."""
        return self.config.cohort or len(self.trained)


def prepare(config: RunConfig, out: Path, progress: Progress, overwrite: bool, replay: Path | None) -> Setting:
    """Return the setting of a new run in `out`, or of the one there that was cut off. Raises ConfideError."""
    check_by_record(config)
    folder = RunFolder(out)
    with progress.phase("people"):
        population = as_organisations(load_people(config.people, config.max_people), config.organisations)
        trained, held_out = split_people(population, config)
        _require_enough(config, len(trained), config.cohort or len(trained))
    folder.begin(config, overwrite, people_sha256=population.sha256, replayed=replay is not None)
    with progress.phase("model and basis"):
        model_path = base_model_path(config.model)
        basis = _basis(folder, config, model_path, progress)
    secrets = folder.secrets([person.user for person in trained], replay)
    tables = tables_of(config)
    policy = _write_policy(folder, config, basis, config.cohort or len(trained), secrets, replay is not None, tables)
    return Setting(
        config=config,
        folder=folder,
        progress=progress,
        population=population,
        trained=trained,
        held_out=held_out,
        model_path=model_path,
        basis=basis,
        secrets=secrets,
        policy=policy,
        replayed=replay is not None,
        tables=tables,
    )


def split_people(population: Population, config: RunConfig) -> tuple[tuple[Person, ...], tuple[Person, ...]]:
    """Return who takes part and who is held out (scored, never trained), chosen by `seed`."""
    people = population.people
    if not config.evaluation.held_out:
        return people, ()
    order = np.random.default_rng([config.seed, 4]).permutation(len(people))
    out = set(order[: config.evaluation.held_out].tolist())
    return tuple(p for i, p in enumerate(people) if i not in out), tuple(p for i, p in enumerate(people) if i in out)


def drawn(users: Sequence[str], number: int, seed: Sequence[int]) -> list[str]:
    """Return at most `number` of `users`, sorted, drawn by `seed` whatever the order they came in."""
    order = np.random.default_rng(seed).permutation(sorted(users))
    return sorted(order[:number].tolist())


def federation_ledger(setting: Setting) -> Ledger:
    """Return the federation's ledger, open for writing, with the devices' keys and the policy in it."""
    keys = {user: key.public_key().public_bytes_raw().hex() for user, key in setting.secrets.devices.items()}
    genesis = {"federation": setting.config.federation, "owner": "federation", "devices": keys}
    ledger = Ledger(setting.folder.ledgers / "federation.jsonl", setting.secrets.federation, genesis)
    if not any(entry.kind == "POLICY" for entry in ledger.entries()):
        ledger.append("POLICY", {"policy_sha256": setting.policy.sha256})
    write_atomic(setting.folder.directory_file, signed_directory(setting.directory, setting.secrets.federation))
    return ledger


def host_settings(setting: Setting) -> list[HostSettings]:
    """Return the settings of W hosts; host w serves the people whose index is w modulo W.

    The people with a device have the first indices: person j is at place j // W of host j modulo W, which is how a
    relay finds them. Those who will get own adapters come first, so that each host has its share of that work too.
    """
    workers = setting.config.workers or default_workers()
    own = set(setting.own_people)
    trained, held_out = (sorted(p, key=lambda p: p.user not in own) for p in (setting.trained, setting.held_out))
    people = [[*trained[w::workers], *held_out[w::workers]] for w in range(workers)]
    return [_host(setting, number, some) for number, some in enumerate(people) if some]


def default_workers() -> int:
    """Return one worker where there is a GPU, else one for each core that this process may use."""
    import torch

    return 1 if torch.cuda.is_available() else max(1, len(os.sched_getaffinity(0)))


def _host(setting: Setting, number: int, people: Sequence[Person]) -> HostSettings:
    folder, keys = setting.folder, setting.secrets.devices
    return HostSettings(
        config=setting.config,
        model_path=str(setting.model_path),
        basis_file=str(folder.basis_file),
        people=tuple(people),
        policy_file=folder.policy_file.read_bytes(),
        directory_file=signed_directory(setting.directory, setting.secrets.federation),
        root_key=setting.secrets.federation.public_key().public_bytes_raw(),
        device_keys={p.user: keys[p.user].private_bytes_raw() for p in people if p.user in keys},
        noise_root=setting.secrets.noise_root,
        run_folder=str(folder.path),
        number=number,
    )


def _require_enough(config: RunConfig, people: int, cohort: int) -> None:
    needed = least_cohort(config) if config.privacy.transport != "off" else 1
    require_cohort(min(people, cohort), needed, lambda: _suggestions(config, needed))
    require_cohort(people, cohort, lambda: (f"set cohort to {people} or less",))


def _suggestions(config: RunConfig, needed: int) -> Sequence[str]:
    """Return what would do: people enough for a query, and then what keeps noise from drowning what they learn."""
    noise, dropout = config.noise_multiplier(), config.dropout
    at_least = Planned(people=needed, noise_multiplier=noise, rounds=config.rounds, dropout=dropout)
    against_noise = ", or ".join(plan(at_least).suggestions)
    return [f"{needed} people at least", *([f"against the noise, {against_noise}"] if against_noise else [])]


def _basis(folder: RunFolder, config: RunConfig, model_path: Path, progress: Progress) -> Basis:
    """Return the basis that the run began with: eigenvectors made again may differ in their last bits."""
    if not folder.basis_file.exists():
        cached_basis(model_path, config.adapter, config.seed, progress).save(folder.basis_file)
    return Basis.load(folder.basis_file)


def _write_policy(
    folder: RunFolder,
    config: RunConfig,
    basis: Basis,
    cohort: int,
    secrets: RunSecrets,
    replayed: bool,
    tables: PublicTables | None,
) -> Policy:
    signer = secrets.federation.public_key().public_bytes_raw().hex()
    policy = policy_of(config, basis, cohort, signer, replayed, tables)
    write_atomic(folder.policy_file, signed_policy(policy, secrets.federation))
    return policy
