"""`confide simulate`: one federation from people to release, report and audit."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.base_model import base_model_path
from client.documents import Person
from privacy.accounting import statement
from privacy.adapter import AdapterLayout, Basis, Cores, merge_cores
from privacy.audit.html import write_page
from privacy.audit.replay import audit_run
from privacy.ledger import Ledger
from privacy.plan import Campaign as Planned
from privacy.plan import plan
from privacy.policy import Policy, signed_policy
from privacy.release import ReleaseFacts, privacy_claim
from server.campaign import Campaign
from server.registry import write_release
from simulation import evaluate
from simulation.basis_cache import cached_basis, model_sha256
from simulation.config import RunConfig
from simulation.engine import (
    MIN_COHORT,
    Federation,
    open_campaign,
    plan_of,
    policy_of,
    require_cohort,
    run_rounds,
    shadow_of,
)
from simulation.host import HostPool, HostSettings
from simulation.population import Population, load_people
from simulation.progress import Progress
from simulation.report import write_report
from simulation.report_schema import Report, Round
from simulation.run_folder import RunFolder, RunSecrets
from simulation.summary import Facts, build_report

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "opacus",
    "numpy",
    "cryptography",
    "dp-accounting",
    "presidio-analyzer",
    "flwr",
)
SCRUB_PEOPLE = 32


def simulate(
    config: RunConfig, out: Path, progress: Progress, *, overwrite: bool = False, replay: Path | None = None
) -> Report:
    """Run the federation of `config` into the folder `out` and return its report.

    A run cut off at any moment goes on when called again with the same configuration; its release then has the very
    tensors that it would have had. `replay` names a 32-byte noise key: the run is then NOT PRIVATE. Raises ConfideError.
    """
    started = time.monotonic()
    folder = RunFolder(out)
    with progress.phase("people"):
        population = load_people(config.people, config.max_people)
        trained, held_out = split_people(population, config)
        cohort = config.cohort or len(trained)
        _require_enough(config, len(trained), cohort)
    folder.begin(config, overwrite)
    with progress.phase("model and basis"):
        model_path = base_model_path(config.model)
        basis = cached_basis(model_path, config.adapter, config.seed, progress)
    secrets = folder.secrets([person.user for person in trained], replay)
    policy = _write_policy(folder, config, basis, cohort, secrets, replay is not None)
    basis.save(folder.checkpoints / "basis.safetensors")
    hosts = _hosts(config, folder, model_path, secrets, trained, held_out)
    with HostPool(hosts) as pool:
        ledger = _federation_ledger(folder, config, secrets, policy)
        with ledger:
            facts = _campaign(
                config, folder, pool, ledger, secrets, policy, basis, population, trained, held_out, progress, replay
            )
            facts = dataclasses.replace(facts, model_path=model_path, seconds=time.monotonic() - started)
    report = build_report(facts)
    write_report(out, report)
    folder.write_manifest(_manifest(config, report))
    folder.close()
    verdict = audit_run(out)
    write_page(out / "audit.html", verdict)
    return report


def split_people(population: Population, config: RunConfig) -> tuple[tuple[Person, ...], tuple[Person, ...]]:
    """Return who takes part and who is held out (scored, never trained), chosen by `seed`."""
    people = population.people
    if not config.evaluation.held_out:
        return people, ()
    order = np.random.default_rng([config.seed, 4]).permutation(len(people))
    out = set(order[: config.evaluation.held_out].tolist())
    return tuple(p for i, p in enumerate(people) if i not in out), tuple(p for i, p in enumerate(people) if i in out)


def _require_enough(config: RunConfig, people: int, cohort: int) -> None:
    needed = MIN_COHORT if config.privacy.transport != "off" else 1
    planned = Planned(people=min(people, cohort), noise_multiplier=config.noise_multiplier(), rounds=config.rounds)
    require_cohort(min(people, cohort), needed, lambda: plan(planned).suggestions)
    require_cohort(people, cohort, lambda: (f"set cohort to {people} or less",))


def _write_policy(
    folder: RunFolder, config: RunConfig, basis: Basis, cohort: int, secrets: RunSecrets, replayed: bool
) -> Policy:
    signer = secrets.federation.public_key().public_bytes_raw().hex()
    policy = policy_of(config, basis, cohort, signer, replayed)
    folder.ledgers.mkdir(parents=True, exist_ok=True)
    (folder.ledgers / "policy.json").write_bytes(signed_policy(policy, secrets.federation))
    return policy


def _federation_ledger(folder: RunFolder, config: RunConfig, secrets: RunSecrets, policy: Policy) -> Ledger:
    keys = {user: key.public_key().public_bytes_raw().hex() for user, key in secrets.devices.items()}
    genesis = {"federation": config.federation, "owner": "federation", "devices": keys}
    ledger = Ledger(folder.ledgers / "federation.jsonl", secrets.federation, genesis)
    if not any(entry.kind == "POLICY" for entry in ledger.entries()):
        ledger.append("POLICY", {"policy_sha256": policy.sha256})
    return ledger


def _hosts(
    config: RunConfig,
    folder: RunFolder,
    model_path: Path,
    secrets: RunSecrets,
    trained: Sequence[Person],
    held_out: Sequence[Person],
) -> list[HostSettings]:
    """Return the settings of W hosts; host w serves the people whose index is w modulo W."""
    import torch

    workers = config.workers or (1 if torch.cuda.is_available() else max(1, len(os.sched_getaffinity(0))))
    people = [*trained, *held_out]
    return [
        HostSettings(
            config=config,
            model_path=str(model_path),
            basis_file=str(folder.checkpoints / "basis.safetensors"),
            people=tuple(people[w::workers]),
            policy_file=(folder.ledgers / "policy.json").read_bytes(),
            root_key=secrets.federation.public_key().public_bytes_raw(),
            device_keys={
                p.user: secrets.devices[p.user].private_bytes_raw()
                for p in people[w::workers]
                if p.user in secrets.devices
            },
            noise_root=secrets.noise_root,
            run_folder=str(folder.path),
        )
        for w in range(workers)
    ]


def _campaign(
    config: RunConfig,
    folder: RunFolder,
    pool: HostPool,
    ledger: Ledger,
    secrets: RunSecrets,
    policy: Policy,
    basis: Basis,
    population: Population,
    trained: Sequence[Person],
    held_out: Sequence[Person],
    progress: Progress,
    replay: Path | None,
) -> Facts:
    users = [person.user for person in trained]
    everyone = users + [person.user for person in held_out]
    prepared: dict[str, dict[str, Any]] = {}
    with progress.phase("scrubbing and encoding"), progress.task("scrubbing and encoding", len(everyone)) as step:

        def done(user: str, counts: dict[str, Any]) -> None:
            prepared[user] = counts
            step()

        pool.run([(user, ("prepare", (user,))) for user in everyone], done)
    with progress.phase("probe"):
        probes: dict[str, Any] = {}
        pool.run([(users[0], ("probe", (users[0],)))], probes.__setitem__)
    plan = plan_of(config, basis, config.cohort or len(users), policy, replay is not None)
    keys = {user: key.public_key() for user, key in secrets.devices.items()}
    campaign = open_campaign(plan, folder.checkpoints / "rounds", ledger, users, basis.layout, keys)
    shadow_ledger = Ledger(
        folder.checkpoints / "without-noise" / "ledger.jsonl",
        secrets.federation,
        {"federation": config.federation, "owner": "comparison"},
    )
    with shadow_ledger:
        shadow = None
        if config.compare_without_noise and config.privacy.transport != "off":
            shadow = open_campaign(
                shadow_of(plan), folder.checkpoints / "without-noise", shadow_ledger, users, basis.layout
            )
        with progress.phase("training"):
            rows = run_rounds(Federation(config, pool, campaign, shadow, basis.layout, progress))
    release = _release(folder, config, ledger, campaign, basis, secrets, policy, replay)
    evaluation, personas, scrub_bits = _evaluate(config, pool, campaign, shadow, users, everyone, held_out, progress)
    ledger.append(
        "EVAL", {"arms": sorted(evaluation.arms), "note": "simulation: computed in the clear on held-out text"}
    )
    return Facts(
        config=config,
        population=population,
        trained=len(users),
        scored=everyone if not held_out else [p.user for p in held_out],
        prepared=prepared,
        probe=probes[users[0]],
        rows=load_rows(folder, rows),
        campaign=campaign,
        basis=basis,
        release_sha256=release,
        evaluation=evaluation,
        personas=personas,
        scrub_bits=scrub_bits,
        phases=dict(progress.phases),
        peak_memory=sum(pool.everywhere("peak_memory_bytes")),
        versions=versions(),
        replayed=replay is not None,
        model_path=Path(),
        seconds=0.0,
    )


def load_rows(folder: RunFolder, new: Sequence[Round]) -> list[Round]:
    """Return the rows of all rounds: those of an earlier part of this run, from its file, and the new ones."""
    import json

    from privacy.files import write_atomic

    path = folder.checkpoints / "rows.json"
    rows: list[Round] = json.loads(path.read_text()) if path.exists() else []
    known = {row["round"] for row in rows}
    rows += [row for row in new if row["round"] not in known]
    write_atomic(path, json.dumps(rows).encode())
    return rows


def _release(
    folder: RunFolder,
    config: RunConfig,
    ledger: Ledger,
    campaign: Campaign,
    basis: Basis,
    secrets: RunSecrets,
    policy: Policy,
    replay: Path | None,
) -> str:
    """Write the signed release and its ledger entry, once; return its hash."""
    known = [entry for entry in ledger.entries() if entry.kind == "RELEASE"]
    if known:
        return str(known[-1].body["release_sha256"])
    queries = list(ledger.account.busiest())
    model = base_model_path(config.model)
    facts = ReleaseFacts(
        federation=config.federation,
        campaign=config.campaign,
        round=len(campaign.sums),
        base_model=config.model,
        base_model_sha256=model_sha256(model),
        policy_sha256=policy.sha256,
        ledger_head=ledger.head,
        private=all(query.private for query in queries) and replay is None,
        privacy=privacy_claim(statement(queries)),
    )
    release = write_release(folder.release, basis, released_cores(campaign, basis.layout), facts, secrets.federation)
    ledger.append("RELEASE", {"release_sha256": release.sha256})
    return release.sha256


def released_cores(campaign: Campaign, layout: AdapterLayout) -> dict[str, Cores]:
    """Return what is published: global, every persona large enough (as an offset), and each composed with global."""
    state = campaign.state
    cores: dict[str, Cores] = {"global": layout.unflatten(state.core)}
    for k in campaign.published_personas():
        cores[f"persona-{k}"] = layout.unflatten(state.personas[k])
        cores[f"composed-{k}"] = merge_cores([(1.0, cores["global"]), (1.0, cores[f"persona-{k}"])])
    return cores


def _evaluate(
    config: RunConfig,
    pool: HostPool,
    campaign: Campaign,
    shadow: Campaign | None,
    users: Sequence[str],
    everyone: Sequence[str],
    held_out: Sequence[Person],
    progress: Progress,
) -> tuple[evaluate.Evaluation, dict[str, int], tuple[float, float] | None]:
    evaluation = evaluate.Evaluation()
    core = campaign.state.core
    arms = {"base": np.zeros_like(core), "global": core}
    if shadow is not None:
        arms["global_noiseless"] = shadow.state.core
    scored = [person.user for person in held_out] or list(everyone)
    with progress.phase("evaluation"):
        evaluate.score_everybody(pool, scored, arms, evaluation, progress)
        personas: dict[str, int] = {}
        if config.personas:
            personas = evaluate.score_personas(pool, scored, core, list(campaign.state.personas), evaluation)
        chosen = sorted(
            np.random.default_rng([config.seed, 5]).permutation(sorted(scored))[: config.own.people].tolist()
        )
        if chosen:
            evaluate.score_own(pool, chosen, core, evaluation, progress)
    bits = None
    if config.scrub and config.compare_without_noise:
        with progress.phase("what scrubbing costs"):
            some = np.random.default_rng([config.seed, 6]).permutation(list(users))[:SCRUB_PEOPLE].tolist()
            first = campaign.sums[0].query.to_bytes()
            bits = evaluate.scrubbing_cost(pool, some, first, np.zeros_like(core), config.local.clip)
    return evaluation, personas, bits


def _manifest(config: RunConfig, report: Report) -> dict[str, Any]:
    return {
        "campaign": config.campaign,
        "config": config.flat(),
        "state": "finished",
        "seed": config.seed,
        "versions": versions(),
        "hashes": report["hashes"],
        "machine": platform.machine(),
        "not_private": report["not_private"],
    }


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
