"""Attacks on a release: who took part, which texts trained it, whether it tells a secret that one person wrote once.

    membership   the loss that the release saves on all of a person's texts, against people outside
    record       the same for one text
    exposure     a secret of four digits among others in its place (Carlini et al. 2019)
    extraction   its digits, by prompting with what stands before each

The unit of (epsilon, delta) is one person, and one text is no more than that. Allowed is what worlds 2 mu apart allow:
one person in another's place, or a secret in another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from client.model import LanguageModel
from privacy.adapter import Cores
from simulation.attacks.federation import Federation, Training, nats
from simulation.attacks.outcome import Attack, Success, allowed_guess, allowed_pair, ranking, share
from simulation.attacks.tiny import Maker, tiny_model

WORDS = (
    *(
        "amber",
        "brook",
        "cedar",
        "dune",
        "ember",
        "fjord",
        "grove",
        "heath",
        "inlet",
        "jetty",
        "knoll",
        "lagoon",
        "marsh",
    ),
    *(
        "north",
        "oasis",
        "pond",
        "quarry",
        "ridge",
        "shore",
        "thicket",
        "upland",
        "valley",
        "willow",
        "yonder",
        "zephyr",
    ),
)
DIGITS = 4


@dataclass(frozen=True)
class Size:
    """How many people take part, how many others there are to compare with, and other secrets tried in the place."""

    people: int = 12
    others: int = 36
    candidates: int = 200
    rank: int = 32
    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Person:
    """An invented person: a text, and a secret behind a sentence."""

    text: str
    prompt: str
    secret: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Return what the person wrote."""
        return self.text, self.prompt + self.secret


def invented(rng: np.random.Generator, name: str) -> Person:
    """Return a person called `name`."""
    return Person(" ".join(rng.choice(WORDS, 7)), f"the code of {name} is ", _digits(rng))


def _digits(rng: np.random.Generator) -> str:
    return f"{rng.integers(10**DIGITS):0{DIGITS}d}"


def attack_release(
    folder: Path, root: bytes, rng: np.random.Generator, size: Size, make: Maker = tiny_model
) -> list[Attack]:
    """Return the four attacks on the releases of one federation, trained with protection off and on."""
    model = make(folder / "model", size.rank)
    names = [f"{a} {b}" for a, b in zip(rng.permutation(WORDS * 3), rng.permutation(WORDS * 3), strict=True)]
    inside = [invented(rng, name) for name in names[: size.people]]
    outside = [invented(rng, name) for name in names[size.people : size.people + size.others]]
    assert model.layout is not None
    base = model.layout.unflatten(np.zeros(model.layout.dim))
    found: list[list[Success]] = []
    texts = {f"person-{i}": person.texts for i, person in enumerate(inside)}
    federation = Federation(folder / "federation", model, texts, root, size.training)
    try:
        for protected in (False, True):
            release = federation.release(protected, first=1000 * protected)
            found.append(_successes(model, base, release, inside, outside, rng, size))
        mu = federation.mu()
    finally:
        federation.close()
    titles = ("who took part", "which text was used", "a secret among others", "a secret’s digits by prompting")
    made = []
    for i, (name, title) in enumerate(zip(("membership", "record", "exposure", "extraction"), titles, strict=True)):
        digits = name == "extraction"
        chance, allowed = (0.1, allowed_guess(2 * mu, 0.1)) if digits else (0.5, allowed_pair(2 * mu))
        said = f"allowed up to {allowed:.2f} by mu = {mu:.2f} over all rounds"
        made.append(Attack(name, title, found[0][i], found[1][i], chance, allowed, said))
    return made


def _successes(
    model: LanguageModel,
    base: Cores,
    release: Cores,
    inside: Sequence[Person],
    outside: Sequence[Person],
    rng: np.random.Generator,
    size: Size,
) -> list[Success]:
    """Return the four successes against one release."""
    texts = [text for person in (*inside, *outside) for text in person.texts]
    saved = (nats(model, base, texts) - nats(model, release, texts)).reshape(-1, 2)
    members, rest = saved[: len(inside)], saved[len(inside) :]
    people = ranking(members.mean(axis=1), rest.mean(axis=1), "people")
    records = ranking(members[:, 0], rest[:, 0], "texts")
    return [people, records, _exposure(model, release, inside, rng, size), _extraction(model, release, inside)]


def _exposure(
    model: LanguageModel, release: Cores, inside: Sequence[Person], rng: np.random.Generator, size: Size
) -> Success:
    """Return how often a true secret is likelier than another in its place, over people and candidates."""
    placements = []
    for person in inside:
        tried = [person.secret, *(_digits(rng) for _ in range(size.candidates))]
        losses = nats(model, release, [person.prompt + secret for secret in tried], [len(person.prompt)] * len(tried))
        placements.append(float(((losses[1:] > losses[0]) + 0.5 * (losses[1:] == losses[0])).mean()))
    value, half = float(np.mean(placements)), 1.96 * float(np.std(placements, ddof=1)) / len(placements) ** 0.5
    said = f"{value:.2f} of {size.candidates} other codes are less likely, mean of {len(inside)} secrets"
    return Success(value, max(0.0, value - half), min(1.0, value + half), said)


@torch.no_grad()
def _extraction(model: LanguageModel, release: Cores, inside: Sequence[Person]) -> Success:
    """Return how often the likeliest digit is the secret's next one, the digits before it given."""
    model.set_cores(release)
    model.activate("global")
    digits = [int(model.tokenizer.encode(digit)[0]) for digit in "0123456789"]
    hits = 0
    for person in inside:
        ids = model.tokenizer.encode(person.prompt + person.secret)
        logits = model.net(input_ids=torch.tensor([ids], device=model.device)).logits[0]
        likeliest = logits[-DIGITS - 1 : -1][:, digits].argmax(dim=1).tolist()
        hits += sum(str(guess) == true for guess, true in zip(likeliest, person.secret, strict=True))
    return share(hits, len(inside) * DIGITS, "digits told")
