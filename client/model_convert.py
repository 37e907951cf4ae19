"""From a quantised GGUF file to an ordinary `transformers` folder, once, and read back to show that nothing changed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("bfloat16", "float32")
_CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_PROBE = "A person wrote: I'll be home at 7, the train was late again."


def preferred_dtype(cpuinfo: str, cuda_bf16: bool) -> str:
    """Return "bfloat16" where matrix products in it are native, else "float32".

    `cpuinfo` is the text of /proc/cpuinfo ("" where there is none). On a processor with AVX512-BF16 or AMX, bf16 is 2.7
    times as fast as fp32; without, torch emulates it and it is slower.
    """
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return "bfloat16" if cuda_bf16 or _CPU_BF16_FLAGS & set(flags.split()) else "float32"


def native_dtype() -> str:
    """Return `preferred_dtype` of this machine. Imports torch only if the processor does not settle it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    if preferred_dtype(text, cuda_bf16=False) == "bfloat16":
        return "bfloat16"
    import torch

    return preferred_dtype(text, torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def converter_versions() -> dict[str, str]:
    """Return the versions of what reads, computes and writes the weights; a package that is missing is left out."""
    found = {}
    for name in ("gguf", "safetensors", "tokenizers", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def convert_gguf(gguf: Path, folder: Path, dtype: str) -> None:
    """Write the model and tokenizer of the file `gguf` into `folder` as safetensors of `dtype`.

    A model that was loaded from GGUF refuses to be saved, so its weights are copied into a fresh model of the same
    configuration. What was written is read back: every tensor must equal the de-quantised one bit for bit (after the
    one rounding to `dtype`), and so must the logits of a short prompt, up to the order of a sum. Else ModelError.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = getattr(torch, dtype)
    source: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    _plain_copy(source).to(target).save_pretrained(folder)
    cast_parameters(source, target)
    tokenizer.save_pretrained(folder)

    written = AutoModelForCausalLM.from_pretrained(folder, dtype=target, local_files_only=True)
    reread = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(_PROBE)["input_ids"]
    if reread(_PROBE)["input_ids"] != tokens:
        raise ModelError(f"{gguf.name}: the converted tokenizer splits a prompt differently; nothing was kept")
    check_same_model(source, written, torch.tensor([tokens]), gguf.name)


def _plain_copy(source: PreTrainedModel) -> PreTrainedModel:
    settings = source.config.to_dict()
    for leftover in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(leftover, None)
    fresh = type(source)(type(source.config)(**settings))
    fresh.load_state_dict(source.state_dict())
    return fresh


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round the weights of `model` to `dtype`, in place, as `from_pretrained` does.

    `model.to(dtype)` would round the rotary frequencies too, which moves the logits by 2 percent in bfloat16.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def check_same_model(expected: PreTrainedModel, written: PreTrainedModel, tokens: torch.Tensor, name: str) -> None:
    """Raise ModelError unless both models hold the same tensors and give the same logits for `tokens` [1, T]."""
    import torch

    ours, theirs = written.state_dict(), expected.state_dict()
    if ours.keys() != theirs.keys():
        raise ModelError(f"{name}: the converted model has other tensors than the source; nothing was kept")
    for key, tensor in theirs.items():
        if not torch.equal(ours[key], tensor):
            raise ModelError(f"{name}: {key} changed in the conversion; nothing was kept")
    with torch.inference_mode():
        reference = expected(input_ids=tokens).logits.float()
        error = (written(input_ids=tokens).logits.float() - reference).abs().max() / reference.abs().max()
    if not error <= 1e-3:
        raise ModelError(f"{name}: the converted model's logits differ by {float(error):.1e}; nothing was kept")
