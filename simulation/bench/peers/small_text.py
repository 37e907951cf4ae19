"""What the simulation peers share: a causal model with stock PEFT LoRA, and people's documents as tokens.

Imports nothing of ours: it runs in a peer's environment. A job is JSON: model, people (JSONL), count, rounds, rank,
learning_rate, threads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

Job = dict[str, Any]


def read_job(path: str) -> Job:
    """Return the job of a JSON file."""
    job: Job = json.loads(Path(path).read_text())
    return job


def adapted_model(job: Job) -> Any:
    """Return the model in float32 with LoRA on q and v of all layers; nothing else is trained."""
    torch.set_num_threads(1)
    net: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    net.config.use_cache = False
    config = LoraConfig(
        r=job["rank"], lora_alpha=job["rank"], target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    return get_peft_model(net, config)


def texts_by_person(job: Job) -> list[list[str]]:
    """Return the history of the first `count` people, in the file's order."""
    people: dict[str, list[str]] = {}
    with Path(job["people"]).open() as file:
        for line in file:
            record = json.loads(line)
            if record["split"] == "history":
                people.setdefault(record["user"], []).append(record["text"])
    return list(people.values())[: job["count"]]


def token_rows(job: Job) -> list[torch.Tensor]:
    """Return each person's documents as tokens, int64 [documents, tokens]; all are of one length."""
    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])
    return [torch.tensor(tokenizer(texts)["input_ids"]) for texts in texts_by_person(job)]


def mean_loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean nats of every token but the first of each row."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
