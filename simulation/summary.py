"""From what happened to what is reported: one place where figures get their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from privacy.accounting import DELTAS, statement
from privacy.adapter import Basis
from server.campaign import Campaign
from simulation.basis_cache import model_sha256
from simulation.config import RunConfig
from simulation.evaluate import Evaluation
from simulation.metrics import comparisons, person_rows, summarise
from simulation.personas_section import measured_section, personas_section, retriever_section, without_persona
from simulation.population import Population
from simulation.privacy_section import privacy_section
from simulation.record_level import shared_record_privacy
from simulation.report_schema import Arm, Cost, Privacy, RecordPrivacy, Report, Round, Scrub, What

HEADLINE_DELTA = 1e-6


@dataclass(frozen=True)
class Facts:
    """Everything that a finished run knows about itself."""

    config: RunConfig
    population: Population
    trained: int
    scored: Sequence[str]
    prepared: Mapping[str, Mapping[str, Any]]
    probe: Mapping[str, float]
    rows: Sequence[Round]
    campaign: Campaign
    basis: Basis
    release_sha256: str
    evaluation: Evaluation
    personas: Mapping[str, int]
    scrub_bits: tuple[float, float] | None
    phases: Mapping[str, float]
    peak_memory: int
    replayed: bool
    versions: Mapping[str, str]
    model_path: Path
    seconds: float


def build_report(facts: Facts) -> Report:
    """Return the report of a finished run."""
    config, rng = facts.config, np.random.default_rng([facts.config.seed, 7])
    arms = facts.evaluation.arms
    claimed = statement(facts.campaign.ledger.account.busiest())
    summary = summarise(arms, rng)
    report = Report(
        what=_what(facts, arms),
        lines=headline(summary, claimed, facts.replayed),
        not_private=_not_private(config, facts.replayed),
        arms=summary,
        comparisons=comparisons(arms, rng),
        people=person_rows(arms, {user: int(counts["tokens"]) for user, counts in facts.prepared.items()}),
        rounds=list(facts.rows),
        privacy=_privacy(facts, claimed),
        cost=_cost(facts),
        config=config.flat(),
        versions=dict(facts.versions),
        hashes={
            "people": facts.population.sha256,
            "model": model_sha256(facts.model_path),
            "basis": facts.basis.sha256,
            "policy": facts.campaign.plan.policy_sha256,
            "release": facts.release_sha256,
        },
    )
    report["basis"] = {"name": _basis_name(config), "numbers": facts.basis.layout.dim}
    if config.scrub:
        report["scrub"] = _scrub(facts)
    if config.personas:
        report["personas"] = personas_section(facts.campaign, facts.personas)
        report["personas"]["without_persona"] = without_persona(facts.campaign)
    if facts.campaign.plan.measure:
        report["measured"] = measured_section(facts.campaign)
    if facts.campaign.plan.retriever_rounds:
        report["retriever"] = retriever_section(facts.campaign, facts.evaluation.ranked)
    return report


def headline(arms: Mapping[str, Arm], claimed: Mapping[str, Any], replayed: bool) -> list[str]:
    """Return the three lines a newcomer reads: without noise, as released, and against the server itself."""
    lines = []
    if "global_noiseless" in arms:
        lines.append(f"global without noise (not private): {_against_base(arms['global_noiseless'])}")
    if replayed or not claimed["private"]:
        lines.append(f"global, NOT PRIVATE, no epsilon holds: {_against_base(arms['global'])}")
        return lines
    epsilon, server = (_at(claimed, key, HEADLINE_DELTA) for key in ("epsilon", "epsilon_server"))
    sybils = _at(claimed, "sybil_floor_epsilon", HEADLINE_DELTA)
    claim = f"epsilon {epsilon:.2f} at delta {HEADLINE_DELTA:g} per user (released)"
    lines.append(f"global, {claim}: {_against_base(arms['global'])}")
    if claimed["transport"] == ["masked"]:
        few = claimed["cohort_floor"] - claimed["honest_floor"]
        seen = f"epsilon {server:.2f}: it learns masked sums alone, while at most {few} devices a round work with it"
    else:
        seen = f"epsilon {server:.1f} of a single device's update, added in the clear"
    lines.append(
        f"against the server itself: {seen}; the Sybil floor (all other devices collude) is epsilon {sybils:.1f}"
    )
    return lines


def _at(claimed: Mapping[str, Any], key: str, delta: float) -> float:
    return float(claimed[key][repr(delta)])


def _against_base(arm: Arm) -> str:
    gain = arm["relative_gain"]
    bits = f"{arm['bits_per_token']:.3f} bits a token"
    if gain is None:
        return bits
    low, high = arm["low"], arm["high"]
    interval = ""
    if low is not None and high is not None:
        interval = f" (95 % {100 * low:+.1f} to {100 * high:+.1f} %)"
    if gain <= 0 or (low is not None and low <= 0):
        return f"{bits}, does not beat base: {100 * gain:+.1f} %{interval}"
    return f"{bits}, {100 * gain:.1f} % fewer than base{interval}"


def _not_private(config: RunConfig, replayed: bool) -> list[str]:
    reasons = []
    if config.privacy.transport == "off":
        reasons.append("transport off: no noise was added")
    if replayed:
        reasons.append("noise replayed from a key file")
    return reasons


def _what(facts: Facts, arms: Mapping[str, Sequence[Any]]) -> What:
    config = facts.config
    return What(
        name=config.campaign,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=config.people if config.people == "chitchat" else Path(config.people).name,
        people=facts.trained,
        people_scored=len(facts.scored),
        model=config.model,
        engine=config.engine,
        rounds=len(facts.campaign.sums),
        shared_numbers=facts.basis.layout.dim,
        training_tokens=_training_tokens(facts),
        test_tokens=sum(score.tokens for score in arms["base"]),
        seed=config.seed,
    )


def _training_tokens(facts: Facts) -> int:
    """Return the most own tokens that the campaign may have read: each answer rests on at most the limit."""
    limit = facts.config.local.own_tokens
    asked = [r for r in facts.campaign.ledger.account.charged() if r.state == "committed"]
    return sum(min(limit, int(facts.prepared[user]["tokens"])) for r in asked for user in r.invited)


def _privacy(facts: Facts, claimed: Mapping[str, Any]) -> Privacy:
    rows = [row for row in facts.rows if row["snr"] is not None]
    return privacy_section(
        claimed,
        DELTAS,
        clip_fraction=float(np.mean([row["clip_fraction"] for row in facts.rows])) if facts.rows else None,
        snr=float(np.mean([row["snr"] for row in rows if row["snr"] is not None])) if rows else None,
        noise_ratio=float(np.mean([row["noise_ratio"] for row in rows if row["noise_ratio"] is not None]))
        if rows
        else None,
        record=_record(facts),
    )


def _record(facts: Facts) -> RecordPrivacy | None:
    shared = shared_record_privacy(facts.config, facts.trained)
    if shared is not None or not facts.evaluation.record:
        return shared
    worst = max(facts.evaluation.record, key=lambda each: each["epsilon"])
    return RecordPrivacy(
        unit="document",
        people=len(facts.evaluation.record),
        epsilon=worst["epsilon"],
        delta=worst["delta"],
        noise_multiplier=worst["noise_multiplier"],
        clip_norm=worst["clip_norm"],
    )


def _cost(facts: Facts) -> Cost:
    slots = [r.query.slots for r in facts.campaign.ledger.account.charged()]
    dims = [r.query.dim for r in facts.campaign.ledger.account.charged()]
    steps = facts.config.local.steps * facts.config.local.sampling_rate
    training = facts.phases.get("training", 0.0)
    return Cost(
        seconds=facts.seconds,
        phases=dict(facts.phases),
        tokens_per_second=_training_tokens(facts) * steps / training if training else None,
        peak_memory_bytes=facts.peak_memory,
        bytes_up_per_device=4 * sum(dims) + 256 * len(dims),
        bytes_down_per_device=4 * facts.basis.layout.dim * sum(slots) + len(facts.basis.to_bytes()),
    )


def _scrub(facts: Facts) -> Scrub:
    reports = [counts["scrub"] for counts in facts.prepared.values() if counts["scrub"] is not None]
    entities: dict[str, int] = {}
    for report in reports:
        for entity, number in report.replaced.items():
            entities[entity] = entities.get(entity, 0) + number
    scrub = Scrub(entities=entities, documents=sum(report.documents for report in reports))
    if facts.scrub_bits is not None:
        scrub["raw_bits_per_token"], scrub["scrubbed_bits_per_token"] = facts.scrub_bits
    return scrub


def _basis_name(config: RunConfig) -> str:
    if config.adapter.kind == "svd":
        return f"SVD of the weights, rank {config.adapter.rank}, top {config.adapter.layers} layers"
    return f"whitened, own samples of the base model, rank {config.adapter.rank}, top {config.adapter.layers} layers"
