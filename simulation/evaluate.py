"""The arms of an evaluation, scored person by person on the same raw tokens of held-out documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulation.host import Call, Hosts
from simulation.metrics import Score
from simulation.progress import Progress
from simulation.retrieval_score import Ranked

Vector = NDArray[np.float64]
Scored = dict[str, list[Score]]


@dataclass
class Evaluation:
    """Scores by arm, the record-level guarantee of every `own_record_dp` adapter, questions put to the retriever."""

    arms: Scored = field(default_factory=dict)
    ranked: list[Ranked] = field(default_factory=list)
    record: list[dict[str, Any]] = field(default_factory=list)

    def add(self, user: str, scores: Mapping[str, Sequence[tuple[str, float, int]]]) -> None:
        """Take one person's scores."""
        for arm, rows in scores.items():
            self.arms.setdefault(arm, []).extend(Score(user, document, nats, n) for document, nats, n in rows)


def score_everybody(
    pool: Hosts, users: Sequence[str], arms: Mapping[str, Vector], into: Evaluation, progress: Progress
) -> None:
    """Score the shared arms (flat cores by name) for all `users`."""
    with progress.task("scoring held-out conversations", len(users)) as step:

        def done(user: str, scores: Any) -> None:
            into.add(user, scores)
            step()

        pool.run([(user, ("score", (user, dict(arms)))) for user in users], done)


def score_personas(
    pool: Hosts,
    users: Sequence[str],
    core: Vector,
    personas: Sequence[Vector],
    into: Evaluation,
    centroids: Vector | None = None,
) -> dict[str, int]:
    """Score the arm `persona`: each person under the persona that fits their own history; return who chose which.

    What fits is what the campaign went by: the least loss, or with `centroids` [K, e] the nearest of them.

    The assignment exists in simulation alone: in a campaign it never leaves the device.
    """
    candidates = [core + persona for persona in personas]
    chosen: dict[str, int] = {}
    pool.run([(user, ("choose", (user, candidates, centroids))) for user in users], chosen.__setitem__)
    calls = [(user, ("score", (user, {"persona": candidates[chosen[user]]}))) for user in users]
    pool.run(calls, into.add)
    return chosen


def score_mixtures(
    pool: Hosts,
    users: Sequence[str],
    core: Vector,
    personas: Sequence[Vector],
    into: Evaluation,
    centroids: Vector | None = None,
) -> dict[str, Vector]:
    """Score the arm `mixture`: each person under the composition that their device finds; return all shares [K].

    The shares exist in simulation alone: in a campaign they never leave the device.
    """
    found: dict[str, Vector] = {}
    pool.run([(user, ("compose", (user, core, list(personas), centroids))) for user in users], found.__setitem__)
    offsets = np.array(personas)
    calls = [(user, ("score", (user, {"mixture": core + found[user] @ offsets}))) for user in users]
    pool.run(calls, into.add)
    return found


def score_retriever(pool: Hosts, users: Sequence[str], core: Vector, directions: Vector, into: Evaluation) -> None:
    """Rank each person's history for questions of their test text under the core [r, r], and frozen, see `ranked`."""
    found: dict[str, list[Ranked]] = {}
    pool.run([(user, ("rank", (user, core, directions))) for user in users], found.__setitem__)
    into.ranked.extend(each for user in users for each in found[user])


def score_own(
    pool: Hosts, users: Sequence[str], core: Vector, into: Evaluation, progress: Progress, *, record: bool = True
) -> None:
    """Train own adapters, with `record` also under record-level privacy; score own, all, retrieval, wrong person.

    The wrong person of each is the next in the list, so every adapter is scored once on another's text; a single
    person has none.
    """
    own: dict[str, Any] = {}
    guarded: dict[str, Any] = {}
    with progress.task("own adapters", (1 + record) * len(users)) as step:

        def keep(into_adapters: dict[str, Any]) -> Any:
            def done(user: str, result: tuple[Any, dict[str, Any] | None]) -> None:
                into_adapters[user], guarantee = result
                if guarantee is not None:
                    into.record.append(guarantee)
                step()

            return done

        pool.run([(user, ("train_own", (user, core, False))) for user in users], keep(own))
        if record:
            pool.run([(user, ("train_own", (user, core, True))) for user in users], keep(guarded))
    wrong = {user: users[(i + 1) % len(users)] for i, user in enumerate(users)}
    calls: list[tuple[str, Call]] = []
    with progress.task("scoring own adapters", len(users)) as step:

        def scored(user: str, scores: Any) -> None:
            into.add(user, scores)
            step()

        for user in users:
            arms = {"wrong_person": own[wrong[user]]} if wrong[user] != user else {}
            arms |= {"own_record_dp": guarded[user]} if record else {}
            calls.append((user, ("score_person", (user, core, own[user], arms))))
        pool.run(calls, scored)


def scrubbing_cost(
    pool: Hosts, users: Sequence[str], first_query: bytes, zero: Vector, clip: float
) -> tuple[float, float] | None:
    """Return bits per token of one noiseless step from raw text and from scrubbed text, on the same people's test text.

    Both steps are the mean of the same people's clipped updates of the first round; only the scrubbing differs.
    """
    raw: dict[str, Vector] = {}
    scrubbed: dict[str, Vector] = {}
    pool.run([(user, ("unscrubbed_update", (user, first_query, zero))) for user in users], raw.__setitem__)
    pool.run([(user, ("scrubbed_update", (user, first_query, zero))) for user in users], scrubbed.__setitem__)
    both = Evaluation()
    arms = {"raw": clipped_mean(list(raw.values()), clip), "scrubbed": clipped_mean(list(scrubbed.values()), clip)}
    pool.run([(user, ("score", (user, arms))) for user in users], both.add)
    bits = {arm: sum(s.nats for s in rows) / sum(s.tokens for s in rows) / np.log(2) for arm, rows in both.arms.items()}
    return (float(bits["raw"]), float(bits["scrubbed"])) if bits else None


def clipped_mean(updates: Sequence[Vector], clip: float) -> Vector:
    """Return the mean of updates, each clipped to norm `clip`."""
    norms = [max(float(np.linalg.norm(u)), 1e-30) for u in updates]
    mean: Vector = np.mean([u * min(1.0, clip / n) for u, n in zip(updates, norms, strict=True)], axis=0)
    return mean
