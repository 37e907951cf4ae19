"""The local engine: the device and server state machines in a few processes, one frozen base model in each.

    people -> hosts (scrub, encode) -> campaign: query -> devices -> sum -> step, round by round -> signed release

Beside the campaign runs, if asked for, the same campaign without noise: it is shown for comparison, stays under
`checkpoints/`, has a ledger of its own and is never released.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from privacy.adapter import AdapterLayout, Basis, state_sha256
from privacy.answer import noise_of_mean
from privacy.errors import CohortTooSmall, ConfideError, ConfigError
from privacy.ledger import Ledger
from privacy.policy import Policy
from privacy.query import Limits, Query
from privacy.wire import Answer, Refusal, RefusalCode, decode
from server.campaign import Asked, Campaign, CampaignPlan
from server.optimizer import FedAvg
from simulation.config import RunConfig
from simulation.host import Hosts
from simulation.progress import Progress
from simulation.report_schema import Round

Vector = NDArray[np.float64]
MIN_COHORT = 16
SPENT = " (an attempt that was lost is spent all the same: fewer devices must drop out)"
HINTS: Mapping[str, str] = {
    RefusalCode.UNABLE: " (it could not write, or read, its own files: is the disk full?)",
    RefusalCode.PARTICIPATIONS: SPENT,
    RefusalCode.BUDGET: SPENT,
}


@dataclass(frozen=True)
class Federation:
    """What all rounds share: who takes part, the hosts they live on, the layout, and the campaign."""

    config: RunConfig
    pool: Hosts
    campaign: Campaign
    without_noise: Campaign | None
    layout: AdapterLayout
    progress: Progress


def policy_of(config: RunConfig, basis: Basis, cohort: int, signer: str, replayed: bool) -> Policy:
    """Return the policy that every simulated device holds the campaign to."""
    return Policy(
        federation=config.federation,
        purposes=("train.global", "train.persona"),
        min_noise_multiplier=config.noise_multiplier(),
        max_clip_norm=Fraction(str(config.local.clip)),
        min_invited=min(cohort, MIN_COHORT) if config.privacy.transport == "off" else MIN_COHORT,
        min_survivor_fraction=Fraction(2, 3),
        max_participations=config.participations,
        budget_rho=config.budget_rho(),
        max_dim=(basis.layout.dim + 1) * max(1, config.personas),
        limits=Limits(config.local.own_tokens, config.local.steps),
        basis_sha256=basis.sha256,
        release_signer=signer,
        allow_replayed_noise=replayed,
        allow_unprotected=config.privacy.transport == "off",
    )


def plan_of(config: RunConfig, basis: Basis, cohort: int, policy: Policy, replayed: bool) -> CampaignPlan:
    """Return the campaign's plan from its configuration."""
    return CampaignPlan(
        federation=config.federation,
        campaign=config.campaign,
        rounds=config.rounds,
        cohort=cohort,
        personas=config.personas,
        slot_dim=basis.layout.dim,
        clip_norm=Fraction(str(config.local.clip)),
        noise_multiplier=config.noise_multiplier(),
        transport=config.privacy.transport,
        limits=policy.limits,
        optimizer=FedAvg(config.server.learning_rate, config.server.momentum),
        basis_sha256=basis.sha256,
        policy_sha256=policy.sha256,
        seed=config.seed,
        replayed_noise=replayed,
    )


def open_campaign(
    plan: CampaignPlan,
    folder: Path,
    ledger: Ledger,
    users: Sequence[str],
    layout: AdapterLayout,
    keys: Mapping[str, Ed25519PublicKey] | None = None,
) -> Campaign:
    """Return the campaign in `folder`, begun or gone on with; with `keys` answers must be signed, see `Campaign`."""

    def state(slots: Vector) -> str:
        return state_sha256(plan.basis_sha256, layout, [layout.unflatten(row) for row in slots])

    return Campaign(plan, folder, ledger, users, state, keys)


def shadow_of(plan: CampaignPlan) -> CampaignPlan:
    """Return the same plan without noise, under another name: for comparison only."""
    return replace(plan, campaign=f"{plan.campaign}-without-noise", transport="off")


def run_rounds(federation: Federation, keep: Callable[[Round], None]) -> None:
    """Run what is left of the campaign; `keep` gets the row of a round before the round counts, so none is ever lost.

    Raises CohortTooSmall when a round failed in all its attempts.
    """
    campaign, shadow = federation.campaign, federation.without_noise
    while not campaign.finished or not (shadow is None or shadow.finished):
        number = min(len(c.sums) for c in (campaign, shadow) if c is not None)
        if len(campaign.sums) == number and not campaign.finished:
            _round(federation, keep)
        if shadow is not None and len(shadow.sums) == number:
            _round_without_noise(federation, shadow)


