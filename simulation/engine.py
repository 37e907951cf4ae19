"""The local engine: the device and server state machines in a few processes, one frozen base model in each.

    people -> hosts (scrub, encode) -> campaign: query -> devices -> sum -> step, round by round -> signed release

The rounds are those of `server.rounds`, over the pipes of the hosts instead of a network; `simulation.flower` runs the
same over Flower. After the campaign comes, if asked for, the same one without noise: it is shown for comparison, stays
under `checkpoints/`, has a ledger of its own and is never released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.figures import PublicTables
from privacy.adapter import Basis, rows_sha256
from privacy.answer import noise_of_mean
from privacy.errors import ConfigError, WireError
from privacy.learned import NO_TABLES
from privacy.ledger import Ledger
from privacy.policy import Policy
from privacy.query import NO_DIRECTORY, Limits, Query
from privacy.session import Greeting, Hello
from privacy.wire import Answer, decode
from server.campaign import Asked, Campaign, CampaignPlan, replayed
from server.optimizer import OPTIMIZERS, FedAvg, Optimizer, schedule
from server.rounds import Done, Watch
from simulation.config import RunConfig, declared_of
from simulation.crowd import Names
from simulation.extension import extension
from simulation.host import Call, Hosts
from simulation.progress import Progress
from simulation.report_schema import Round

Vector = NDArray[np.float64]
MIN_COHORT = 16
MIN_ORGANISATIONS = 4  # the sum hides one among so many; what protects a record is noise inside its organisation


class LocalCourier:
    """Brings frames to devices through the pipes of their hosts; nothing is ever late, and nothing lost for long."""

    def __init__(self, pool: Hosts) -> None:
        self._pool = pool
        self._sent: dict[str, tuple[int, list[Call]]] = {}  # in this attempt, and in which life of the device's host

    def greet(self, offered: Sequence[str], invited: Sequence[str]) -> Mapping[str, int]:
        """Return the `invited` devices, each with the bits of the `offered` hashes that it holds: all are there."""
        self._pool.everywhere("begin")
        self._sent = {user: (self._pool.life(user), []) for user in invited}
        frame, held = Greeting("0" * 64, tuple(offered)).encode(), dict[str, int]()

        def heard(user: str, data: bytes) -> None:
            hello = decode(data)
            if isinstance(hello, Hello):
                held[user] = hello.held

        self._pool.run([(user, ("relay", (user, frame))) for user in invited], heard)
        return held

    def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
        """Hand each device its frame; `done(device, answer)` as the answers come."""
        calls: dict[str, Call] = {user: ("relay", (user, frame)) for user, frame in frames.items()}
        lost = [user for user in calls if self._pool.life(user) != self._sent[user][0]]
        self._pool.run([(user, call) for user in lost for call in self._before(user)], lambda *_: None, self._before)
        for user in lost:
            self._sent[user] = self._pool.life(user), self._sent[user][1]
        self._pool.run(list(calls.items()), done, self._before)
        for user, call in calls.items():
            self._sent[user][1].append(call)

    def _before(self, user: str) -> Sequence[Call]:
        """Return what a device was sent in this attempt: its host lost it, where that was started again."""
        return self._sent[user][1]


SEEN_AT_ONCE = 64


@dataclass
class Seen:
    """What updates add up to, taken one after the other: sums of unit and of clipped ones, and how many were clipped.

    Who had nothing to learn counts as zero.
    """

    clip: float
    number: int = 0
    clipped: int = 0
    _units: Vector | float = 0.0
    _clipped: Vector | float = 0.0

    def take(self, update: Vector | None) -> None:
        """Take one device's update, None from one that has not trained."""
        if update is None:
            return
        self.number += 1
        norm = float(np.linalg.norm(update))
        if norm:
            self.clipped += norm > self.clip
            self._units = self._units + update / norm
            self._clipped = self._clipped + update * min(1.0, self.clip / norm)

    def signal(self) -> tuple[float | None, float | None, float]:
        """Return alpha (norm of the mean of unit updates), the norm of the mean of clipped updates, the share clipped.

        None, None, 0 where nobody had anything to learn from.
        """
        if not isinstance(self._units, np.ndarray):
            return None, None, 0.0
        alpha, mean = (float(np.linalg.norm(total)) / self.number for total in (self._units, self._clipped))
        return alpha, mean, self.clipped / self.number


