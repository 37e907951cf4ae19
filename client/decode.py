"""Tokens drawn one after the other from the model as it stands, so that a page can show a reply while it is made.

    p(token | so far) = softmax(penalised logits / temperature), cut to the smallest set of mass `top_p`

One prefix is read once for all rows of a batch. The likelihood that is returned beside each token is the model's own,
without temperature, cut or penalty: what ranks candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from client.model import LanguageModel
from client.steering import PLAUSIBLE, steered
from client.trust import START, mixed_nats, trusted

REPETITION_PENALTY = 1.1
MOST_TRIED = 64  # tokens of an opening that say how far memories are trusted
BOUNDARY = "\ufffd"  # what a tokenizer shows for the first bytes of a character that is not whole yet


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 takes the most likely one, the same every time."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def generator(self) -> torch.Generator:
        """Return a generator of its own: drawing leaves torch's global one as it was."""
        made = torch.Generator()
        if self.seed is None:
            made.seed()
        else:
            made.manual_seed(self.seed)
        return made


LIKELIEST = Sampling()


@dataclass(frozen=True, eq=False)
class Steering:
    """How much memories weigh: the prompt without them, int64 [T], and the strength (`client.steering`).

    With `trusted` they weigh as far as they foretell the last tokens that both prompts share (`client.trust`), and as
    much in all that is drawn.
    """

    plain: Tensor
    strength: float = 0.0
    trusted: bool = False


@torch.no_grad()
def drawn(
    model: LanguageModel,
    ids: Tensor,
    most: int,
    sampling: Sampling = LIKELIEST,
    rows: int = 1,
    steering: Steering | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `most` times the next token of every row, int64 [rows], and its log-likelihood, float32 [rows].

    `ids` int64 [T] is the prefix of all rows. Ends early once every row has met the tokenizer's end; a row that has met
    it goes on and is for the caller to cut. With `steering` the tokens are those of the mixture, which is read twice.
    """
    end = model.tokenizer.eos_token_id
    generator = sampling.generator()
    seen = ids[None].repeat(rows, 1)
    prompts = [ids] if steering is None else [ids, steering.plain]
    shared = _shared(ids, steering.plain) if steering is not None and steering.trusted else 0
    keep = max(1, shared + 1)
    read: list[Any] = [
        model.net(input_ids=p[None].to(model.device), use_cache=True, logits_to_keep=min(keep, len(p))) for p in prompts
    ]
    weight = _weight(read, ids[len(ids) - shared :]) if shared else START
    caches = [out.past_key_values for out in read]
    if rows > 1:
        for cache in caches:
            cache.batch_repeat_interleave(rows)
    logits = _mixed(read, steering, weight).repeat(rows, 1)
    ended = torch.zeros(rows, dtype=torch.bool)
    for step in range(most):
        chosen = _next(logits, seen, sampling, generator)
        likelihood = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        yield chosen, likelihood
        ended |= chosen == end
        if bool(ended.all()) or step + 1 == most:
            return
        seen = torch.cat([seen, chosen[:, None]], 1)
        step_ids = chosen[:, None].to(model.device)
        read = [model.net(input_ids=step_ids, past_key_values=cache, use_cache=True) for cache in caches]
        logits = _mixed(read, steering, weight)


def pieces(
    model: LanguageModel, ids: Tensor, most: int, sampling: Sampling = LIKELIEST, steering: Steering | None = None
) -> Iterator[tuple[str, int]]:
    """Yield a reply as text in pieces of whole characters, each with the number of tokens made so far."""
    tokenizer: Any = model.tokenizer
    made: list[int] = []
    shown = ""
    for chosen, _ in drawn(model, ids, most, sampling, steering=steering):
        token = int(chosen[0])
        if token == tokenizer.eos_token_id:
            return
        made.append(token)
        text = tokenizer.decode(made, skip_special_tokens=True)
        if text.endswith(BOUNDARY) or not text.startswith(shown):
            continue
        if len(text) > len(shown):
            yield text[len(shown) :], len(made)
            shown = text
    rest = tokenizer.decode(made, skip_special_tokens=True)
    if rest.startswith(shown) and len(rest) > len(shown):
        yield rest[len(shown) :], len(made)


def _shared(first: Tensor, second: Tensor) -> int:
    """Return how many last tokens two prompts share, `MOST_TRIED` at most; the first token of neither counts."""
    most = min(MOST_TRIED, len(first) - 1, len(second) - 1)
    same = (first[len(first) - most :] == second[len(second) - most :]).flip(0).int()
    return int(same.cumprod(0).sum())


def _weight(read: Sequence[Any], tried: Tensor) -> float:
    """Return how far memories are trusted after the tokens `tried`, int64 [n], which end both prompts."""
    nats = []
    for out in read:
        rows = out.logits[0, -len(tried) - 1 : -1].float().cpu().log_softmax(-1)
        nats.append(-rows.gather(1, tried[:, None])[:, 0].double().numpy())
    return mixed_nats(*nats)[1]


def _mixed(read: Sequence[Any], steering: Steering | None, weight: float) -> Tensor:
    """Return the logits of the next token, float32 [rows, vocabulary]; above 0 only plausible tokens are amplified."""
    rows: list[Tensor] = [out.logits[:, -1].float().cpu() for out in read]
    if steering is None:
        return rows[0]
    with_memories, without = (row.log_softmax(-1) for row in rows)
    if steering.trusted:
        return trusted(with_memories, without, weight)
    mixed = steered(with_memories, without, steering.strength)
    if steering.strength > 0:
        least = with_memories.max(-1, keepdim=True).values + math.log(PLAUSIBLE)
        mixed = mixed.masked_fill(with_memories < least, -torch.inf)
    return mixed


def _next(logits: Tensor, seen: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return the next token of each row: logits float32 [rows, vocabulary], seen int64 [rows, T]."""
    had = logits.gather(1, seen)
    logits = logits.scatter(1, seen, torch.where(had < 0, had * REPETITION_PENALTY, had / REPETITION_PENALTY))
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    chances = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, places = chances.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered > sampling.top_p] = 0
        chances = torch.zeros_like(chances).scatter(1, places, ordered)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]
