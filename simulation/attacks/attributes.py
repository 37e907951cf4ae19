"""A trait of a person, told from text raw and scrubbed, and from the update that a server holds, bare and masked.

Takes a file of people and one of their true traits; nothing of either is in this repository. The attacker knows the
trait of everybody but one and guesses that one's (leave one out): by words, naive Bayes; by updates, ridge regression.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privacy.errors import ConfigError
from privacy.fixedpoint import from_ring
from simulation.attacks.federation import Federation, Training, document
from simulation.attacks.inversion import masked_vector
from simulation.attacks.outcome import Attack, allowed_guess, share
from simulation.attacks.tiny import Maker, tiny_model
from simulation.mechanism.people import Vector

Scrub = Callable[[Sequence[str]], list[str]]
MIN_WORDS = 2  # a word that fewer people use says nothing of others


@dataclass(frozen=True)
class Size:
    """How much of each person's text is in the update: so many documents of so many characters, on cores of `rank`."""

    rank: int = 16
    documents: int = 12
    characters: int = 120


@dataclass(frozen=True)
class Traits:
    """People's texts, and for each whether the trait is above its median (or is the commonest value)."""

    texts: Mapping[str, tuple[str, ...]]
    holds: NDArray[np.bool_]
    name: str


def read_traits(people: Path, profiles: Path, trait: str, most: int = 128) -> Traits:
    """Return the first `most` people of `people` (user, text a line) with `trait` from `profiles` (user, profile)."""
    try:
        known = {row["user"]: row["profile"].get(trait) for row in map(json.loads, profiles.read_text().splitlines())}
        texts: dict[str, list[str]] = {}
        for row in map(json.loads, people.read_text().splitlines()):
            if known.get(row["user"]) is not None:
                texts.setdefault(row["user"], []).append(str(row["text"]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{people.name}, {profiles.name}: lines of user and text, of user and profile") from error
    chosen = {user: tuple(own) for user, own in list(texts.items())[:most]}
    values = [known[user] for user in chosen]
    if len(chosen) < 10:
        raise ConfigError(f"{people.name}: fewer than ten people whose {trait} is known")
    numbers = all(isinstance(value, int | float) for value in values)
    middle = float(np.median(values)) if numbers else Counter(values).most_common(1)[0][0]
    holds = np.array([value > middle if numbers else value == middle for value in values])
    return Traits(chosen, holds, f"{trait} {'above' if numbers else 'is'} {middle}")


def attack_traits(
    folder: Path, root: bytes, traits: Traits, scrub: Scrub, size: Size = Size(), make: Maker = tiny_model
) -> list[Attack]:
    """Return both attacks. Scrubbing has no epsilon: its attack states what it is worth and cannot be violated."""
    count, chance = len(traits.holds), max(float(traits.holds.mean()), 1 - float(traits.holds.mean()))
    raw = [" ".join(own) for own in traits.texts.values()]
    clean = [" ".join(scrub(own)) for own in traits.texts.values()]
    what = f"told ({traits.name})"
    words = Attack(
        "trait-text",
        "a trait from text, raw and scrubbed",
        share(int((by_words(raw, traits.holds) == traits.holds).sum()), count, what),
        share(int((by_words(clean, traits.holds) == traits.holds).sum()), count, f"{what}, scrubbed"),
        chance,
        1.0,
        "nothing bounds this: text stays on its device, and no ε covers it",
    )
    bare, masked, mu = _updates(folder, root, traits, size, make)
    allowed = allowed_guess(2 * mu, chance)
    updates = Attack(
        "trait-update",
        "a trait from one update",
        share(int((by_ridge(bare, traits.holds) == traits.holds).sum()), count, f"{what}, bare update"),
        share(int((by_ridge(masked, traits.holds) == traits.holds).sum()), count, f"{what}, masked vector"),
        chance,
        allowed,
        f"allowed up to {allowed:.2f} by mu = {mu:.2f}",
    )
    return [words, updates]


def _updates(folder: Path, root: bytes, traits: Traits, size: Size, make: Maker) -> tuple[Vector, Vector, float]:
    """Return what a server holds of everybody, bare and masked, float64 [people, dim], and mu of the masked round."""
    model = make(folder / "model", size.rank)
    assert model.layout is not None
    texts = {user: _cut(" ".join(own), size) for user, own in traits.texts.items()}
    training = Training(rounds=1, steps=1, noise_multiplier=Fraction(4))
    federation = Federation(folder / "federation", model, texts, root, training)
    cores = model.layout.unflatten(np.zeros(model.layout.dim))
    try:
        clear = federation.query(0, cores, protected=False)
        users = federation.people.users
        bare = np.stack([from_ring(federation.people.answer(u, clear, np.zeros(0)).vector) for u in users])
        told = federation.people.sum(federation.query(1, cores, protected=True), {})
        masked = np.stack([masked_vector(told.frames[user]) for user in users])
        return bare.astype(np.float64), masked, federation.mu()
    finally:
        federation.close()


def _cut(text: str, size: Size) -> list[str]:
    """Return the text's first documents."""
    last = min(len(text), size.characters * size.documents)
    return [text[at : at + size.characters] for at in range(0, last, size.characters)]


def by_words(texts: Sequence[str], holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the guess for each text by naive Bayes over which words it has, all other texts known."""
    rows = [set("".join(c if c.isalnum() else " " for c in text.lower()).split()) for text in texts]
    counts = Counter(word for row in rows for word in row)
    places = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n >= MIN_WORDS))}
    has = np.zeros((len(texts), max(1, len(places))))
    for i, row in enumerate(rows):
        has[i, [places[word] for word in row if word in places]] = 1
    sums, sizes = np.stack([has[~holds].sum(axis=0), has[holds].sum(axis=0)]), np.array([(~holds).sum(), holds.sum()])
    guesses = []
    for mine, side in zip(has, holds.astype(int), strict=True):
        own = np.eye(2)[side]
        rate = (sums - own[:, None] * mine + 0.5) / (sizes - own + 1)[:, None]
        scores = np.log(rate) @ mine + np.log1p(-rate) @ (1 - mine) + np.log(sizes - own)
        guesses.append(bool(scores[1] > scores[0]))
    return np.array(guesses)


def by_ridge(rows: Vector, holds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the guess for each row by ridge regression on directions, all other rows known (closed form)."""
    directions = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    centred = directions - directions.mean(axis=0)
    gram = centred @ centred.T
    weight = gram @ np.linalg.inv(gram + 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram))) + 1 / len(gram)
    target = np.where(holds, 1.0, -1.0)
    own = np.diag(weight)
    guesses: NDArray[np.bool_] = (weight @ target - own * target) / (1 - own) > 0
    return guesses


def scrubbed(texts: Sequence[str]) -> list[str]:
    """Return texts as training would see them, through the device's own scrubber."""
    from client.documents import Person
    from client.scrub import scrub_person  # loads a tagger

    documents = tuple(document(f"text-{i}", text) for i, text in enumerate(texts))
    return [each.text for each in scrub_person(Person("person", documents))[0].history]
