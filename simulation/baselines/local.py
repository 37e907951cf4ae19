"""A person's part of a baseline, on their host: LoRA factors trained from a given start, and scored on test text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.documents import Document
from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel, padded
from client.own import load_own, own_factors, own_modules, own_tensors
from client.train import DocumentLoss, trainable
from simulation.baselines.factors import Factors, Matrix, Shared
from simulation.scorecard.arms import BY_NAME
from simulation.scorecard.lent import CardSettings, Loan
from simulation.scorecard.person import split_history
from simulation.scorecard.reader import Reader, Rows

if TYPE_CHECKING:
    from simulation.work import HostWork


@dataclass(frozen=True)
class Lesson:
    """How a person trains: from what, with A frozen or not, own tokens at most, passes, rate, seed."""

    start: Shared
    freezes_a: bool
    tokens: int
    epochs: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Served:
    """What a person is served with: factors, what is added to the base's weights, and the share of the factors."""

    factors: Factors
    dense: Mapping[str, Matrix]
    share: float = 1.0


def trained_factors(work: HostWork, user: str, lesson: Lesson, settings: CardSettings) -> Factors:
    """Return the person's factors after training on the part of the history to learn from, newest first in budget."""
    model = bare(work)
    load_factors(model, lesson.start.factors)
    learn, _ = split_history(work.people[user].history, settings.tuning_documents)
    documents = newest(model, learn, lesson.tokens, settings.document_tokens)
    with added(model, lesson.start.dense):
        train_lora(model, [model.prefix(document) for document in documents], lesson)
    return tensors_of(model)


def tensors_of(model: LanguageModel) -> Factors:
    """Return the factors of the own adapter as it stands in the model."""
    found = own_factors({name: p.detach() for name, p in own_tensors(model).items()})
    return {module: (a.astype(np.float64), b.astype(np.float64)) for module, (a, b) in found.items()}


def newest(model: LanguageModel, learn: Sequence[Document], tokens: int, longest: int) -> list[Encoded]:
    """Return the newest documents with at most so many own tokens together, one at least, oldest first."""
    found: list[Encoded] = []
    total = 0
    for document in reversed(learn):
        encoded = model.encode(document, longest)
        if encoded.own_tokens and (not found or total + encoded.own_tokens <= tokens):
            found.append(encoded)
            total += encoded.own_tokens
    return found[::-1]


def train_lora(model: LanguageModel, documents: Sequence[Cached], lesson: Lesson) -> None:
    """Train the own adapter in place: AdamW, one document a step, in an order drawn by the seed."""
    loss = DocumentLoss(model, own_modules(model))
    parameters = [p for n, p in own_tensors(model).items() if not (lesson.freezes_a and ".lora_A." in n)]
    optimizer = torch.optim.AdamW(parameters, lr=lesson.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(lesson.seed)
    with trainable(parameters):
        for _ in range(lesson.epochs):
            for place in torch.randperm(len(documents), generator=generator).tolist():
                rows = padded([documents[place]])
                optimizer.zero_grad(set_to_none=True)
                loss(rows.hidden, *rows.where, rows.labels).mean().backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def scored(work: HostWork, user: str, served: Mapping[str, Served], settings: CardSettings) -> dict[str, Rows]:
    """Return (document, nats, tokens) of the person's test documents for each baseline: the scorecard's own tokens."""
    model, base = bare(work), BY_NAME["base"]
    zero = np.zeros(work.learner.layout.dim)
    reader = Reader(work, Loan({"global": zero}, {}, None, ()), settings)
    test = work.people[user].test[-settings.test_documents :]
    found = {}
    for name, one in served.items():
        with added(model, one.dense):
            load_factors(model, {m: (a, one.share * b) for m, (a, b) in one.factors.items()})
            found[name] = reader.score(base, test, None, "", lambda: model.activate(GLOBAL, OWN))
    return found


def shapes(work: HostWork) -> dict[str, tuple[int, int]]:
    """Return (d_out, d_in) of every module that carries an own adapter."""
    found = tensors_of(work.model)
    return {module: (b.shape[0], a.shape[1]) for module, (a, b) in found.items()}


def likeness(work: HostWork, user: str) -> float:
    """Return how like a person's test text is to their history in [0, 1]: FedDPA's share of the own adapter.

    The cosine of mean input embeddings (Yang et al. 2024, arXiv:2403.19211, use the hidden states of the instance).
    """
    person, model = work.people[user], work.model
    means = []
    for documents in (person.history, person.test):
        ids = torch.cat([model.encode(d, 128).ids for d in documents[-4:]])
        means.append(model.head32[ids.to(model.device)].mean(0))
    return max(0.0, float(torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)))


def bare(work: HostWork) -> LanguageModel:
    """Return the model with a zero global core and the own adapter on: the baselines know no basis."""
    work.model.set_cores(work.learner.layout.unflatten(np.zeros(work.learner.layout.dim)))
    work.model.activate(GLOBAL, OWN)
    return work.model


def load_factors(model: LanguageModel, factors: Factors) -> None:
    """Copy factors into the own adapter."""
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"{module}.lora_A.{OWN}.weight"] = torch.tensor(a, dtype=torch.float32)
        tensors[f"{module}.lora_B.{OWN}.weight"] = torch.tensor(b, dtype=torch.float32)
    load_own(model, tensors)


@contextmanager
def added(model: LanguageModel, dense: Mapping[str, Matrix]) -> Iterator[None]:
    """Add matrices to the base's weights inside the block; outside it they are what they were, bit for bit."""
    before: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for module, matrix in dense.items():
                weight = model.net.get_submodule(module).get_submodule("base_layer").get_parameter("weight")
                before[module] = weight.detach().clone()
                weight.add_(torch.tensor(matrix, dtype=torch.float32, device=weight.device).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for module, kept in before.items():
                model.net.get_submodule(module).get_submodule("base_layer").get_parameter("weight").copy_(kept)
