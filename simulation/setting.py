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
from privacy.errors import DataError
from privacy.files import write_atomic
from privacy.ledger import Ledger
from privacy.plan import Campaign as Planned
from privacy.plan import plan
from privacy.policy import Policy, signed_policy
from privacy.query import NO_DIRECTORY
from simulation.basis_cache import cached_basis
from simulation.config import RunConfig
from simulation.crowd import Crowd, Names, names_of
from simulation.engine import least_cohort, policy_of, require_cohort
from simulation.host import HostSettings
from simulation.population import Population, as_organisations, load_people
from simulation.progress import Progress
from simulation.public_tables import tables_of
from simulation.record_level import check_by_record
from simulation.run_folder import RunFolder, RunSecrets

SCORED_OF_A_CROWD = 64


@dataclass(frozen=True)
class Setting:
    """Everything that stays the same from the first query of a run to its report."""

    config: RunConfig
    folder: RunFolder
    progress: Progress
    population: Population
    trained: Sequence[Person]
    held_out: Sequence[Person]
    model_path: Path
    basis: Basis
    secrets: RunSecrets
    policy: Policy
    replayed: bool
    tables: PublicTables | None = None

    @property
    def directory(self) -> Directory:
        """Return who takes part, with their keys. Raises ConfigError where they are too many for one."""
        return Directory.of_keys(
            self.config.federation, {user: self.secrets.devices.public(user) for user in self.users}
        )

    @property
    def listed(self) -> bool:
        """Return whether the ledger begins with everybody's key; else a device's stands before its first question.

        A sum under masks needs a signed directory of all, and a server in another process a list; a crowd summed in the
        clear, in this process, does without.
        """
        config = self.config
        return not isinstance(self.trained, Crowd) or config.privacy.transport == "masked" or config.engine == "flower"

    @property
    def directory_sha256(self) -> str:
        """Return the hash of the directory that queries name."""
        return self.directory.sha256 if self.listed else NO_DIRECTORY

    @property
    def users(self) -> Sequence[str]:
        """Return the ids of those who take part."""
        return names_of(self.trained)

    @property
    def everyone(self) -> list[str]:
        """Return the ids of all people, those held out last."""
        return [*self.users, *names_of(self.held_out)]

    @property
    def scored(self) -> list[str]:
        """Return whom the evaluation scores: those held out, or everybody where nobody is; of a crowd, some drawn."""
        if self.held_out or not isinstance(self.trained, Crowd):
            return list(names_of(self.held_out)) or list(self.users)
        return drawn(self.users, SCORED_OF_A_CROWD, [self.config.seed, 13])

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
        _require_a_test(held_out or trained, population.source)
    folder.begin(config, overwrite, people_sha256=population.sha256, replayed=replay is not None)
    with progress.phase("model and basis"):
        model_path = base_model_path(config.model)
        basis = _basis(folder, config, model_path, progress)
    secrets = folder.secrets(replay)
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


def _require_a_test(scored: Sequence[Person], source: str) -> None:
    """Raise DataError before anything is trained where the report would have nobody in it."""
    if not any(person.test for person in scored):
        raise DataError(f"{source}: none of the {len(scored)} people who would be scored has a test document")


def split_people(population: Population, config: RunConfig) -> tuple[Sequence[Person], Sequence[Person]]:
    """Return who takes part and who is held out (scored, never trained), chosen by `seed`."""
    people = population.people
    if not config.evaluation.held_out:
        return people, ()
    order = np.random.default_rng([config.seed, 4]).permutation(len(people))
    out = set(order[: config.evaluation.held_out].tolist())
    if isinstance(people, Crowd):
        return people.parted(np.isin(np.arange(len(people)), list(out)))
    return tuple(p for i, p in enumerate(people) if i not in out), tuple(p for i, p in enumerate(people) if i in out)


def drawn(users: Sequence[str], number: int, seed: Sequence[int]) -> list[str]:
    """Return at most `number` of `users`, sorted, drawn by `seed` whatever the order they came in."""
    if isinstance(users, Names):
        return users.drawn(number, np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(sorted(users))
    return sorted(order[:number].tolist())


def federation_ledger(setting: Setting) -> Ledger:
    """Return the federation's ledger, open for writing, with the devices' keys and the policy in it."""
    listed = setting.users if setting.listed else ()
    keys = {user: setting.secrets.devices.public(user).public_bytes_raw().hex() for user in listed}
    genesis = {"federation": setting.config.federation, "owner": "federation", "devices": keys}
    ledger = Ledger(setting.folder.ledgers / "federation.jsonl", setting.secrets.federation, genesis)
    if not any(entry.kind == "POLICY" for entry in ledger.entries()):
        ledger.append("POLICY", {"policy_sha256": setting.policy.sha256})
    if setting.listed:
        write_atomic(setting.folder.directory_file, signed_directory(setting.directory, setting.secrets.federation))
    return ledger


def host_settings(setting: Setting) -> list[HostSettings]:
    """Return the settings of W hosts; host w serves the people whose index is w modulo W.

    The people with a device have the first indices: person j is at place j // W of host j modulo W, which is how a
    relay finds them. Those who will get own adapters come first, so that each host has its share of that work too.
    """
    workers = setting.config.workers or default_workers(setting.config.cluster)
    trained, held_out = setting.trained, setting.held_out
    if not isinstance(trained, Crowd):
        own = set(setting.own_people)
        trained, held_out = (tuple(sorted(p, key=lambda p: p.user not in own)) for p in (trained, held_out))
    parts = [(trained[w::workers], held_out[w::workers]) for w in range(workers)]
    directory = signed_directory(setting.directory, setting.secrets.federation) if setting.listed else b""
    return [_host(setting, number, *part, directory) for number, part in enumerate(parts) if any(map(len, part))]


def default_workers(cluster: str = "") -> int:
    """Return one worker where there is a GPU, else one for each core that this process may use, or of the cluster."""
    if cluster:
        from simulation.cluster import processors

        return processors(cluster)
    import torch

    return 1 if torch.cuda.is_available() else max(1, len(os.sched_getaffinity(0)))


def _host(
    setting: Setting, number: int, trained: Sequence[Person], others: Sequence[Person], directory: bytes
) -> HostSettings:
    folder = setting.folder
    return HostSettings(
        config=setting.config,
        model_path=str(setting.model_path),
        basis_file=str(folder.basis_file),
        people=trained,
        others=others,
        policy_file=folder.policy_file.read_bytes(),
        directory_file=directory,
        root_key=setting.secrets.federation.public_key().public_bytes_raw(),
        device_root=setting.secrets.devices.root,
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
        cached_basis(model_path, config.adapter, config.seed, progress, config.quantize).save(folder.basis_file)
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