def _round(federation: Federation, keep: Callable[[Round], None]) -> None:
    """Run one round with its devices, in as many attempts as it takes."""
    campaign = federation.campaign
    while True:
        started = time.monotonic()
        asked = campaign.ask()
        label = f"round {asked.query.round + 1} of {campaign.plan.rounds}"
        answers, updates = _collect(federation, asked, label)
        arrived = _arrived(federation.config, asked, answers)
        if arrived:
            row = _row(asked.query, updates, len(arrived), time.monotonic() - started)
            if row["alpha"] is None:
                federation.progress.note(f"{label}: nobody had text to learn from; is local.own_tokens too small?")
            keep(row)
        try:
            campaign.take(asked, arrived)
            return
        except CohortTooSmall as error:
            federation.progress.note(f"{label}: {error}; a new attempt with new noise")


def _collect(federation: Federation, asked: Asked, label: str) -> tuple[dict[str, Answer], dict[str, Vector]]:
    """Return every device's answer, and the researcher's view of the updates behind them."""
    answers: dict[str, Answer] = {}
    refused: dict[str, str] = {}
    call = ("ask", (asked.query_bytes, asked.slots))
    with federation.progress.task(label, len(asked.invited)) as step:

        def done(user: str, data: bytes) -> None:
            message = decode(data)
            if isinstance(message, Answer):
                answers[user] = message
            elif isinstance(message, Refusal):
                refused[user] = message.code
            step()

        federation.pool.run([(user, (call[0], (user, *call[1]))) for user in asked.invited], done)
    if refused and not answers:
        codes = sorted(set(refused.values()))
        hint = next((HINTS[code] for code in codes if code in HINTS), "")
        raise ConfideError(f"every device refused: {', '.join(codes)}{hint}")
    updates: dict[str, Vector] = {}

    def observed(user: str, update: Vector | None) -> None:
        if update is not None:
            updates[user] = update

    federation.pool.run([(user, ("observe", (user, asked.query.round, asked.slots))) for user in answers], observed)
    return answers, updates


def _arrived(config: RunConfig, asked: Asked, answers: dict[str, Answer]) -> list[Answer]:
    """Return the answers that arrive: a dropped device has trained, paid its budget and sent; its answer is lost."""
    rng = np.random.default_rng([config.seed, 3, asked.query.round, asked.query.attempt])
    users = sorted(answers)
    lost = set(rng.permutation(users)[: int(config.dropout * len(asked.invited))].tolist())
    return [answers[user] for user in users if user not in lost]


def _round_without_noise(federation: Federation, shadow: Campaign) -> None:
    asked = shadow.ask()
    answers: list[Answer] = []
    label = f"round {asked.query.round + 1} without noise, for comparison"
    with federation.progress.task(label, len(asked.invited)) as step:

        def done(_user: str, data: bytes) -> None:
            message = decode(data)
            if isinstance(message, Answer):
                answers.append(message)
            step()

        calls = [(user, ("without_noise", (user, asked.query_bytes, asked.slots))) for user in asked.invited]
        federation.pool.run(calls, done)
    shadow.take(asked, sorted(answers, key=lambda answer: answer.device_id))


def _row(query: Query, updates: dict[str, Vector], survivors: int, seconds: float) -> Round:
    clip = float(query.clip_norm)
    alpha, signal, clipped = _signal(list(updates.values()), clip)
    noise = noise_of_mean(query, survivors) * float(np.sqrt(query.dim))
    return Round(
        round=query.round,
        purpose=query.purpose,
        invited=query.cohort.invited,
        survivors=survivors,
        clip_fraction=clipped,
        snr=signal / noise if signal and noise else None,
        noise_ratio=noise / signal if signal else None,
        alpha=alpha,
        seconds=seconds,
    )


def _signal(updates: Sequence[Vector], clip: float) -> tuple[float | None, float | None, float]:
    """Return alpha (norm of the mean of unit updates), the norm of the mean of clipped updates, the share clipped."""
    norms = [float(np.linalg.norm(u)) for u in updates]
    if not any(norms):
        return None, None, 0.0
    safe = [(u, n or 1.0) for u, n in zip(updates, norms, strict=True)]  # who had nothing to learn counts as zero
    alpha = float(np.linalg.norm(np.mean([u / n for u, n in safe], axis=0)))
    mean = float(np.linalg.norm(np.mean([u * min(1.0, clip / n) for u, n in safe], axis=0)))
    return alpha, mean, sum(n > clip for n in norms) / len(norms)


def require_cohort(people: int, needed: int, advice: Callable[[], Sequence[str]]) -> None:
    """Raise ConfigError, with what would do, where there are fewer people than a query needs."""
    if people < needed:
        raise ConfigError(f"{people} people are too few, a query needs {needed}. What would do: " + "; ".join(advice()))
