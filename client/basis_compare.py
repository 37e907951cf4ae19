"""Which basis learns most from one step: the comparison behind the choice of texts and settings.

    gain = 1 - L(-t g / ||g||) / L(0)        g the mean gradient by the cores on people's history, L the nats of their
                                             held-out tokens, t the best length found for this basis

One step says how well a basis is conditioned, in minutes; it does not say where a whole campaign ends. The best length
is chosen on the text that is scored, for every basis alike. No participant's text enters a basis that is used: here
people's text is only what the bases are measured with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.basis import BasisSettings, Progress, basis_of, chosen_modules, second_moments, svd_basis
from client.documents import Document
from client.model import GLOBAL, Cached, Encoded, LanguageModel, batches_by_length, padded
from client.train import trainable
from privacy.adapter import Basis
from privacy.errors import DataError

FIRST_LENGTH, SHORTEST, LONGEST = 0.02, 1e-5, 1e3


@dataclass(frozen=True)
class Candidate:
    """A basis and how it was made; `centred` and `skip_first` are None where they mean nothing."""

    source: str
    centred: bool | None
    skip_first: bool | None
    basis: Basis


@dataclass(frozen=True)
class Score:
    """What one step in a basis wins: `gain`, the share of nats saved on held-out tokens, at step `length`."""

    gain: float
    length: float


def candidates(
    model: LanguageModel,
    sources: Mapping[str, Sequence[Encoded]],
    settings: BasisSettings,
    progress: Progress | None = None,
) -> Iterator[Candidate]:
    """Yield a basis for every source, centred or not, first position in or out, and the SVD's; `model` must be bare."""
    modules = chosen_modules(model, settings.modules)
    for (source, texts), skip_first in itertools.product(sources.items(), (False, True)):
        chosen = replace(settings, skip_first=skip_first)
        moments = second_moments(model, modules, texts, chosen, progress)
        for centred in (False, True):
            yield Candidate(source, centred, skip_first, basis_of(moments, replace(chosen, centred=centred)))
    yield Candidate("SVD of the weights", None, None, svd_basis(model, settings))


def one_step_score(model: LanguageModel, basis: Basis, history: Sequence[Cached], test: Sequence[Cached]) -> Score:
    """Return the gain on `test` of the best step down the mean gradient of `history`, from zero cores over `basis`."""
    model.attach(basis)
    direction = -mean_gradient(model, history)
    direction /= np.linalg.norm(direction)

    def nats_at(length: float) -> float:
        model.set_cores(basis.layout.unflatten(length * direction))
        return float(torch.cat(model.document_nats(test)).double().mean())

    start = nats_at(0.0)
    length, least = best_length(nats_at, start)
    return Score(1 - least / start, length)


def mean_gradient(model: LanguageModel, documents: Sequence[Cached]) -> NDArray[np.float64]:
    """Return the gradient of the mean nats per own token by the active shared cores, float64 [dim]."""
    assert model.layout is not None
    model.activate(GLOBAL)
    parameters = list(nn.ModuleList(model.cores().values()).parameters())
    with trainable(parameters):
        for batch in batches_by_length([len(d.encoded.ids) for d in documents], 1024):
            rows = padded([documents[i] for i in batch])
            model.nats(model.top(rows.hidden)[rows.where], rows.labels).sum().backward()
        sums = {name: core.weight.grad for name, core in model.cores().items()}
        gradient = model.layout.flatten({n: g.float().cpu().numpy() for n, g in sums.items() if g is not None})
    for p in parameters:
        p.grad = None
    return gradient / sum(d.encoded.own_tokens for d in documents)


def best_length(nats_at: Callable[[float], float], start: float) -> tuple[float, float]:
    """Return the length with the least nats, and these: by doubling or halving, then a factor 2^(1/2) to each side.

    Zero, with its nats `start`, where no step wins anything.
    """
    tried = {0.0: start}

    def at(length: float) -> float:
        if length not in tried:
            tried[length] = nats_at(length)
        return tried[length]

    for factor in (2.0, 0.5):
        length = FIRST_LENGTH
        while at(length * factor) < at(length) and SHORTEST < length < LONGEST:
            length *= factor
    best = min(tried, key=at)
    for side in (best * 2**0.5, best / 2**0.5):
        at(side)
    best = min(tried, key=at)
    return best, tried[best]


def measured_text(
    model: LanguageModel, documents: Sequence[Document], own_tokens: int, max_document_tokens: int, seed: int
) -> tuple[list[Cached], list[Cached]]:
    """Return history and test documents of up to `own_tokens` own tokens each, drawn by `seed` over all people.

    Raises DataError where either part has none.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    parts: dict[str, list[Cached]] = {"history": [], "test": []}
    left = dict.fromkeys(parts, own_tokens)
    for document in (documents[i] for i in order):
        if left[document.split] > 0:
            encoded = model.encode(document, max_document_tokens)
            if encoded.own_tokens:
                parts[document.split].append(model.prefix(encoded))
                left[document.split] -= encoded.own_tokens
    for name, part in parts.items():
        if not part:
            raise DataError(f"people's file: no {name} documents to compare with")
    return parts["history"], parts["test"]
