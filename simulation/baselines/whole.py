"""Two baselines that no federation could have: LoRA trained centrally on everybody's text, and full fine-tuning.

    central   one LoRA over the bare base, on the pooled documents of all who train, in as many passes as others have
              rounds
    full      every matrix of the top `FULL_LAYERS` layers over the release's global core, on the person's own text

`central` is what sharing the text itself would give: the strongest thing to compare a federation with. `full` is
small: with all layers a person's copy would be the whole model. Its weights never leave the host, and are put back bit
for bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.documents import Document
from client.model import GLOBAL, Cached, LanguageModel, padded
from client.train import DocumentLoss, trainable
from simulation.baselines.factors import Factors
from simulation.baselines.local import Lesson, bare, load_factors, newest, tensors_of, train_lora
from simulation.scorecard.arms import BY_NAME
from simulation.scorecard.lent import CardSettings, Loan
from simulation.scorecard.person import split_history
from simulation.scorecard.reader import Reader, Rows

if TYPE_CHECKING:
    from simulation.work import HostWork

FULL_LAYERS, FULL_RATE, FULL_EPOCHS = 2, 5e-5, 2


def pooled_factors(
    work: HostWork, people: Sequence[Sequence[Document]], lesson: Lesson, settings: CardSettings
) -> Factors:
    """Return LoRA factors trained on everybody's documents together, of each as many tokens as the lesson allows."""
    model = bare(work)
    load_factors(model, lesson.start.factors)
    documents = [d for learn in people for d in newest(model, learn, lesson.tokens, settings.document_tokens)]
    train_lora(model, [model.prefix(document) for document in documents], lesson)
    return tensors_of(model)


def fully_tuned(
    work: HostWork, user: str, core: NDArray[np.float64], settings: CardSettings, seed: int
) -> dict[str, Rows]:
    """Return the rows of the person's test documents under full fine-tuning of the top layers on their own text."""
    model, person = work.model, work.people[user]
    model.set_cores(work.learner.layout.unflatten(core))
    model.activate(GLOBAL)
    learn, _ = split_history(person.history, settings.tuning_documents)
    documents = [model.prefix(d) for d in newest(model, learn, settings.own_tokens, settings.document_tokens)]
    reader = Reader(work, Loan({"global": core}, {}, None, ()), settings)
    with put_back(top_matrices(model, FULL_LAYERS)) as weights:
        tune(model, weights, documents, torch.Generator().manual_seed(seed))
        return {"full": reader.score(BY_NAME["global"], person.test[-settings.test_documents :], None, "")}


def top_matrices(model: LanguageModel, layers: int) -> list[nn.Parameter]:
    """Return the weights of every linear module of the topmost `layers` layers, adapted ones at most."""
    some = []
    for name, module in model.linear_modules().items():
        found = re.search(r"\.(\d+)\.", name)
        if found and int(found[1]) >= model.depth - layers and isinstance(module.weight, nn.Parameter):
            some.append(module.weight)
    return some


@contextmanager
def put_back(weights: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    """Give the weights to be changed inside the block; outside it they are what they were, bit for bit."""
    before = [weight.detach().clone() for weight in weights]
    try:
        yield weights
    finally:
        with torch.no_grad():
            for weight, kept in zip(weights, before, strict=True):
                weight.copy_(kept)


def tune(
    model: LanguageModel,
    weights: Sequence[nn.Parameter],
    documents: Sequence[Cached],
    generator: torch.Generator,
    rate: float = FULL_RATE,
) -> None:
    """Train the weights in place: AdamW, one document a step, the rate falling to zero.

    Steps are taken on float32 copies: bfloat16 would lose the small ones.
    """
    masters = [nn.Parameter(weight.detach().float()) for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    loss, steps, done = DocumentLoss(model, []), FULL_EPOCHS * len(documents), 0
    with trainable(list(weights)):
        for _ in range(FULL_EPOCHS):
            for place in torch.randperm(len(documents), generator=generator).tolist():
                rows = padded([documents[place]])
                loss(rows.hidden, *rows.where, rows.labels).mean().backward()
                for group in optimizer.param_groups:
                    group["lr"] = rate * (1 - done / steps)
                for master, weight in zip(masters, weights, strict=True):
                    master.grad = None if weight.grad is None else weight.grad.float()
                    weight.grad = None
                optimizer.step()
                with torch.no_grad():
                    for master, weight in zip(masters, weights, strict=True):
                        weight.copy_(master)
                done += 1
