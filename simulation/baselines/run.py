"""The baselines of a scorecard: other people train shared LoRA in the clear, then each scored person is served with it.

federated methods   `rounds` rounds of `people` who train; served as they are (fedsa: with the person's own B)
central             one LoRA on the pooled text of all who train: no federation could have it
full                the person's own weights of the top layers, over the release's global core
local_only          the person's own LoRA over the bare base
oppu                the person's own LoRA over fedit's, as over a task adapter (Tan et al. 2024, arXiv:2402.04401)
feddpa              fedit and the own LoRA, the latter by the likeness of the text to the history
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from privacy.errors import ConfigError
from simulation.baselines.factors import CENTRAL, FEDDPA, FULL, LOCAL, METHODS, OPPU, Factors, Method, Shared, fresh
from simulation.baselines.local import Lesson, Served
from simulation.host import Call, Hosts
from simulation.progress import Progress
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.person import split_history
from simulation.scorecard.reader import Rows

RANK_SEED = 13


@dataclass(frozen=True)
class Federation:
    """Who trains, how often, and how: for all methods alike."""

    trainers: Sequence[Person]
    rank: int
    rounds: int = 2
    tokens: int = 256
    epochs: int = 1
    learning_rate: float = 1e-3
    seed: int = 0


def score_baselines(
    pool: Hosts,
    scored: Sequence[Person],
    names: Sequence[str],
    federation: Federation,
    settings: CardSettings,
    progress: Progress,
    core: NDArray[np.float64] | None = None,
) -> dict[str, dict[str, Rows]]:
    """Return the rows of every scored person and baseline; `core` is the release's flat global core, for `full`.

    Raises ConfigError where nobody is there to train.
    """
    if not federation.trainers:
        raise ConfigError("baselines need people to train who are not scored: evaluation.held_out in the run")
    shapes = pool.everywhere("part", "shapes")[0]
    wanted = [METHODS[name] for name in names if name in METHODS]
    if {OPPU, FEDDPA} & set(names) and METHODS["fedit"] not in wanted:
        wanted.append(METHODS["fedit"])
    shared = {method.name: _federated(pool, method, federation, settings, shapes, progress) for method in wanted}
    own = _own_parts(pool, scored, names, shared, federation, settings, shapes, progress)
    found: dict[str, dict[str, Rows]] = {}
    calls: list[tuple[str, Call]] = []
    everybodys = [m.name for m in wanted if m.name in names]
    if CENTRAL in names:
        shared[CENTRAL] = _central(pool, federation, settings, shapes, progress)
        everybodys.append(CENTRAL)
    for person in scored:
        served = {name: Served(shared[name].factors, shared[name].dense) for name in everybodys}
        calls.append((person.user, ("part", ("score", person.user, served | own[person.user], settings))))
    with progress.task("scoring baselines", len(calls)) as step:

        def done(user: str, rows: dict[str, Rows]) -> None:
            found[user] = rows
            step()

        pool.run(calls, done)
    if FULL in names and core is not None:
        _full(pool, [person.user for person in scored], core, settings, found, progress)
    return found


def _central(
    pool: Hosts,
    federation: Federation,
    settings: CardSettings,
    shapes: Mapping[str, tuple[int, int]],
    progress: Progress,
) -> Shared:
    """Return LoRA trained on the pooled text of all trainers, on one host, in as many passes as others have rounds."""
    start = Shared(fresh(shapes, federation.rank, np.random.default_rng([federation.seed, RANK_SEED])))
    passes = federation.rounds * federation.epochs
    lesson = Lesson(start, False, federation.tokens, passes, federation.learning_rate, federation.seed)
    texts = [split_history(person.history, settings.tuning_documents)[0] for person in federation.trainers]
    made: list[Factors] = []
    with progress.task("training centrally on everybody", 1) as step:
        one = federation.trainers[0].user
        pool.run([(one, ("part", ("pooled", texts, lesson, settings)))], lambda _, factors: made.append(factors))
        step()
    return Shared(made[0])


def _full(
    pool: Hosts,
    users: Sequence[str],
    core: NDArray[np.float64],
    settings: CardSettings,
    found: dict[str, dict[str, Rows]],
    progress: Progress,
) -> None:
    with progress.task("full fine-tuning, top layers", len(users)) as step:

        def done(user: str, rows: dict[str, Rows]) -> None:
            found[user] |= rows
            step()

        pool.run([(u, ("part", ("full", u, core, settings, i))) for i, u in enumerate(users)], done)


def _federated(
    pool: Hosts,
    method: Method,
    federation: Federation,
    settings: CardSettings,
    shapes: Mapping[str, tuple[int, int]],
    progress: Progress,
) -> Shared:
    rng = np.random.default_rng([federation.seed, RANK_SEED])
    shared = Shared(fresh(shapes, federation.rank, rng))
    kept: dict[str, Factors] = {}
    users = [person.user for person in federation.trainers]
    for number in range(federation.rounds):
        starts = {user: _start(method, shared, kept.get(user)) for user in users}
        kept = _trained(pool, starts, method, federation, settings, number, f"{method.name}, round {number}", progress)
        shared = method.combine(shared, [kept[user] for user in users], rng)
    return shared


def _start(method: Method, shared: Shared, last: Factors | None) -> Shared:
    """Return what a person begins with: the shared factors, their own B where the method leaves it to them."""
    if not method.keeps_b or last is None:
        return shared
    return Shared({m: (a, last[m][1]) for m, (a, _) in shared.factors.items()}, shared.dense)


def _trained(
    pool: Hosts,
    starts: Mapping[str, Shared],
    method: Method,
    federation: Federation,
    settings: CardSettings,
    number: int,
    label: str,
    progress: Progress,
) -> dict[str, Factors]:
    found: dict[str, Factors] = {}
    with progress.task(label, len(starts)) as step:

        def done(user: str, factors: Factors) -> None:
            found[user] = factors
            step()

        calls: list[tuple[str, Call]] = []
        for user, start in starts.items():
            rate, passes = federation.learning_rate, federation.epochs
            lesson = Lesson(start, method.freezes_a, federation.tokens, passes, rate, number)
            calls.append((user, ("part", ("train", user, lesson, settings))))
        pool.run(calls, done)
    return found


def _own_parts(
    pool: Hosts,
    scored: Sequence[Person],
    names: Sequence[str],
    shared: Mapping[str, Shared],
    federation: Federation,
    settings: CardSettings,
    shapes: Mapping[str, tuple[int, int]],
    progress: Progress,
) -> dict[str, dict[str, Served]]:
    """Return by person what is theirs alone: fedsa's B, local only, OPPU and FedDPA."""
    found: dict[str, dict[str, Served]] = {person.user: {} for person in scored}
    plain = METHODS["fedit"]
    users = [person.user for person in scored]
    if "fedsa" in names:
        starts = dict.fromkeys(users, shared["fedsa"])
        own = _trained(pool, starts, plain, federation, settings, 0, "fedsa, own B", progress)
        for user, factors in own.items():
            kept = {m: (shared["fedsa"].factors[m][0], b) for m, (_, b) in factors.items()}
            found[user]["fedsa"] = Served(kept, {})
    if LOCAL in names:
        start = Shared(fresh(shapes, federation.rank, np.random.default_rng([federation.seed, RANK_SEED])))
        own = _trained(pool, dict.fromkeys(users, start), plain, federation, settings, 0, "local only", progress)
        for user, factors in own.items():
            found[user][LOCAL] = Served(factors, {})
    if {OPPU, FEDDPA} & set(names):
        _over_fedit(pool, users, names, shared["fedit"], federation, settings, shapes, found, progress)
    return found


def _over_fedit(
    pool: Hosts,
    users: Sequence[str],
    names: Sequence[str],
    task: Shared,
    federation: Federation,
    settings: CardSettings,
    shapes: Mapping[str, tuple[int, int]],
    found: dict[str, dict[str, Served]],
    progress: Progress,
) -> None:
    """Put OPPU and FedDPA: an own LoRA over fedit's product, which then stands in the weights."""
    under = {m: b @ a for m, (a, b) in task.factors.items()}
    rng = np.random.default_rng([federation.seed, RANK_SEED, 1])
    start = Shared(fresh(shapes, federation.rank, rng), under)
    plain = METHODS["fedit"]
    own = _trained(pool, dict.fromkeys(users, start), plain, federation, settings, 0, "own over fedit", progress)
    like: dict[str, float] = {}
    if FEDDPA in names:
        pool.run([(user, ("part", ("likeness", user))) for user in users], like.__setitem__)
    for user, factors in own.items():
        if OPPU in names:
            found[user][OPPU] = Served(factors, under)
        if FEDDPA in names:
            found[user][FEDDPA] = Served(factors, under, like[user])
