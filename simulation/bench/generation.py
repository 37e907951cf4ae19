"""A reply with three adapters: ours folds release, persona and own adapter into the layers; PEFT keeps three active."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.decode import drawn
from client.model import LanguageModel
from client.serving import Factors, fold, in_place
from privacy.errors import ConfideError
from simulation.bench.face import WORDS
from simulation.bench.limits import Limits
from simulation.bench.row import Row

NAME = "PEFT 0.21, three active LoRA adapters"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT_WORDS = 64


def adapters_row(folder: Path, limits: Limits, rank: int = 16, tokens: int = 48, tries: int = 7) -> Row:
    """Return the row `generate.adapters`: tokens a CPU second after the prompt, the median of `tries` in turns.

    Raises ConfideError where the two sides' next-token logits differ by more than rounding: they would not do the same.
    """
    torch.set_num_threads(1)
    model = LanguageModel.load(folder)
    model.first = 0  # adapters on all layers, on both sides
    linears = {n: m for n, m in model.linear_modules().items() if n.rsplit(".", 1)[-1] in MODULES}
    parts = [_factors(linears, rank, seed) for seed in (1, 2, 3)]
    layers = fold(model, parts)
    peer = LanguageModel.load(folder)
    _activate(peer, parts, rank)
    ids = model.tokenizer(" ".join(WORDS[:PROMPT_WORDS]), return_tensors="pt")["input_ids"][0]
    _compare(model, layers, peer, ids)

    def seconds(which: LanguageModel, place: Any) -> float:
        with in_place(which, place) if place is not None else torch.no_grad():
            made = drawn(which, ids, tokens)
            next(made)  # the prompt is read
            begun, count = time.process_time(), sum(1 for _ in made)
            return (time.process_time() - begun) / max(1, count)

    took: dict[str, list[float]] = {"ours": [], "peer": [], "bare": []}
    for number in range(tries + 1):
        sides = {"ours": seconds(model, layers), "peer": seconds(peer, None), "bare": seconds(model, None)}
        for side, found in sides.items():
            if number:
                took[side].append(found)
    ours, theirs, bare = (1 / statistics.median(took[side]) for side in ("ours", "peer", "bare"))
    size = sum(p.nbytes for p in {id(p): p for p in model.net.parameters()}.values())
    limit = limits.memory / size
    kind = " and ".join(sorted({type(layer).__name__.lower() for layer in layers.values()}))
    same = (
        f"same weights in {str(model.dtype).removeprefix('torch.')}, three LoRA of rank {rank} on all seven modules of "
        f"{model.depth} layers, prompt, {tokens} tokens, decoder and thread, next-token logits alike; ours are {kind}; "
        f"without adapters the model makes {bare:.1f}; limit: its {size / 1e6:.0f} MB read once a token"
    )
    return Row(
        work="generate.adapters", unit="tokens per CPU second", ours=ours, peer=theirs, peer_name=NAME,
        ratio=ours / theirs, limit=limit, limit_ratio=ours / limit, same=same,
    )  # fmt: skip


def _factors(linears: dict[str, torch.nn.Linear], rank: int, seed: int) -> Factors:
    rng = np.random.default_rng(seed)

    def one(rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return (0.02 * rng.standard_normal((rows, columns))).astype(np.float32)

    return {name: (one(rank, m.in_features), one(m.out_features, rank)) for name, m in linears.items()}


def _activate(model: LanguageModel, parts: list[Factors], rank: int) -> None:
    """Put the factors into the model as PEFT's own adapters, all of them active."""
    from peft import LoraConfig, get_peft_model

    names = list(parts[0])
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model.net, config, adapter_name="part0")
    for number in range(1, len(parts)):
        peft.add_adapter(f"part{number}", config)
    peft.base_model.set_adapter([f"part{number}" for number in range(len(parts))])
    with torch.no_grad():
        for number, part in enumerate(parts):
            for name, (a, b) in part.items():
                layer = model.net.get_submodule(name)
                layer.lora_A[f"part{number}"].weight.copy_(torch.from_numpy(a))
                layer.lora_B[f"part{number}"].weight.copy_(torch.from_numpy(b))
    model.net.requires_grad_(False)


@torch.no_grad()
def _compare(model: LanguageModel, layers: Any, peer: LanguageModel, ids: torch.Tensor) -> None:
    with in_place(model, layers):
        ours = model.net(input_ids=ids[None]).logits[0, -1].float().log_softmax(-1)
    bare = model.net(input_ids=ids[None]).logits[0, -1].float().log_softmax(-1)
    theirs = peer.net(input_ids=ids[None]).logits[0, -1].float().log_softmax(-1)
    apart = float((ours.exp() - theirs.exp()).abs().sum()) / 2
    if not apart < max(0.05, float((bare.exp() - theirs.exp()).abs().sum()) / 8):
        raise ConfideError(f"the two sides' next tokens are {apart:.2f} apart: they do not carry the same adapters")
