"""`confide simulate`: one federation from people to release, report and audit."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from privacy.accounting import statement
from privacy.adapter import AdapterLayout, Cores, merge_cores
from privacy.audit.html import write_page
from privacy.audit.replay import audit_run
from privacy.errors import ConfideError
from privacy.ledger import Ledger
from privacy.release import ReleaseFacts, privacy_claim
from server.campaign import Campaign
from server.registry import write_release
from simulation import evaluate
from simulation.basis_cache import model_sha256
from simulation.config import RunConfig
from simulation.engine import Federation, Vector, open_campaign, plan_of, run_rounds, shadow_of
from simulation.host import HostPool, Hosts, HostSettings
from simulation.progress import Progress
from simulation.report import write_report
from simulation.report_schema import Report
from simulation.setting import Setting, drawn, federation_ledger, host_settings, prepare
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
SCRUB_PEOPLE = 12


def simulate(
    config: RunConfig,
    out: Path,
    progress: Progress,
    *,
    overwrite: bool = False,
    replay: Path | None = None,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts] = HostPool,
) -> Report:
    """Run the federation of `config` into the folder `out` and return its report.

    A run cut off at any moment goes on when called again with the same configuration; its release then has the very
    tensors that it would have had. `replay` names a 32-byte noise key: the run is NOT PRIVATE then. Raises
    ConfideError, also where the audit of the finished run does not hold.
    """
    started = time.monotonic()
    setting = prepare(config, out, progress, overwrite, replay)
    with open_hosts(host_settings(setting)) as pool, federation_ledger(setting) as ledger:
        report = build_report(_run(setting, pool, ledger, started))
    write_report(out, report)
    verdict = audit_run(out)
    write_page(out / "audit.html", verdict)
    setting.folder.finish(_manifest(config, report))
    if not verdict.holds:
        raise ConfideError(f"the audit of this run does not hold: see {out / 'audit.html'}")
    return report


def _run(setting: Setting, pool: Hosts, ledger: Ledger, started: float) -> Facts:
    """Run rounds, release and evaluation, and return what the report is made from."""
    progress = setting.progress
    prepared = _prepare_people(setting, pool)
    probe = _probe(setting, pool)
    campaign, shadow_core = _rounds(setting, pool, ledger)
    release = _release(setting, ledger, campaign)
    evaluation, personas = _evaluate(setting, pool, campaign, shadow_core)
    scrub_bits = _scrubbing_cost(setting, pool, campaign)
    note = "simulation: computed in the clear on held-out text"
    ledger.append("EVAL", {"arms": sorted(evaluation.arms), "note": note})
    ledger.write_checkpoint()
    return Facts(
        config=setting.config,
        population=setting.population,
        trained=len(setting.trained),
        scored=setting.scored,
        prepared=prepared,
        probe=probe,
        rows=setting.folder.rows(),
        campaign=campaign,
        basis=setting.basis,
        release_sha256=release,
        evaluation=evaluation,
        personas=personas,
        scrub_bits=scrub_bits,
        phases=dict(progress.phases),
        peak_memory=sum(pool.everywhere("peak_memory_bytes")),
        versions=versions(),
        replayed=setting.replayed,
        model_path=setting.model_path,
        seconds=time.monotonic() - started,
    )


def _prepare_people(setting: Setting, pool: Hosts) -> dict[str, dict[str, Any]]:
    """Scrub and encode everybody's text on their hosts; return the counts by person."""
    prepared: dict[str, dict[str, Any]] = {}
    label, everyone = "scrubbing and encoding", setting.everyone
    with setting.progress.phase(label), setting.progress.task(label, len(everyone)) as step:

        def done(user: str, counts: dict[str, Any]) -> None:
            prepared[user] = counts
            step()

        pool.run([(user, ("prepare", (user,))) for user in everyone], done)
    return prepared


