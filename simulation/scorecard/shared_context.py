"""Several texts behind one context: the context is read once, its keys and values serve them all; and writing in batch.

    nats(text_i | context) = the same as of context + text_i, to rounding of the model's type

A forced choice has two texts behind each context, and neutral questions stand behind few contexts, so that most of what
would be read is read only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from client.model import Cached, Encoded, LanguageModel, batches_by_length, padded

BATCH_TOKENS = 2048  # of texts and of the contexts that are attended to


def shared_nats(model: LanguageModel, context: Tensor, texts: Sequence[Encoded]) -> list[Tensor]:
    """Return the nats of each text's targets behind `context` (int64 [C], C > 0), float64 [targets] a text.

    All adapters are as they are switched on. A special token that opens a text stands before the context, as in
    `LanguageModel.with_context`.
    """
    states = shared_states(model, context, texts)
    found = [model.nats(s, t.ids[t.target].to(model.device)) for s, t in zip(states, texts, strict=True)]
    return [nats.double().cpu() for nats in found]


@torch.no_grad()
def shared_states(model: LanguageModel, context: Tensor, texts: Sequence[Encoded]) -> list[Tensor]:
    """Return the normed last hidden states that predict each text's targets behind `context`, [targets, width] each."""
    opens = int(bool(len(texts[0].ids)) and int(texts[0].ids[0]) in model.tokenizer.all_special_ids)
    before = torch.cat([texts[0].ids[:opens], context]).to(model.device)[None]
    inner: Any = model.inner
    read = inner(input_ids=before, use_cache=True)
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    lengths = [len(text.ids) - opens + before.shape[1] // 8 for text in texts]
    for batch in batches_by_length(lengths, BATCH_TOKENS):
        ids = nn.utils.rnn.pad_sequence([texts[i].ids[opens:] for i in batch], batch_first=True).to(model.device)
        states = inner(
            input_ids=ids,
            attention_mask=torch.ones(len(batch), before.shape[1] + ids.shape[1], device=model.device),
            past_key_values=_repeated(read.past_key_values, len(batch)),
            use_cache=True,
        ).last_hidden_state
        for row, i in enumerate(batch):
            # What predicts a text's first token is the context's last state.
            whole = torch.cat([read.last_hidden_state[0, -1:], states[row]])
            found[i] = whole[texts[i].target[opens:].nonzero()[:, 0].to(model.device)]
    return found


@torch.no_grad()
def plain_states(model: LanguageModel, texts: Sequence[Cached]) -> list[Tensor]:
    """Return the same of texts as they are, each with its prefix."""
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for batch in batches_by_length([len(text.encoded.ids) for text in texts], BATCH_TOKENS):
        rows = padded([texts[i] for i in batch])
        parts = model.top(rows.hidden)[rows.where].split(torch.bincount(rows.row, minlength=len(batch)).tolist())
        for i, part in zip(batch, parts, strict=True):
            found[i] = part
    return found


def _repeated(cache: Any, number: int) -> Any:
    """Return a cache of its own that holds `number` copies of one row."""
    from transformers import DynamicCache

    copy: Any = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys.repeat(number, 1, 1, 1), layer.values.repeat(number, 1, 1, 1), index)
    return copy


@torch.no_grad()
def continued(model: LanguageModel, openings: Sequence[Tensor], most_tokens: int) -> list[str]:
    """Return what the model writes behind each opening, the likeliest token each time, all of them in one batch.

    Openings are padded on the left and the padding is not attended to. "" behind an empty opening.
    """
    some = [i for i, ids in enumerate(openings) if len(ids)]
    texts = [""] * len(openings)
    if not some:
        return texts
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    longest = max(len(openings[i]) for i in some)
    ids = torch.full((len(some), longest), end, dtype=torch.long)
    seen = torch.zeros_like(ids)
    for row, i in enumerate(some):
        ids[row, longest - len(openings[i]) :] = openings[i]
        seen[row, longest - len(openings[i]) :] = 1
    made = model.net.generate(
        input_ids=ids.to(model.device),
        attention_mask=seen.to(model.device),
        max_new_tokens=most_tokens,
        do_sample=False,
        repetition_penalty=1.1,
        use_cache=True,
        pad_token_id=end,
    )
    for row, i in enumerate(some):
        texts[i] = str(tokenizer.decode(made[row, longest:], skip_special_tokens=True)).strip()
    return texts