@dataclass
class RunWatch(Watch):
    """A person at the terminal, and the researcher's view of simulated people: bars, notes, a row for each round.

    `keep` gets the row of a round before its sum counts, so that none is ever lost.
    """

    pool: Hosts
    plan: CampaignPlan
    sums: Path
    progress: Progress
    keep: Callable[[Round], None]

    def __post_init__(self) -> None:
        self._bar = ExitStack()
        self._step: Callable[[], None] = _no_step
        self._asked: dict[tuple[int, int], Asked] = {}

    def stage(self, asked: Asked, name: str, devices: int) -> None:
        """Begin a bar; only the stage that trains is worth a line where there is no terminal."""
        self._bar.close()
        if name in ("answer", "advertise") or self.progress.console.is_terminal:
            step = "" if name in ("answer", "advertise") else f", {name}"
            self._step = self._bar.enter_context(self.progress.task(f"{self._label(asked)}{step}", devices))

    def answered(self, asked: Asked, name: str, device_id: str) -> None:
        """Advance the bar."""
        self._step()

    def closed(self, asked: Asked, survivors: Sequence[str], seconds: float) -> None:
        """Look at the updates behind the answers, and keep the round's row."""
        self._end()
        if len(survivors) < len(asked.invited):
            gone = len(asked.invited) - len(survivors)
            self.progress.note(f"{self._label(asked)}: {len(survivors)} of {len(asked.invited)} answered, {gone} lost")
        if survivors:
            query = asked.query
            trains = query.purpose in ("train.global", "train.persona")
            seen = self._seen(asked, survivors) if trains else Seen(float(query.clip_norm))
            row = round_row(query, seen, len(survivors), seconds)
            if trains and row["alpha"] is None:
                self.progress.note(
                    f"{self._label(asked)}: nobody had text to learn from; is local.own_tokens too small?"
                )
            self.keep(row)

    def lost(self, asked: Asked, reason: str) -> None:
        """Say that an attempt came to nothing."""
        self._end()
        self.progress.note(f"{self._label(asked)}: {reason}; a new attempt with new noise")

    def asked(self, number: int, attempt: int) -> Asked:
        """Return the question of an attempt as it lies on the disk, for whoever was only told its number."""
        if (number, attempt) not in self._asked:
            query = Query.from_bytes((self.sums / f"round-{number:05d}-{attempt}.query").read_bytes())
            slots = replayed(self.plan, self.sums).rows(self.plan.steps[query.round])
            self._asked = {(number, attempt): Asked(query, query.to_bytes(), (), slots)}
        return self._asked[number, attempt]

    def _seen(self, asked: Asked, survivors: Sequence[str]) -> Seen:
        """Return what the updates of the survivors add up to, some at a time, in the order of their names."""
        seen, names = Seen(float(asked.query.clip_norm)), sorted(survivors)
        for start in range(0, len(names), SEEN_AT_ONCE):
            updates: dict[str, Vector | None] = {}
            some = names[start : start + SEEN_AT_ONCE]
            calls = [(user, ("observe", (user, asked.query.round, asked.slots))) for user in some]
            self.pool.run(calls, updates.__setitem__)
            for user in some:
                seen.take(updates[user])
        return seen

    def _label(self, asked: Asked) -> str:
        return f"round {asked.query.round + 1} of {len(self.plan.steps)}"

    def _end(self) -> None:
        self._bar.close()
        self._step = _no_step


def _no_step() -> None:
    """Advance no bar."""


def policy_of(
    config: RunConfig, basis: Basis, cohort: int, signer: str, replayed: bool, tables: PublicTables | None = None
) -> Policy:
    """Return the policy that every simulated device holds the campaign to: it grants what the plan asks, no more."""
    steps = plan_of(config, basis, cohort, "0" * 64, replayed, NO_DIRECTORY, tables).steps
    return Policy(
        federation=config.federation,
        purposes=tuple(sorted({"train.global", "train.persona", *(step.purpose for step in steps)})),
        min_noise_multiplier=config.noise_multiplier(),
        max_clip_norm=Fraction(str(config.local.clip)),
        min_invited=min(cohort, least_cohort(config)) if config.privacy.transport == "off" else least_cohort(config),
        min_survivor_fraction=Fraction(2, 3),
        max_participations=config.participations,
        budget_rho=config.budget_rho(),
        max_dim=max((step.slot_dim + 1) * step.slots for step in steps),
        limits=limits_of(config),
        basis_sha256=basis.sha256,
        release_signer=signer,
        allow_replayed_noise=replayed,
        allow_unprotected=config.privacy.transport == "off",
        objectives=tuple(sorted({step.objective for step in steps})),
        public_sha256=tables.sha256 if tables is not None else None,
    )


