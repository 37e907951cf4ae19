"""Layer 2: neighbouring people, and how far one of them can move an answer, or anything else that leaves a device.

    max |x|_2 / S   over what a device answers without noise (transport `off`, integers, exact),   must be at most 1
    max |x|_2 / S   seen through masks and little noise, for the path that real answers take,       the same

The neighbour of a person is the same cohort with zeros in the person's place. Beside the vector nothing may depend on
the person's data: not a length, not a byte, not a line of the ledger. What is not a number is refused; a charge stands
before the work; one question has one answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.audit.bounds import quantile
from privacy.errors import ConfideError
from privacy.ledger import read_ledger
from privacy.objective import CHOICES, NEAREST, OBJECTIVES, TRAINS_A_RETRIEVER
from privacy.query import Query
from privacy.wire import Refusal, RefusalCode, decode
from simulation.mechanism.layer import Check, Layer, guarded
from simulation.mechanism.people import People, Vector, layout_of, one_hot
from simulation.mechanism.text import scrubbed_text

LITTLE_NOISE = Fraction(1, 50)
SLACK = 1e-9  # of the float in which an exact integer norm is shown


@dataclass(frozen=True)
class Size:
    """How much the layer looks at: `people` with `inputs` random updates each, four cores of `rank`; text or not."""

    people: int = 10
    rank: int = 32
    inputs: int = 60
    rounds: int = 8
    text: bool = True


def sensitivity(folder: Path, root: bytes, size: Size, false_alarm: float) -> Layer:
    """Return the layer. Only `through the sum` rests on chance, at the rate `false_alarm`; all else is exact."""
    started = time.monotonic()
    seen: list[float] = []
    layout = layout_of(size.rank)
    with People(folder / "sensitivity", size.people, layout, root) as people:
        checks = guarded("answers without noise", lambda: _exact(people, size, seen))
        checks += guarded("slots", lambda: _slots(people, seen))
        checks += guarded("objectives", lambda: _objectives(people, seen))
        checks += guarded("what is not a number", lambda: _not_numbers(people))
        checks += guarded("through the sum", lambda: _through_the_sum(people, size, false_alarm))
        checks += guarded("others", lambda: _others(people))
        checks += guarded("asked again", lambda: _asked_again(people))
        checks += guarded("charge first", lambda: _charge_first(people))
    checks += guarded("neighbours", lambda: _nothing_else(folder, root, size))
    checks += guarded("budget", lambda: _past_budget(folder, root, size))
    if size.text:
        checks += guarded("scrub", lambda: [scrubbed_text(folder / "text")])
    return Layer(
        name="sensitivity",
        quantity="largest norm of an answer, in units of the clip",
        lower_bound=max(seen, default=0.0),
        claimed=1.0,
        ceiling=None,
        power=f"exact in integers over {len(seen)} updates; says nothing of updates that were not tried",
        false_alarm=false_alarm,
        checks=tuple(checks),
        seconds=time.monotonic() - started,
    )


def hard_updates(dim: int, sites: int, query: Query) -> Iterator[Vector]:
    """Yield updates that a clip gets wrong if it can: huge, tiny, at the clip, in one core, in every core, in batches.

    And ones that rounding lengthens: every coordinate a little above one half of a unit.
    """
    clip, unit, flat = float(query.clip_norm), 1 / query.scale, np.ones(dim) / math.sqrt(dim)
    for length in (0.0, 5e-324, 1e-300, 1e-12, clip * (1 - 1e-12), clip, clip * (1 + 1e-12), 1.0, 1e30, 1e154, 1e300):
        yield flat * length
        yield one_hot(dim, dim // 2, length)
        yield one_hot(dim, 0, -length)
    each = dim // sites
    for used in range(1, sites + 1):  # every core at the clip: together sqrt(cores) times too long
        vector = np.zeros(dim)
        vector[: used * each] = clip / math.sqrt(each)
        yield vector
    level = clip / math.sqrt(dim)
    yield np.full(dim, (math.floor(level / unit) + 0.5000001) * unit)
    yield np.where(np.arange(dim) % 2, -1.0, 1.0) * level
    for documents in (2, 16, 1000):  # what many documents add up to before the one clip of the whole
        yield flat * clip * documents


def norm_in_clips(vector: NDArray[np.int64], query: Query) -> float:
    """Return |x|_2 / S of an answer; above 1 exactly where the integers say so, whatever floats round to."""
    squares = sum(int(value) ** 2 for value in vector)
    ratio = math.sqrt(squares) / query.integer_clip
    if squares > query.integer_clip**2:
        return max(ratio, 1 + SLACK)
    return min(ratio, 1.0)


def _exact(people: People, size: Size, seen: list[float]) -> Iterator[Check]:
    rng, number, user = np.random.default_rng(21), 0, people.users[0]
    first = people.query(0, transport="off")
    tried = list(hard_updates(people.layout.dim, len(people.layout.sites), first))
    for _ in range(size.inputs):
        direction = rng.normal(size=people.layout.dim) * rng.choice([1.0, 0.0], size=people.layout.dim)
        tried.append(direction * 10.0 ** rng.uniform(-8, 8))
    for number, update in enumerate(tried):
        query = people.query(number, transport="off")
        seen.append(norm_in_clips(people.integers(user, query, update), query))
    worst = max(seen)
    yield Check("clip of an answer", worst <= 1, f"largest |x| is {worst:.6f} clips over {len(tried)} updates")
    inside = rng.normal(size=people.layout.dim)
    inside *= float(first.clip_norm) / 4 / np.linalg.norm(inside)
    query = people.query(number + 1, transport="off")
    given = people.integers(user, query, inside)
    right = bool(np.array_equal(given, np.rint(inside * query.scale)))
    yield Check("an update inside the clip", right, "is answered as it is" if right else "is not answered as it is")


def _slots(people: People, seen: list[float]) -> Iterator[Check]:
    slots, user, norms = 3, people.users[1], list[float]()
    for number, length in enumerate((0.0, 0.01, 0.0968, 0.1, 1.0, 1e9)):
        query = people.query(1000 + number, slots=slots, transport="off")
        people.learner.slot_of = {user: number % slots}
        update = np.full(people.layout.dim, length / math.sqrt(people.layout.dim))
        norms.append(norm_in_clips(people.integers(user, query, update), query))
    people.learner.slot_of = {}
    seen += norms
    yield Check("clip over all slots", max(norms) <= 1, f"largest |x|, weights included, is {max(norms):.6f} clips")


def _objectives(people: People, seen: list[float]) -> Iterator[Check]:
    """Check the clip for everything that a device may be asked to compute, however it chooses its slot."""
    user, norms, asked = people.users[1], dict[str, float](), 1500
    people.learner.slot_of = {user: 1}
    for objective, purposes in OBJECTIVES.items():
        if objective in TRAINS_A_RETRIEVER:  # a retriever starts from rows of another shape; the clip is the same code
            continue
        for choice in CHOICES:
            for length in (0.05, 1e9):
                asked += 1
                slots = 1 if "persona" not in purposes[-1] else 2
                people.tail = int(choice == NEAREST)
                query = people.query(
                    asked, transport="off", objective=objective, purpose=purposes[-1], choice=choice, slots=slots
                )
                update = np.full(people.layout.dim, length / math.sqrt(people.layout.dim))
                name = f"{objective}, {choice}"
                norm = norm_in_clips(people.integers(user, query, update), query)
                norms[name] = max(norms.get(name, 0.0), norm)
    people.learner.slot_of, people.tail = {}, 0
    seen += norms.values()
    worst = max(norms, key=lambda name: norms[name])
    detail = f"largest |x| over {len(norms)} objectives and choices is {norms[worst]:.6f} clips ({worst})"
    yield Check("clip of every objective", norms[worst] <= 1, detail)


def _not_numbers(people: People) -> Iterator[Check]:
    """Check that NaN and infinity, anywhere, make a refusal with the one code that says nothing."""
    user, dim, said = people.users[2], people.layout.dim, list[str]()
    for number, bad in enumerate((math.nan, math.inf, -math.inf)):
        for many, update in (("one", one_hot(dim, 3, bad)), ("all", np.full(dim, bad))):
            query = people.query(2000 + 10 * number + len(many), transport="off")
            message = _message(people.reply(user, query, update))
            if not isinstance(message, Refusal) or message.code != RefusalCode.UNABLE:
                said.append(f"{bad} in {many}")
    yield Check("what is not a number", not said, f"answered: {', '.join(said)}" if said else "is refused, all 6")


def _through_the_sum(people: People, size: Size, false_alarm: float) -> Iterator[Check]:
    """Check the clip on the path of a real answer: masked sums with little noise, everybody a million clips long."""
    users, dim, rows = people.users, people.layout.dim, list[Vector]()
    signs = [np.where(np.arange(dim) & 1 << i, -1.0, 1.0) / math.sqrt(dim) for i in range(len(users))]
    for number in range(size.rounds):
        query = people.query(3000 + number, noise_multiplier=LITTLE_NOISE)
        clip = float(query.clip_norm)
        told = people.sum(query, {user: 1e6 * clip * row for user, row in zip(users, signs, strict=True)})
        rows.append(np.array([row @ told.total for row in signs]) / query.integer_clip)
    found = np.mean(rows, axis=0)
    noise = float(LITTLE_NOISE) * math.sqrt(len(users) / query.cohort.honest / size.rounds)
    limit = 1 + noise * quantile(1 - false_alarm / len(users))
    worst = float(found.max())
    detail = f"largest |x| is {worst:.4f} clips, with the noise up to {limit:.4f}"
    yield Check("clip through the sum", worst <= limit and float(found.min()) > 0.8, detail)


def _others(people: People) -> Iterator[Check]:
    """Check that a person's neighbours answer the same whatever the person's data is: sums differ by one answer."""
    users, dim = people.users, people.layout.dim
    inside = {user: one_hot(dim, i, 0.01) for i, user in enumerate(users)}
    query = people.query(4000, transport="off")
    given = {user: people.integers(user, query, inside[user]) for user in users}
    wrong = [user for i, user in enumerate(users) if given[user][i] != round(0.01 * query.scale)]
    wrong += [user for user in users if np.count_nonzero(given[user]) != 1]
    yield Check("sum of answers", not wrong, f"{len(users) - len(set(wrong))} of {len(users)} answer their own update")


def _asked_again(people: People) -> Iterator[Check]:
    """Check that one question has one answer, byte for byte, and one charge, though training came out differently."""
    user, dim = people.users[3], people.layout.dim
    query, before = people.query(5000, transport="ideal"), people.charged(people.users[3])
    replies = {people.reply(user, query, one_hot(dim, 0, 0.01 * (1 + again))) for again in range(4)}
    cost = people.charged(user) - before
    holds = len(replies) == 1 and cost == query.rho
    yield Check("asked again", holds, f"{len(replies)} different answers to one question asked four times, rho {cost}")


def _charge_first(people: People) -> Iterator[Check]:
    """Check that the charge is on the disk when a device begins to train, masked and in the clear."""
    user, late = people.users[4], list[str]()

    def look(who: str, query: Query) -> None:
        path = people.folder / "ledger" / f"{who}.jsonl"
        if who == user and query.event_id(who).hex() not in read_ledger(path).account.reservations:
            late.append(query.transport)

    people.learner.looks_on = look
    people.sum(people.query(6000), {})
    people.answer(user, people.query(6001, transport="ideal"), np.zeros(people.layout.dim))
    people.learner.looks_on = lambda who, query: None
    yield Check("charge first", not late, f"trained before it was charged: {late}" if late else "before any work")


def _nothing_else(folder: Path, root: bytes, size: Size) -> Iterator[Check]:
    """Check that two people alike in all but their data send and note the same, but for vector, hash and signature."""
    sides = []
    for side, length in (("a", 0.0), ("b", 5.0)):
        with People(folder / f"neighbour-{side}", 6, layout_of(size.rank), root) as people:
            user, update = people.users[0], np.full(people.layout.dim, length)
            clear = people.query(0, transport="ideal")
            answer = people.reply(user, clear, update)
            sizes = [len(frame) for frame in _masked_frames(people, user, update)]
            entries = [(entry.kind, dict(entry.body)) for entry in people.devices[user].ledger.entries()]
            vector = 4 * clear.dim
            bare = answer[: -64 - 1 - vector], answer[-65:-64], len(answer), isinstance(_message(answer), Refusal)
            sides.append((_without_head(bare), sizes, entries))
    for name, place in (("frame of an answer", 0), ("lengths in a private sum", 1), ("lines of the ledger", 2)):
        same = sides[0][place] == sides[1][place]
        yield Check(name, same, "do not depend on the data" if same else "depend on the data")
    whole = all(_readable(side) for side in sides)
    yield Check("answers on the wire", whole, "hold what the protocol names" if whole else "hold more than it names")


def _masked_frames(people: People, user: str, update: Vector) -> tuple[bytes, ...]:
    return people.sum(people.query(1), {user: update}).frames[user]


def _without_head(bare: tuple[bytes, bytes, int, bool]) -> tuple[bytes, bytes, int, bool]:
    """Drop the hash of the device's ledger, which holds the time: after magic, kind and the hash of the query."""
    start = len(b"confide") + 2 + 32
    return bare[0][:start] + bare[0][start + 32 :], *bare[1:]


