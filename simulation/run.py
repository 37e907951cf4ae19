"""`confide simulate`: one federation from people to release, report and audit."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from privacy.audit.html import write_page
from privacy.audit.replay import audit_run
from privacy.audit.spread import over_cores
from privacy.errors import ConfideError
from privacy.ledger import Ledger
from privacy.objective import NEAREST
from server.campaign import Campaign, Unlisted
from server.home import ROUNDS, ServerHome
from server.public import FILE as PUBLIC
from server.publish import ReleaseOf, publish
from server.rounds import Deadlines
from simulation import evaluate
from simulation.basis_cache import cached_curvature, model_sha256
from simulation.config import RunConfig
from simulation.crowd import Crowd
from simulation.engine import LocalCourier, RunWatch, Vector, plan_of, run_without_noise, shadow_of
from simulation.flower import run_over_flower
from simulation.host import HostPool, Hosts, HostSettings, peak_memory_bytes
from simulation.mechanism.code import code_sha256
from simulation.progress import Progress
from simulation.public_tables import public_of
from simulation.report import write_report
from simulation.report_schema import Report
from simulation.run_folder import PublicKeys
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
SCRUB_PEOPLE = 8
RANKED_PEOPLE = 24  # get questions put to the retriever: each costs a dozen readings by the model
GREETING_S = 300.0  # Flower and Ray take their time to start their relays on a busy machine
PATIENT_S = 6 * 3600.0  # simulated people drop out by schedule, never by the clock


def simulate(
    config: RunConfig,
    out: Path,
    progress: Progress,
    *,
    overwrite: bool = False,
    replay: Path | None = None,
    open_hosts: Callable[[Sequence[HostSettings]], Hosts] | None = None,
) -> Report:
    """Run the federation of `config` into the folder `out` and return its report.

    A run cut off at any moment goes on when called again with the same configuration; its release then has the very
    tensors that it would have had. `replay` names a 32-byte noise key: the run is NOT PRIVATE then. Raises
    ConfideError, also where the audit of the finished run does not hold.
    """
    started = time.monotonic()
    config.check_together()
    setting = prepare(config, out, progress, overwrite, replay)
    with (open_hosts or opener(config))(host_settings(setting)) as pool:
        report = build_report(_run(setting, pool, started))
    write_report(out, report)
    verdict = audit_run(out, spread=over_cores)
    write_page(out / "audit.html", verdict)
    setting.folder.finish(_manifest(config, report))
    if not verdict.holds:
        raise ConfideError(f"the audit of this run does not hold: see {out / 'audit.html'}")
    return report


def opener(config: RunConfig) -> Callable[[Sequence[HostSettings]], Hosts]:
    """Return what opens the hosts of a run: worker processes here, or actors on the nodes of its cluster."""
    if not config.cluster:
        return HostPool
    from simulation.cluster import ClusterPool  # Ray is imported where it is used

    return partial(ClusterPool, address=config.cluster)


def _run(setting: Setting, pool: Hosts, started: float) -> Facts:
    """Run rounds, release and evaluation, and return what the report is made from."""
    if not isinstance(setting.trained, Crowd):  # of a crowd each is prepared when asked for the first time
        _prepare_people(setting, pool)
    probe = _probe(setting, pool)
    home = server_home(setting)
    federation_ledger(setting).close()  # begun here: the server, wherever it runs, finds the directory in it
    with setting.progress.phase("training"):
        _rounds(setting, pool, home)
        shadow_core = _without_noise(setting, pool, home)
    with federation_ledger(setting) as ledger:
        campaign = home.campaign(ledger, setting.basis)
        release = publish(campaign, setting.basis, home.release, setting.secrets.federation, setting.folder.release)
        facts = _evaluated(setting, pool, campaign, shadow_core, ledger)
    return Facts(
        config=setting.config,
        population=setting.population,
        trained=len(setting.trained),
        scored=setting.scored,
        prepared=_prepared(pool, campaign),
        probe=probe,
        rows=setting.folder.rows(),
        campaign=campaign,
        basis=setting.basis,
        release_sha256=release,
        evaluation=facts.evaluation,
        personas=facts.personas,
        scrub_bits=facts.scrub_bits,
        phases=dict(setting.progress.phases),
        peak_memory=sum(pool.everywhere("peak_memory_bytes")) + peak_memory_bytes(),
        versions=versions(),
        replayed=setting.replayed,
        model_path=setting.model_path,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Evaluated:
    """What the researcher's view of a finished campaign gives."""

    evaluation: evaluate.Evaluation
    personas: dict[str, int]
    scrub_bits: tuple[float, float] | None


def _evaluated(
    setting: Setting, pool: Hosts, campaign: Campaign, shadow_core: Vector | None, ledger: Ledger
) -> Evaluated:
    """Score the arms, note in the ledger that it was done, and end the ledger with a signed checkpoint."""
    evaluation, personas = _evaluate(setting, pool, campaign, shadow_core)
    scrub_bits = _scrubbing_cost(setting, pool, campaign)
    note = "simulation: computed in the clear on held-out text"
    ledger.append("EVAL", {"arms": sorted(evaluation.arms), "note": note})
    ledger.write_checkpoint()
    pool.everywhere("write_checkpoints")
    return Evaluated(evaluation, personas, scrub_bits)


