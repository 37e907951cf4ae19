"""A small base model with random weights: for trials of scale, of speed and of architectures, never of usefulness.

Nothing is fetched: the weights come from a seed, the tokenizer reads bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from privacy.errors import ConfigError, ModelError

SPECIAL: Final = ("<s>", "</s>", "<pad>")
HEAD_WIDTH: Final = 16
MAX_TOKENS: Final = 512


def _llama(**sizes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**sizes)


def _qwen2(**sizes: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**sizes)


def _qwen3(**sizes: Any) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(head_dim=HEAD_WIDTH, **sizes)


KINDS: Final[dict[str, Callable[..., Any]]] = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3}


def random_model(
    folder: Path, kind: str = "llama", layers: int = 4, width: int = 64, dtype: str = "float32", seed: int = 0
) -> Path:
    """Return `folder` with a random causal language model of an architecture of `KINDS` in it, as any model is stored.

    `width` is that of the hidden states, a multiple of 32: four numbers of each in the feed-forward part, heads of 16,
    half as many for keys and values. Raises ConfigError for sizes that cannot be, ModelError where the folder is not
    empty.
    """
    if kind not in KINDS:
        raise ConfigError(f"no architecture {kind!r}; there is {', '.join(KINDS)}")
    if layers < 1 or width < 32 or width % 32:
        raise ConfigError("a random model has at least one layer and a width that is a multiple of 32")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype {dtype!r} is none of float32, bfloat16")
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} holds files already; choose another folder")
    import torch
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _save_byte_tokenizer(folder)
    config = KINDS[kind](
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        num_key_value_heads=width // HEAD_WIDTH // 2,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=vocabulary - 3,
        eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
        initializer_range=0.08,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: Any = AutoModelForCausalLM.from_config(config)
    net.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def _save_byte_tokenizer(folder: Path) -> int:
    """Save a tokenizer with one token a byte and no merges; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = sorted(pre_tokenizers.ByteLevel.alphabet()) + list(SPECIAL)
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end, pad = SPECIAL
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=pad, model_max_length=MAX_TOKENS
    )
    made.save_pretrained(folder)
    return len(names)
