"""Passages in the order in which they help the model to read the question: optional, kept only where it pays.

    gain(d) = log p(question | d) - log p(question)

What the person will write is not known when they ask, what they asked is (Sachan et al. 2022, "Improving Passage
Retrieval with Zero-Shot Question Generation", arXiv:2204.07496). The second term is the same for all and left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from client.library import Passage
from client.model import GLOBAL, Encoded, LanguageModel

QUESTION_TOKENS, PASSAGE_TOKENS = 48, 80


def by_likelihood(model: LanguageModel, question: str, found: Sequence[Passage], keep: int) -> list[Passage]:
    """Return the `keep` passages that make the question likeliest, best first; as found where nothing was asked.

    The model reads without the own adapter, which knows the passages by heart.
    """
    asked = model.encode_text(question, [(0, len(question))], "question", 4096)
    asked = Encoded(asked.document, asked.ids[-QUESTION_TOKENS:], asked.target[-QUESTION_TOKENS:])
    if len(found) <= 1 or not asked.own_tokens:
        return list(found[:keep])
    rows = []
    for passage in found:
        ids = model.tokenizer(passage.text, add_special_tokens=False, verbose=False)["input_ids"][:PASSAGE_TOKENS]
        head = torch.cat([torch.tensor(ids, dtype=torch.long), model.context_ids("\n", 4)])
        rows.append(model.prefix(model.with_context(asked, head)))
    model.activate(GLOBAL)
    nats = [float(each.double().sum()) for each in model.document_nats(rows)]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: (nats[i], i))[:keep]]