def _readable(side: tuple[Any, list[int], Any]) -> bool:
    return not side[0][3] and len(side[1]) == 5


def _past_budget(folder: Path, root: bytes, size: Size) -> Iterator[Check]:
    """Check that past its budget a device refuses before it trains, draws or stores anything."""
    with People(folder / "budget", 3, layout_of(size.rank), root, budget_rho=Fraction(1, 2)) as people:
        user, update = people.users[0], np.zeros(people.layout.dim)
        people.answer(user, people.query(0, transport="ideal"), update)
        kept = set((people.folder / "answers" / user).iterdir())
        trained: list[str] = []
        people.learner.looks_on = lambda who, query: trained.append(who)
        message = _message(people.reply(user, people.query(1, transport="ideal"), update))
        refused = isinstance(message, Refusal) and message.code == RefusalCode.BUDGET
        touched = bool(trained) or set((people.folder / "answers" / user).iterdir()) != kept
        spent = people.charged(user)
    said = "refused" if refused else "answered"
    detail = f"{said}, {'after' if touched else 'before'} any work; rho {spent} of 1/2 spent"
    yield Check("past the budget", refused and not touched and spent == Fraction(1, 2), detail)


def _message(frame: bytes) -> object:
    try:
        return decode(frame)
    except ConfideError:
        return None