def least_cohort(config: RunConfig) -> int:
    """Return how many devices a query must invite at least."""
    return MIN_ORGANISATIONS if config.privacy.by_record else MIN_COHORT


def limits_of(config: RunConfig) -> Limits:
    """Return the work that an answer may rest on."""
    return Limits(config.local.own_tokens, config.local.steps)


def _optimizer(kind: str) -> Callable[[float, float], Optimizer]:
    found: Callable[[float, float], Optimizer] = OPTIMIZERS.get(kind) or extension("aggregator", kind)
    return found


def plan_of(
    config: RunConfig,
    basis: Basis,
    cohort: int,
    policy_sha256: str,
    replayed: bool,
    directory_sha256: str,
    tables: PublicTables | None = None,
) -> CampaignPlan:
    """Return the campaign's plan from its configuration."""
    asked, server = config.queries, config.server
    training = config.rounds - (config.rounds // 2 if config.personas else 0)  # the others train personas
    rate, last = schedule("avg" if server.kind not in OPTIMIZERS else server.kind, training, config.local.clip)
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
        limits=limits_of(config),
        optimizer=_optimizer(server.kind)(server.learning_rate or rate, server.momentum),
        last_share=server.last_share or last,
        curvature_damping=config.adapter.curvature_damping,
        persona_optimizer=FedAvg(config.server.persona_rate),
        basis_sha256=basis.sha256,
        policy_sha256=policy_sha256,
        seed=config.seed,
        directory_sha256=directory_sha256,
        replayed_noise=replayed,
        objective=asked.objective,
        persona_choice=asked.persona_choice,
        clustering=asked.clustering,
        centred=asked.centred,
        portrait_dim=tables.portrait_dim if tables is not None else 1,
        encoder_dim=tables.encoder.dim if tables is not None else 1,
        words=asked.words,
        measure=asked.measure,
        retriever_rounds=asked.retriever_rounds,
        retriever_objective=asked.retriever_objective,
        declared=declared_of(asked.declared),
        choose_round=asked.choose_round,
        public_sha256=tables.sha256 if tables is not None else NO_TABLES,
    )


def shadow_of(plan: CampaignPlan) -> CampaignPlan:
    """Return the same plan without noise, under another name: for comparison only."""
    return replace(plan, campaign=f"{plan.campaign}-without-noise", transport="off")


def run_without_noise(
    plan: CampaignPlan,
    folder: Path,
    ledger: Ledger,
    users: Sequence[str],
    basis: Basis,
    pool: Hosts,
    progress: Progress,
) -> Vector:
    """Run what is left of a campaign without noise, for comparison; return its global core, float64 [slot_dim]."""
    listed = not isinstance(users, Names)
    campaign = Campaign(plan, folder, ledger, users, lambda rows: rows_sha256(plan.basis_sha256, rows), listed=listed)
    while not campaign.finished:
        asked, answers = campaign.ask(), list[Answer]()
        label = f"round {asked.query.round + 1} of {len(plan.steps)} without noise, for comparison"
        with progress.task(label, len(asked.invited)) as step:

            def done(_user: str, data: bytes, answers: list[Answer] = answers, step: Callable[[], None] = step) -> None:
                message = decode(data)
                if not isinstance(message, Answer):
                    raise WireError("not an answer")
                answers.append(message)
                step()

            calls = [(user, ("without_noise", (user, asked.query_bytes, asked.slots))) for user in asked.invited]
            pool.run(calls, done)
        campaign.take(asked, answers)
    return campaign.released[0]


def round_row(query: Query, seen: Seen, survivors: int, seconds: float) -> Round:
    """Return the report's row of a round, from the researcher's view of the updates behind its answers."""
    alpha, signal, clipped = seen.signal()
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
        objective=query.objective,
        noise_multiplier=float(query.noise_multiplier),
        rho=float(query.rho) if query.rho is not None else None,
    )


def require_cohort(people: int, needed: int, advice: Callable[[], Sequence[str]]) -> None:
    """Raise ConfigError, with what would do, where there are fewer people than a query needs."""
    if people < needed:
        raise ConfigError(f"{people} people are too few, a query needs {needed}. What would do: " + "; ".join(advice()))
