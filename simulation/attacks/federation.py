"""A federation that really trains, small enough to attack: devices, texts, private sums, a server that adds means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from client.documents import Document, Span
from client.learner import TextLearner
from client.model import LanguageModel
from client.train import CoreTraining
from privacy.adapter import Cores
from privacy.fixedpoint import decode_mean, from_ring
from privacy.query import Query
from simulation.mechanism.people import People, Vector


@dataclass(frozen=True)
class Training:
    """How a federation trains; rough enough to learn by heart what a release must not hold."""

    rounds: int = 40
    step: float = 0.5
    steps: int = 2
    server_learning_rate: float = 2.0
    noise_multiplier: Fraction = Fraction(6)
    clip_norm: Fraction = Fraction(1)


class Federation:
    """People with texts on one model. `protected` False sends vectors without noise and in the clear."""

    def __init__(
        self, folder: Path, model: LanguageModel, texts: Mapping[str, Sequence[str]], root: bytes, training: Training
    ) -> None:
        assert model.layout is not None
        self.training, self.model = training, model
        self.learner = TextLearner(model, CoreTraining(training.steps, training.step), 128)
        self.people = People(folder, len(texts), model.layout, root, trained=self.learner)
        for user, own in zip(self.people.users, texts.values(), strict=True):
            self.learner.add(user, [document(f"{user}-{i}", text) for i, text in enumerate(own)])

    def query(self, number: int, cores: Cores, protected: bool, **changes: object) -> Query:
        """Return the question of round `number`, from `cores`."""
        self.people.cores = cores
        plain = {
            "transport": "masked" if protected else "off",
            "clip_norm": self.training.clip_norm,
            "noise_multiplier": self.training.noise_multiplier,
        }
        return self.people.query(number, **(plain | changes))

    def mean(self, query: Query) -> Vector:
        """Return the mean update that the server holds after a round, float64 [dim]."""
        if query.transport == "masked":
            told = self.people.sum(query, {})
            return decode_mean(told.total, query.clip_norm, query.integer_clip, len(told.survivors))
        answers = [self.people.answer(user, query, np.zeros(0)) for user in self.people.users]
        total = sum((from_ring(answer.vector) for answer in answers), np.zeros(query.dim, np.int64))
        return decode_mean(total, query.clip_norm, query.integer_clip, len(answers))

    def release(self, protected: bool, first: int = 0) -> Cores:
        """Return the cores after all rounds; rounds are numbered from `first` on, each question is asked once."""
        assert self.model.layout is not None
        weights = np.zeros(self.model.layout.dim)
        for number in range(first, first + self.training.rounds):
            cores = self.model.layout.unflatten(weights)
            weights += self.training.server_learning_rate * self.mean(self.query(number, cores, protected))
        return self.model.layout.unflatten(weights)

    def mu(self) -> float:
        """Return mu of Gaussian DP by what the devices were charged, sqrt(2 rho): the largest of all."""
        return math.sqrt(2 * max(map(self.people.charged, self.people.users)))

    def close(self) -> None:
        """Close the ledgers."""
        self.people.close()


def document(name: str, text: str) -> Document:
    """Return a text as its owner's own document."""
    return Document(name, (Span(text, own=True),), "history", 0)


def nats(model: LanguageModel, cores: Cores, texts: Sequence[str], start: Sequence[int] | None = None) -> Vector:
    """Return the mean nats a token of each text under `cores`, float64 [texts]; from character start[i] on."""
    model.set_cores(cores)
    model.activate("global")
    starts = start or [0] * len(texts)
    encoded = [
        model.prefix(model.encode_text(text, [(begin, len(text))], f"scored-{i}", 256))
        for i, (text, begin) in enumerate(zip(texts, starts, strict=True))
    ]
    return np.array([float(each.double().mean()) for each in model.document_nats(encoded)])
