"""A reply of the model on this device, from a chat of a system's words and a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from client.model import LanguageModel


@dataclass(frozen=True)
class Reply:
    """What the model said, and how many tokens went in and came out."""

    text: str
    prompt_tokens: int
    tokens: int


def chat_ids(model: LanguageModel, system: str, question: str) -> torch.Tensor:
    """Return the tokens of a chat up to the model's turn, int64 [T]; plain lines where the model has no template."""
    tokenizer: Any = model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        chat = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    else:
        text = f"{system}\n\nQuestion: {question}\nAnswer:"
    ids: torch.Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
    return ids


@torch.no_grad()
def reply(model: LanguageModel, system: str, question: str, most_tokens: int = 128) -> Reply:
    """Return the most likely reply, the same every time for the same text and adapters."""
    ids = chat_ids(model, system, question)
    tokenizer: Any = model.tokenizer
    end = tokenizer.eos_token_id
    made: torch.Tensor = model.net.generate(
        input_ids=ids[None].to(model.device),
        attention_mask=torch.ones_like(ids)[None].to(model.device),
        max_new_tokens=most_tokens,
        do_sample=False,
        repetition_penalty=1.1,
        use_cache=True,
        pad_token_id=end if end is not None else 0,
    )
    new = made[0, len(ids) :]
    return Reply(tokenizer.decode(new, skip_special_tokens=True).strip(), len(ids), len(new))
