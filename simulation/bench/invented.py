"""A small model and people that both sides of a bench read: random weights, bytes as tokens, invented sentences.

Every person has the same number of tokens, so that it does not matter whom a side leaves out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from simulation.bench.face import WORDS

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 64, 4, 4, 2, 128
DOCUMENTS, DOCUMENT_TOKENS = 2, 60
SPECIAL = ("<s>", "</s>", "<pad>")
VOCABULARY = 256 + len(SPECIAL)


def write_small_model(folder: Path) -> Path:
    """Save a random Llama (4 layers, hidden 64, float32) with a byte-level tokenizer into `folder` and return it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(SPECIAL)
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIAL
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad, model_max_length=512
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=VOCABULARY - 3, eos_token_id=VOCABULARY - 2, pad_token_id=VOCABULARY - 1, initializer_range=0.08,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261128)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_people(path: Path, number: int) -> Path:
    """Write `number` people to `path`, JSONL: two documents of history and one of test, of 60 tokens each."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for user in range(number):
            favourites = rng.choice(WORDS, 24)
            for i in range(DOCUMENTS + 1):
                text = " ".join(rng.choice(favourites, DOCUMENT_TOKENS).tolist())[:DOCUMENT_TOKENS]
                split = "test" if i == DOCUMENTS else "history"
                file.write(json.dumps({"user": f"u{user:06d}", "i": i, "split": split, "text": text}) + "\n")
    return path
