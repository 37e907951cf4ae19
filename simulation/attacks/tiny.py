"""A language model of random weights that reads bytes: small enough to attack many times, and nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import LanguageModel

Maker = Callable[[Path, int], LanguageModel]  # a folder to make it in, and the rank of its cores
SPECIAL = ("<s>", "</s>", "<pad>")


def tiny_model(folder: Path, rank: int, layers: int = 2, seed: int = 7) -> LanguageModel:
    """Return a Llama of two layers and width 64 over bytes, made in `folder`, with cores of `rank` on all layers."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(SPECIAL)
    words = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIAL
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=begin, eos_token=end, pad_token=pad, model_max_length=512
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=len(names) - 3,
        eos_token_id=len(names) - 2,
        pad_token_id=len(names) - 1,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LlamaForCausalLM(config)
    net.save_pretrained(folder)
    model = LanguageModel.load(folder, top_layers=layers)
    samples = own_samples(model, 32, 48, seed)
    model.attach(whitened_basis(model, samples, BasisSettings(rank=rank)))
    return model
