"""The objective `preference-pairs`: the person's own words over what the model would have written in their place.

    L = -ln sigmoid(beta (ln p(own) - ln p0(own) - ln p(sample) + ln p0(sample)))

p0 is the model that the round starts from, and the sample is its own continuation behind the same context (Rafailov et
al. 2023, arXiv:2305.18290, equation 7; demonstrations against own samples: Shaikh et al. 2024, arXiv:2406.00888).
A pair's gradient is clipped on its own, as a document's is in `client.train`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.model import GLOBAL, Cached, Encoded, LanguageModel
from client.train import CoreTraining, DocumentLoss, NormalisedStep, one_gradient, trainable
from privacy.adapter import Cores

BETA = 0.1
PAIR_TOKENS = 24


@dataclass(frozen=True)
class Pair:
    """One document twice: with the person's own last words, and with the model's in their place, as many tokens."""

    own: Cached
    sample: Cached


def preference_update(
    model: LanguageModel, documents: Sequence[Cached], start: Cores, settings: CoreTraining, generator: torch.Generator
) -> NDArray[np.float64]:
    """Return R_end - R_start after the local steps of one person, float64 [dim]; zero where no document has own words.

    `generator` draws the samples. Each step goes over all pairs and is `settings.step` long.
    """
    assert model.layout is not None
    model.set_cores(start)
    model.activate(GLOBAL)
    pairs = [pair_of(model, document, generator) for document in documents if document.encoded.own_tokens]
    loss = DocumentLoss(model, model.cores().values())
    parameters, begun = list(loss.parameters()), model.layout.flatten(start)
    optimizer, until = NormalisedStep(parameters, settings.step), time.monotonic() + settings.seconds
    first = [_both(model, pair) for pair in pairs]
    for number in range(settings.steps if pairs else 0):
        if number and time.monotonic() > until:
            break
        with trainable(parameters):
            total = torch.zeros(sum(p.numel() for p in parameters))
            for pair, (own, sample) in zip(pairs, first, strict=True):
                now_own, now_sample = _both(model, pair)
                weight = 1 / (1 + math.exp(BETA * ((own - now_own) - (sample - now_sample))))
                gradient = weight * (
                    one_gradient(loss, pair.own, parameters) - one_gradient(loss, pair.sample, parameters)
                )
                length = float(gradient.norm())
                total += gradient.cpu() * min(1.0, settings.document_clip / length) if length > 0 else 0.0
            _step(optimizer, parameters, total)
    end = model.layout.flatten({name: core.weight.detach().cpu().numpy() for name, core in model.cores().items()})
    model.set_cores(start)
    return end - begun


def pair_of(model: LanguageModel, document: Cached, generator: torch.Generator) -> Pair:
    """Return the pair of a document: its last run of own tokens, `PAIR_TOKENS` at most, and a sample as long."""
    own = document.encoded.target.nonzero()[:, 0]
    last = int(own[-1]) + 1
    begin = last - 1
    while begin - 1 >= 1 and bool(document.encoded.target[begin - 1]) and last - begin < PAIR_TOKENS:
        begin -= 1
    target = torch.zeros(last, dtype=torch.bool)
    target[begin:] = True
    ids, name = document.encoded.ids[:last], document.encoded.document
    sampled = torch.cat([ids[:begin], _continuation(model, ids[:begin], last - begin, generator)])
    return Pair(
        model.prefix(Encoded(f"{name}, own", ids, target)), model.prefix(Encoded(f"{name}, sample", sampled, target))
    )


@torch.no_grad()
def _continuation(model: LanguageModel, ids: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Return `length` tokens drawn one after the other behind `ids`, at temperature 1.

    What was read is kept as keys and values, so that each token costs one token; under a soft prompt, which stands
    between the halves of the model, everything is read anew.
    """
    inner: Any = model.inner
    step, cache = ids[None].to(model.device), None
    for _ in range(length):
        if model.prompt is not None:
            cached = model.prefix(Encoded("sample", ids, torch.zeros(len(ids), dtype=torch.bool)))
            state = model.top(cached.hidden[None])[0, -1]
        else:
            out = inner(input_ids=step, past_key_values=cache, use_cache=True)
            cache, state = out.past_key_values, out.last_hidden_state[0, -1]
        chances = (model.head32 @ state.float()).softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=generator)
        ids, step = torch.cat([ids, drawn]), drawn[None].to(model.device)
    return ids[-length:]


def _both(model: LanguageModel, pair: Pair) -> tuple[float, float]:
    """Return the nats of the own words and of the sample under the model as it is now."""
    own, sample = model.document_nats([pair.own, pair.sample])
    return float(own.double().sum()), float(sample.double().sum())


def _step(optimizer: NormalisedStep, parameters: Sequence[torch.nn.Parameter], gradient: Tensor) -> None:
    at = 0
    for parameter in parameters:
        part = gradient[at : at + parameter.numel()].reshape(parameter.shape)
        parameter.grad, at = part.to(parameter.device), at + parameter.numel()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
