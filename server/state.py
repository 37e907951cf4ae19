"""What follows from a campaign's sums: adapters, centroids, word counts, figures; pure functions of plan and sums."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from privacy.objective import LOSS_UNIT, METRICS, METRICS_NORM, NEAREST
from privacy.query import Query
from server.curvature import DIRECTIONS, STEEPNESS, Curvature
from server.personas import Event, count_deviation, shrunk, tended
from server.plan import CampaignPlan, Step
from server.public import Public

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class RoundSum:
    """A finished round: its query, the number of answers in its sum, and their mean, float64 [dim]."""

    query: Query
    survivors: int
    mean: Vector


@dataclass(frozen=True)
class Best:
    """The adapters whose noisy mean loss, in nats per token, was least so far, and the query that measured them."""

    loss: float
    core: Vector
    personas: Vector
    round: int


@dataclass(frozen=True)
class State:
    """The adapters and all else that the sums gave.

    `core` float64 [d]; `personas` [K, d] as offsets from the global core; optimiser velocities; `persona_counts` [K]
    the noisy number of members of each persona in its last round, `count_deviation` the deviation of its noise;
    `centroids` [K, e]; `words` [K, V] noisy counts of people, over `word_counts` [K] noisy members; `figures` [K or 1,
    M] the mean of the evaluation's figures, `figure_counts` their noisy members; `retriever` [rank^2]; `events` what
    became of personas, in order; `best` what private figures liked best, where the plan chooses a round. `curvature`,
    where there is one, shortens steps along steep directions.
    """

    core: Vector
    velocity: Vector
    personas: Vector
    persona_velocity: Vector
    persona_counts: Vector
    count_deviation: float = 0.0
    centroids: Vector = field(default_factory=lambda: np.zeros((0, 0)))
    words: Vector = field(default_factory=lambda: np.zeros((0, 0)))
    word_counts: Vector = field(default_factory=lambda: np.zeros(0))
    word_deviation: float = 0.0
    figures: Vector = field(default_factory=lambda: np.zeros((0, len(METRICS))))
    figure_counts: Vector = field(default_factory=lambda: np.zeros(0))
    retriever: Vector = field(default_factory=lambda: np.zeros(0))
    directions: Vector = field(default_factory=lambda: np.zeros((0, 0)))
    curvature: Curvature | None = None
    events: tuple[Event, ...] = ()
    best: Best | None = None

    def rows(self, step: Step) -> Vector:
        """Return what the devices start from, float64 [rows, numbers], as `privacy.objective` lays it out."""
        if step.purpose == "train.global":
            return self.core[None]
        if step.purpose == "cluster.persona":
            return self.centroids
        if step.purpose == "train.retriever":
            return np.concatenate([self.retriever, self.directions.ravel()])[None]
        each = self.core[None] + self.personas
        if step.purpose == "measure.adapters":
            return np.concatenate([self.core[None], each])
        return np.concatenate([each, self.centroids], axis=1) if step.choice == NEAREST else each


def first_state(plan: CampaignPlan, public: Public | None = None) -> State:
    """Return the state before round 0: a zero global core, personas and centroids apart so that a choice exists."""
    arrays = public.arrays if public is not None else {}
    rng = np.random.default_rng([plan.seed, 1])
    zero = np.zeros(plan.slot_dim)
    personas = plan.persona_start * _directions(rng, plan.personas, plan.slot_dim)
    start = _orthonormal if plan.personas <= plan.portrait_dim else _directions  # fewer bad ends than random ones
    centroids = start(np.random.default_rng([plan.seed, 8]), plan.personas, plan.portrait_dim)
    frozen = _orthonormal(np.random.default_rng([plan.seed, 9]), plan.retriever_rank, plan.encoder_dim)
    return State(
        zero,
        zero.copy(),
        personas,
        np.zeros_like(personas),
        np.zeros(plan.personas),
        centroids=arrays.get("centroids", centroids) if plan.clustering else np.zeros((0, 0)),
        retriever=np.zeros(plan.retriever_rank**2 if plan.retriever_rounds else 0),
        directions=arrays.get("directions", frozen) if plan.retriever_rounds else np.zeros((0, 0)),
        curvature=Curvature(arrays[DIRECTIONS], arrays[STEEPNESS]) if DIRECTIONS in arrays else None,
    )


def advanced(plan: CampaignPlan, state: State, result: RoundSum) -> State:
    """Return the state after one more sum."""
    query = result.query
    slots, weights = query.split(result.mean)
    if query.purpose == "train.global":
        share_left = plan.share_left(query.round)
        core, velocity = plan.optimizer.step(state.core, state.velocity, _flat(plan, state, slots[0]), share_left)
        return replace(state, core=core, velocity=velocity)
    if query.purpose == "train.retriever":
        return replace(state, retriever=state.retriever + plan.retriever_rate * slots[0] / query.figure)
    share = weights / float(query.weight) if weights is not None else np.ones(1)
    if query.purpose == "train.persona":
        return _personas_moved(plan, state, result, slots, share)
    members, deviation = share * result.survivors, count_deviation(query, result.survivors)
    if query.purpose == "cluster.persona":
        return _clustered(plan, state, result, slots, share)
    if query.purpose == "describe.persona":
        words = slots * result.survivors / query.figure
        return replace(state, words=words, word_counts=members, word_deviation=deviation * _figure_noise(query))
    figures = slots * METRICS_NORM / query.figure / _counted(query, share, result.survivors)[:, None]
    measured = replace(state, figures=figures, figure_counts=members)
    return _better(measured, query.round) if plan.choose_round else measured


def _better(state: State, number: int) -> State:
    """Return the state with the present adapters as its best, if their loss over all members is less."""
    members = np.maximum(state.figure_counts, 0.0)
    if not members.any():
        return state
    column = METRICS.index("loss_chosen")
    loss = LOSS_UNIT * float(members @ state.figures[:, column] / members.sum())
    if state.best is not None and state.best.loss <= loss:
        return state
    return replace(state, best=Best(loss, state.core, state.personas, number))


def _flat(plan: CampaignPlan, state: State, mean: Vector) -> Vector:
    return state.curvature.flattened(mean, plan.curvature_damping) if state.curvature else mean


def _personas_moved(plan: CampaignPlan, state: State, result: RoundSum, slots: Vector, share: Vector) -> State:
    query = result.query
    scale = 1.0 / _safe(query, share)
    means = np.array([_flat(plan, state, slot) for slot in slots * scale[:, None]])
    personas, velocity = plan.persona_optimizer.step(state.personas, state.persona_velocity, means)
    counts, deviation = share * result.survivors, count_deviation(query, result.survivors)
    rng = np.random.default_rng([plan.seed, 10, query.round])
    personas, events = tended(personas, counts, deviation, plan.persona_floor, plan.persona_start, rng)
    return replace(
        state,
        personas=personas,
        persona_velocity=velocity,
        persona_counts=counts,
        count_deviation=deviation,
        events=state.events + tuple(replace(event, round=query.round) for event in events),
    )


def _clustered(plan: CampaignPlan, state: State, result: RoundSum, slots: Vector, share: Vector) -> State:
    """One step of k-means: each centroid becomes the noisy mean of its members, shrunk by what noise added to it."""
    query = result.query
    safe = _counted(query, share, result.survivors)
    noise = query.sigma / (query.scale * np.sqrt(result.survivors)) / query.figure if query.private else 0.0
    means = shrunk(slots / query.figure / safe[:, None], noise / safe)
    counts, deviation = share * result.survivors, count_deviation(query, result.survivors)
    rng = np.random.default_rng([plan.seed, 11, query.round])
    means, events = tended(means, counts, deviation, plan.persona_floor, 0.05, rng)
    named = tuple(replace(event, round=query.round) for event in events)
    return replace(
        state, centroids=means, persona_counts=counts, count_deviation=deviation, events=state.events + named
    )


def _safe(query: Query, share: Vector) -> Vector:
    """Return shares that a step may be divided by: noisy counts, so a small slot is never blown up beyond K-fold."""
    return np.maximum(share, 1.0 / query.slots)


def _counted(query: Query, share: Vector, survivors: int) -> Vector:
    """Return shares that a mean may be divided by: at least one person, and two deviations of the count's noise."""
    return np.maximum(share, max(1.0, 2 * count_deviation(query, survivors)) / survivors)


def _figure_noise(query: Query) -> float:
    return float(query.weight) / query.figure


def _directions(rng: np.random.Generator, number: int, dim: int) -> Vector:
    directions = rng.standard_normal((number, dim))
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return directions / np.where(norms > 0, norms, 1)


def _orthonormal(rng: np.random.Generator, number: int, dim: int) -> Vector:
    q, _ = np.linalg.qr(rng.standard_normal((dim, min(number, dim))))
    return np.ascontiguousarray(q.T)
