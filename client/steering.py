"""Context steering: how much a person's memories weigh in the next word, as a dial.

    log p_s(y) = (1 + s) log p(y | memories) - s log p(y)  + const          s = -1: without them, 0: as they are

Between -1 and 0 the two predictions are mixed, above 0 the difference that the memories make is made larger (He et al.
2024, "Context Steering: Controllable Personalization at Inference Time", arXiv:2405.01768, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.generate import Reply, chat_ids
from client.model import Encoded, LanguageModel
from privacy.errors import ConfigError

STRENGTHS = (-0.75, -0.5, -0.25, 0.0, 0.5, 1.0)
LOWEST, HIGHEST = -1.0, 3.0
PLAUSIBLE = 0.05  # only words at least so likely as the likeliest one with memories are amplified
REPETITION = 1.1
_ROWS = 128


def checked_strength(strength: float) -> float:
    """Return the strength; raises ConfigError beyond the dial's ends."""
    if not LOWEST <= strength <= HIGHEST:
        raise ConfigError(f"the weight of memories is set from {LOWEST:g} (none) to {HIGHEST:g}, 0 is as they are")
    return strength


def steered(with_memories: Tensor, without: Tensor, strength: float) -> Tensor:
    """Return the log probabilities of the mixture, [..., V], from two rows of log probabilities."""
    return ((1 + strength) * with_memories - strength * without).log_softmax(-1)


@torch.no_grad()
def steered_nats(
    model: LanguageModel, placed: Encoded, plain: Encoded, strengths: tuple[float, ...] = STRENGTHS
) -> NDArray[np.float64]:
    """Return the nats of a document's targets at every strength, float64 [strengths]; `plain` lacks the memories."""
    states = [_target_states(model, each) for each in (placed, plain)]
    labels = plain.ids[plain.target].to(model.device)
    total = np.zeros(len(strengths))
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        first, second = ((each[rows].float() @ model.head32.T).log_softmax(-1) for each in states)
        for i, strength in enumerate(strengths):
            mixed = steered(first, second, strength)
            total[i] -= float(mixed.gather(1, labels[rows, None]).double().sum())
    return total


def _target_states(model: LanguageModel, encoded: Encoded) -> Tensor:
    at = encoded.target.nonzero()[:, 0] - 1
    return model.top(model.prefix(encoded).hidden[None])[0, at]


@torch.no_grad()
def steered_reply(
    model: LanguageModel, system: str, plain_system: str, question: str, strength: float, most_tokens: int = 128
) -> Reply:
    """Return the likeliest reply of the mixture, word by word; `plain_system` is the system's words without memories.

    Above 0 only words that are plausible with the memories are amplified: the difference of two tails is noise.
    """
    tokenizer: Any = model.tokenizer
    both = [chat_ids(model, text, question)[None].to(model.device) for text in (system, plain_system)]
    seen, caches, steps = torch.empty(0, dtype=torch.long, device=model.device), [None, None], list(both)
    for _ in range(most_tokens):
        rows = []
        for i in range(2):
            out = model.net(input_ids=steps[i], past_key_values=caches[i], use_cache=True)
            caches[i] = out.past_key_values
            rows.append(out.logits[0, -1].float().log_softmax(-1))
        mixed = steered(rows[0], rows[1], strength)
        if strength > 0:
            mixed[rows[0] < rows[0].max() + np.log(PLAUSIBLE)] = -torch.inf
        mixed[seen.unique()] *= REPETITION  # logarithms: further below zero
        word = int(mixed.argmax())
        if word == tokenizer.eos_token_id:
            break
        seen = torch.cat([seen, torch.tensor([word], device=model.device)])
        steps = [torch.tensor([[word]], device=model.device)] * 2
    text = tokenizer.decode(seen, skip_special_tokens=True).strip()
    return Reply(text, both[0].shape[1], len(seen))
