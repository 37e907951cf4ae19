"""What all tests share: one torch thread, and a tiny causal LM on disk that needs no network."""

from __future__ import annotations

import os

# Before anything imports torch: spinning OpenMP threads starve each other on a small machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no fault of the code: what a property test finds is a value, never a time.
settings.register_profile("confide", deadline=None)
settings.load_profile("confide")

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")


def save_byte_tokenizer(folder: Path) -> int:
    """Save a byte-level tokenizer (one token a byte, no merges) into `folder` and return its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(SPECIAL_TOKENS)
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIAL_TOKENS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad, model_max_length=512
    ).save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random Llama (6 layers, hidden 64, fp32, tied embeddings) and a byte-level tokenizer.

    `AutoModelForCausalLM` and `AutoTokenizer` load it as they load any model; the weights come from a fixed seed
    that leaves torch's global generator as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny_model")
    vocab_size = save_byte_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=vocab_size - 3,
        eos_token_id=vocab_size - 2,
        pad_token_id=vocab_size - 1,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20261123)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return folder
