"""Text out of one update by search: the text whose gradient points where the update does.

    maximise cos(-update, grad(text))      over texts of a known length

after LAMP (Balunovic et al. 2022, arXiv:2202.08827), whose discrete half this is: characters are exchanged where the
cosine rises, and now and then moved, swapped, or taken out here and put in there. Its language prior is knowledge that
the attacker is given: the texts are small letters and spaces. Unlike the span check it needs no text shorter than the
rank. Gradients of many candidates come from one backward pass over many people's cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.model import Encoded, LanguageModel, padded
from simulation.attacks.inversion import Held, Size, held, outcome
from simulation.attacks.outcome import Attack
from simulation.mechanism.people import Vector
from simulation.search.local import RowCore, people_gradients, with_row_cores

LETTERS: Final = (*"abcdefghijklmnopqrstuvwxyz", " ")
RESTARTS: Final = 3
SWEEPS: Final = 10
MOVES: Final = 120
LEAST_RISE: Final = 1e-4


def attack_by_matching(folder: Path, root: bytes, rng: np.random.Generator, size: Size) -> Attack:
    """Return the attack on everybody's first update."""
    known = held(folder, root, rng, size)
    cores = with_row_cores(known.model)

    def reader(known: Held, vector: Vector, length: int) -> list[int]:
        return Matching(known.model, cores, vector, np.random.default_rng(length)).best(length)

    return outcome("matching", "text from one update (gradient matching)", known, reader, "characters", len(LETTERS))


class Matching:
    """A search for the text behind one `update`, with a generator for its starts and moves; nothing in it is secret."""

    def __init__(
        self, model: LanguageModel, cores: dict[str, RowCore], update: Vector, rng: np.random.Generator
    ) -> None:
        self.model, self.cores, self.rng = model, cores, rng
        self.wanted = torch.tensor(-update / max(float(np.linalg.norm(update)), 1e-300), dtype=torch.float32)
        self.ids = [int(model.tokenizer.encode(letter)[0]) for letter in LETTERS]

    def best(self, length: int) -> list[int]:
        """Return the tokens of the best text of `length` characters of all restarts."""
        found = max((self._climbed(length) for _ in range(RESTARTS)), key=lambda pair: pair[0])
        return [self.ids[place] for place in found[1]]

    def scores(self, texts: list[list[int]]) -> Vector:
        """Return the cosine of each text's gradient to the update, float64 [texts]; texts are places in `LETTERS`."""
        documents = []
        for text in texts:
            target = torch.ones(len(text), dtype=torch.bool)
            target[0] = False
            ids = torch.tensor([self.ids[place] for place in text])
            documents.append(self.model.prefix(Encoded("candidate", ids, target)))
        start = torch.zeros(len(texts), len(self.wanted))
        gradients = people_gradients(self.model, self.cores, padded(documents), torch.arange(len(texts)), start)
        cosines = gradients @ self.wanted / gradients.norm(dim=1).clamp(min=1e-30)
        return np.asarray(cosines.double().numpy())

    def _climbed(self, length: int) -> tuple[float, list[int]]:
        text = [int(place) for place in self.rng.integers(0, len(LETTERS), length)]
        score = float(self.scores([text])[0])
        for _ in range(SWEEPS):
            before = score
            for place in self.rng.permutation(length):
                options = [[*text[:place], letter, *text[place + 1 :]] for letter in range(len(LETTERS))]
                text, score = self._better(options, text, score)
            text, score = self._better([self._moved(text) for _ in range(MOVES)], text, score)
            if score - before < LEAST_RISE:
                break
        return score, text

    def _better(self, options: list[list[int]], text: list[int], score: float) -> tuple[list[int], float]:
        scores = self.scores(options)
        best = int(scores.argmax())
        return (options[best], float(scores[best])) if scores[best] > score else (text, score)

    def _moved(self, text: list[int]) -> list[int]:
        """Return the text with two characters swapped, one moved, or one taken out and another put in elsewhere."""
        one, other = (int(place) for place in self.rng.integers(0, len(text), 2))
        kind, left = int(self.rng.integers(3)), list(text)
        if kind == 0:
            left[one], left[other] = left[other], left[one]
            return left
        taken = left.pop(one)
        left.insert(other, taken if kind == 1 else int(self.rng.integers(len(LETTERS))))
        return left