def _probe(setting: Setting, pool: Hosts) -> dict[str, float]:
    """Return the figures of the start-up probes, run on the first person's documents."""
    found: dict[str, dict[str, float]] = {}
    user = setting.users[0]
    with setting.progress.phase("probe"):
        pool.run([(user, ("probe", (user,)))], found.__setitem__)
    return found[user]


def _rounds(setting: Setting, pool: Hosts, ledger: Ledger) -> tuple[Campaign, Vector | None]:
    """Run what is left of the campaign; return it, and the core of the same campaign without noise, if asked for."""
    config, folder, layout = setting.config, setting.folder, setting.basis.layout
    plan = plan_of(config, setting.basis, setting.cohort, setting.policy, setting.replayed)
    keys = {user: key.public_key() for user, key in setting.secrets.devices.items()}
    campaign = open_campaign(plan, folder.checkpoints / "rounds", ledger, setting.users, layout, keys)
    beside, owner = folder.checkpoints / "without-noise", {"federation": config.federation, "owner": "comparison"}
    with Ledger(beside / "ledger.jsonl", setting.secrets.federation, owner) as shadow_ledger:
        shadow = None
        if config.compare_without_noise and config.privacy.transport != "off":
            shadow = open_campaign(shadow_of(plan), beside, shadow_ledger, setting.users, layout)
        with setting.progress.phase("training"):
            run_rounds(Federation(config, pool, campaign, shadow, layout, setting.progress), folder.keep_row)
        return campaign, None if shadow is None else shadow.state.core


def _release(setting: Setting, ledger: Ledger, campaign: Campaign) -> str:
    """Write the signed release and its ledger entry, once; return its hash."""
    known = [entry for entry in ledger.entries() if entry.kind == "RELEASE"]
    if known:
        return str(known[-1].body["release_sha256"])
    queries = list(ledger.account.busiest())
    facts = ReleaseFacts(
        federation=setting.config.federation,
        campaign=setting.config.campaign,
        round=len(campaign.sums),
        base_model=setting.config.model,
        base_model_sha256=model_sha256(setting.model_path),
        policy_sha256=setting.policy.sha256,
        ledger_head=ledger.head,
        private=all(query.private for query in queries) and not setting.replayed,
        privacy=privacy_claim(statement(queries)),
    )
    cores = released_cores(campaign, setting.basis.layout)
    release = write_release(setting.folder.release, setting.basis, cores, facts, setting.secrets.federation)
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
    setting: Setting, pool: Hosts, campaign: Campaign, shadow_core: Vector | None
) -> tuple[evaluate.Evaluation, dict[str, int]]:
    """Score all arms; return the scores and, with personas, who chose which."""
    evaluation, scored = evaluate.Evaluation(), setting.scored
    core = campaign.state.core
    arms = {"base": np.zeros_like(core), "global": core}
    if shadow_core is not None:
        arms["global_noiseless"] = shadow_core
    with setting.progress.phase("evaluation"):
        evaluate.score_everybody(pool, scored, arms, evaluation, setting.progress)
        personas: dict[str, int] = {}
        if setting.config.personas:
            personas = evaluate.score_personas(pool, scored, core, list(campaign.state.personas), evaluation)
        if setting.own_people:
            evaluate.score_own(pool, setting.own_people, core, evaluation, setting.progress)
    return evaluation, personas


def _scrubbing_cost(setting: Setting, pool: Hosts, campaign: Campaign) -> tuple[float, float] | None:
    """Return bits per token after one noiseless step from raw and from scrubbed text; None where not asked for."""
    config = setting.config
    if not (config.scrub and config.compare_without_noise):
        return None
    with setting.progress.phase("what scrubbing costs"):
        some = drawn(setting.users, SCRUB_PEOPLE, [config.seed, 6])
        first = campaign.sums[0].query.to_bytes()
        return evaluate.scrubbing_cost(pool, some, first, np.zeros_like(campaign.state.core), config.local.clip)


def _manifest(config: RunConfig, report: Report) -> dict[str, Any]:
    return {
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