def _prepare_people(setting: Setting, pool: Hosts) -> None:
    """Scrub and encode everybody's text on their hosts."""
    label, everyone = "scrubbing and encoding", setting.everyone
    with setting.progress.phase(label), setting.progress.task(label, len(everyone)) as step:
        pool.run([(user, ("prepare", (user,))) for user in everyone], lambda *_: step())


def _prepared(pool: Hosts, campaign: Campaign) -> dict[str, dict[str, Any]]:
    """Return the counts of everybody whose text was prepared; those that a host took with it are counted again."""
    found = {user: counts for some in pool.everywhere("prepared") for user, counts in some.items()}
    asked = {user for r in campaign.ledger.account.charged() for user in r.invited}
    pool.run([(user, ("prepare", (user,))) for user in sorted(asked - found.keys())], found.__setitem__)
    return found


def _probe(setting: Setting, pool: Hosts) -> dict[str, float]:
    """Return the figures of the start-up probes, run on the first person's documents."""
    found: dict[str, dict[str, float]] = {}
    user = setting.users[0]
    with setting.progress.phase("probe"):
        pool.run([(user, ("probe", (user,)))], found.__setitem__)
    return found[user]


def server_home(setting: Setting) -> ServerHome:
    """Return the campaign as its server finds it, written to the run's folder."""
    config = setting.config
    home = ServerHome(
        setting.folder.path,
        plan_of(
            config,
            setting.basis,
            setting.cohort,
            setting.policy.sha256,
            setting.replayed,
            setting.directory_sha256,
            setting.tables,
        ),
        ReleaseOf(config.model, model_sha256(setting.model_path)),
        Deadlines(stage=PATIENT_S, training=PATIENT_S, greeting=GREETING_S),
        simulated=True,
        dropout=config.dropout,
        crowd=None if setting.listed else Unlisted(setting.users, PublicKeys(setting.secrets.devices, setting.users)),
    )
    home.save(setting.secrets.federation)
    if not (setting.folder.checkpoints / PUBLIC).exists():
        curvature = cached_curvature(
            setting.model_path, setting.basis, config.adapter, config.seed, setting.progress, config.quantize
        )
        public_of(setting.tables, home.plan, curvature).save(setting.folder.checkpoints)
    return home


def _rounds(setting: Setting, pool: Hosts, home: ServerHome) -> None:
    """Run what is left of the campaign on the engine of the configuration."""
    sums = setting.folder.checkpoints / ROUNDS
    watch = RunWatch(pool, home.plan, sums, setting.progress, setting.folder.keep_row)
    if setting.config.engine == "flower":
        run_over_flower(home, watch, len(setting.users), setting.config.cluster)
        return
    with home.rounds(lambda _: LocalCourier(pool), watch) as rounds:
        rounds.run()


def _without_noise(setting: Setting, pool: Hosts, home: ServerHome) -> Vector | None:
    """Run the same campaign without noise, if asked for, and return its global core."""
    config = setting.config
    if not config.compare_without_noise or config.privacy.transport == "off":
        return None
    beside, owner = (
        setting.folder.checkpoints / "without-noise",
        {"federation": config.federation, "owner": "comparison"},
    )
    with Ledger(beside / "ledger.jsonl", setting.secrets.federation, owner) as ledger:
        plan = shadow_of(home.plan)
        return run_without_noise(plan, beside, ledger, setting.users, setting.basis, pool, setting.progress)


def _evaluate(
    setting: Setting, pool: Hosts, campaign: Campaign, shadow_core: Vector | None
) -> tuple[evaluate.Evaluation, dict[str, int]]:
    """Score all arms; return the scores and, with personas, who chose which."""
    evaluation, scored = evaluate.Evaluation(), setting.scored
    core, offsets = campaign.released
    arms = {"base": np.zeros_like(core), "global": core}
    if shadow_core is not None:
        arms["global_noiseless"] = shadow_core
    with setting.progress.phase("evaluation"):
        evaluate.score_everybody(pool, scored, arms, evaluation, setting.progress)
        personas: dict[str, int] = {}
        if setting.config.personas:
            state = campaign.state
            centroids = state.centroids if campaign.plan.persona_choice == NEAREST else None
            personas = evaluate.score_personas(pool, scored, core, list(offsets), evaluation, centroids)
            evaluate.score_mixtures(pool, scored, core, list(offsets), evaluation, centroids)
        if setting.config.queries.retriever_rounds:
            rank, state = campaign.plan.retriever_rank, campaign.state
            some = drawn(scored, RANKED_PEOPLE, [setting.config.seed, 6])
            learned = state.retriever.reshape(rank, rank)
            evaluate.score_retriever(pool, some, learned, state.directions, evaluation)
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
        "code_sha256": code_sha256(),
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
