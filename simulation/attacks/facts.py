"""One person's private facts reaching another, who holds nothing but the release.

Facts come from a file of profiles. The other person scores what they suspect, and ranks it: a fact of somebody who took
part against a fact of somebody who did not, by the loss that the release saves on it. That is membership of a record,
on the sentences that people would not want known.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from privacy.errors import ConfigError
from simulation.attacks.federation import Federation, nats
from simulation.attacks.outcome import Attack, Success, allowed_pair, ranking
from simulation.attacks.release import Size
from simulation.attacks.tiny import Maker, tiny_model

Facts = list[tuple[str, ...]]
EACH = 2  # facts of a person
LONGEST = 60  # characters of a fact: what a model of this size learns at all


def read_facts(profiles: Path, field: str) -> Facts:
    """Return the first facts of everybody: sentences of `field` in the profile, parted by semicolons, cut short."""
    try:
        rows = [json.loads(line)["profile"].get(field, "") for line in profiles.read_text().splitlines()]
        found = [tuple(part.strip()[:LONGEST] for part in str(row).split(";") if part.strip()) for row in rows]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{profiles.name}: lines of user and profile") from error
    return [facts[:EACH] for facts in found if len(facts) >= EACH]


def attack_facts(
    folder: Path, root: bytes, rng: np.random.Generator, facts: Facts, size: Size, make: Maker = tiny_model
) -> Attack:
    """Return the attack; raises ConfigError where there are too few people for the size."""
    if len(facts) < size.people + size.others:
        raise ConfigError(f"{len(facts)} people with {EACH} facts, the attack needs {size.people + size.others}")
    order = [facts[i] for i in rng.permutation(len(facts))]
    inside, outside = order[: size.people], order[size.people : size.people + size.others]
    model = make(folder / "model", size.rank)
    assert model.layout is not None
    base = model.layout.unflatten(np.zeros(model.layout.dim))
    texts = {f"person-{i}": own for i, own in enumerate(inside)}
    federation, found = Federation(folder / "federation", model, texts, root, size.training), list[Success]()
    scored = [fact for own in (*inside, *outside) for fact in own]
    try:
        for protected in (False, True):
            release = federation.release(protected, first=1000 * protected)
            saved = (nats(model, base, scored) - nats(model, release, scored)).reshape(-1, EACH).mean(axis=1)
            found.append(ranking(saved[: len(inside)], saved[len(inside) :], "people’s facts"))
        mu = federation.mu()
    finally:
        federation.close()
    allowed = allowed_pair(2 * mu)
    said = f"allowed up to {allowed:.2f} by mu = {mu:.2f} over all rounds"
    off, on = found
    return Attack("facts", "one person’s facts reaching another", off, on, 0.5, allowed, said)
