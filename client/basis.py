"""The frozen basis of the shared cores: which r directions of every module a federation may move.

    X = E[x x^T], G = E[g g^T]        x a module's input, g the gradient of the summed token loss by its output
    A = rows v_x / sqrt(l_x + c mean l_x),   B = columns v_g / sqrt(l_g + c mean l_g)      leading r eigenpairs (l, v)

A Kronecker-factored preconditioner (Martens & Grosse 2015, arXiv:1503.05671) folded into frozen factors: in these
coordinates the loss is about equally steep in every direction, so that a clipped step learns much and equal noise on
every number costs equally little. With texts sampled from the model itself G is its true Fisher factor and no data is
needed at all. `svd_basis` (LoRA-XS, arXiv:2405.17604) is kept as the comparison.
No participant's text may ever enter a basis: it is published before any noise is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from client.model import Cached, Encoded, LanguageModel, batches_by_length, padded
from client.network import plain
from privacy.adapter import Basis
from privacy.errors import ModelError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BasisSettings:
    """How a basis is made; DECISIONS.md has what other settings measured.

    `centred` subtracts the mean input, `skip_first` leaves out each text's first position, whose activations are
    outliers in many models. `modules` are the last parts of module names; empty means all linear modules.
    """

    rank: int = 8
    damping: float = 0.01
    centred: bool = False
    skip_first: bool = False
    modules: tuple[str, ...] = ()


@torch.no_grad()
def own_samples(
    model: LanguageModel, texts: int, tokens: int, seed: int, temperature: float = 1.0, progress: Progress | None = None
) -> list[Encoded]:
    """Return texts that the bare base model writes from the begin-of-text token alone; every token is a target.

    `seed` fixes them on one machine type. They hold nothing but what the public base model holds.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    start = model.tokenizer.bos_token_id if model.tokenizer.bos_token_id is not None else model.tokenizer.eos_token_id
    ids = torch.full((texts, 1), int(start or 0), device=model.device)
    cache, step = None, ids
    for done in range(tokens - 1):
        out = model.net(input_ids=step, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        step = torch.multinomial((out.logits[:, -1].float() / temperature).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, step], 1)
        if progress is not None:
            progress(done + 1, tokens - 1)
    return [_until_end(f"sample-{i}", row.cpu(), model.tokenizer.eos_token_id) for i, row in enumerate(ids)]


def _until_end(name: str, ids: Tensor, end: int | None) -> Encoded:
    stops = (ids[1:] == end).nonzero()[:, 0] if end is not None else torch.empty(0)
    ids = ids[: int(stops[0]) + 2] if len(stops) else ids
    ids = ids[1:]  # the begin token only started the sampling; people's documents have none
    target = torch.ones(len(ids), dtype=torch.bool)
    target[:1] = False
    return Encoded(name, ids, target)


@dataclass
class Moments:
    """Running sums over tokens for one module: x x^T, x, g g^T, their number."""

    xx: Tensor
    x: Tensor
    gg: Tensor
    count: int = 0


def whitened_basis(
    model: LanguageModel, texts: Sequence[Encoded], settings: BasisSettings, progress: Progress | None = None
) -> Basis:
    """Return the whitened basis (module docstring) of the model's adapted layers on `texts`.

    Factors are rounded to bfloat16 values, so that a bfloat16 device and a float32 one hold the same basis. The model
    must carry no adapters. Texts with fewer than two tokens are left out. Raises ModelError where none is left, or the
    rank does not fit a module.
    """
    modules = chosen_modules(model, settings.modules)
    _check_rank(modules, settings.rank)
    if not any(text.own_tokens for text in texts):
        raise ModelError("no text of two tokens or more to make a basis from")
    return basis_of(second_moments(model, modules, texts, settings, progress), settings)


def basis_of(moments: Mapping[str, Moments], settings: BasisSettings) -> Basis:
    """Return the whitened basis of moments that were taken with the same `skip_first` and `modules`."""
    return Basis({name: _whiten(each, settings) for name, each in moments.items()})


def chosen_modules(model: LanguageModel, wanted: Sequence[str]) -> dict[str, nn.Linear]:
    """Return the adapted layers' linear modules whose last name part is in `wanted` (all, when empty)."""
    return {n: m for n, m in model.linear_modules().items() if not wanted or n.rsplit(".", 1)[-1] in wanted}


def _check_rank(modules: dict[str, nn.Linear], rank: int) -> None:
    for name, module in modules.items():
        if not 1 <= rank <= min(module.in_features, module.out_features):
            raise ModelError(f"rank {rank} does not fit {name} [{module.out_features}, {module.in_features}]")


def second_moments(
    model: LanguageModel,
    modules: dict[str, nn.Linear],
    texts: Sequence[Encoded],
    settings: BasisSettings,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Return the sums over all real tokens of `texts` for every module; modules fed by one input share its moments."""
    cached = [model.prefix(text) for text in texts if text.own_tokens > 0]
    sums = {name: _no_moments(module) for name, module in modules.items()}
    batches = batches_by_length([len(c.encoded.ids) for c in cached], 1024)
    for done, batch in enumerate(batches):
        _accumulate(model, modules, sums, [cached[i] for i in batch], settings)
        if progress is not None:
            progress(done + 1, len(batches))
    return sums


def _no_moments(module: nn.Linear) -> Moments:
    d_in, d_out = module.in_features, module.out_features
    return Moments(torch.zeros(d_in, d_in), torch.zeros(d_in), torch.zeros(d_out, d_out))


def _accumulate(
    model: LanguageModel,
    modules: dict[str, nn.Linear],
    sums: dict[str, Moments],
    documents: list[Cached],
    settings: BasisSettings,
) -> None:
    """Add one batch: inputs seen by forward hooks, output gradients by tensor hooks."""
    rows = padded(documents)
    lengths = torch.tensor([len(d.encoded.ids) for d in documents], device=model.device)
    real = torch.arange(rows.hidden.shape[1], device=model.device)[None] < lengths[:, None]
    if settings.skip_first:
        real[:, 0] = False
    last: tuple[Tensor, Tensor, Tensor] | None = None  # modules side by side read one tensor: multiply it once

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal last
            if last is None or last[0] is not args[0]:
                x = args[0].detach()[real].float()
                last = args[0], (x.T @ x).cpu(), x.sum(0).cpu()
            sums[name].xx += last[1]
            sums[name].x += last[2]
            sums[name].count += int(real.sum())
            output.register_hook(lambda g: _add_gram(sums[name].gg, g[real]))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    if not rows.hidden.is_floating_point():  # nothing is cached: gradients begin where ids become vectors
        embed = model.net.get_input_embeddings()
        handles.append(embed.register_forward_hook(lambda _module, _args, output: output.requires_grad_()))
    try:
        with torch.enable_grad():
            hidden = rows.hidden.detach().requires_grad_(rows.hidden.is_floating_point())
            model.nats(model.top(hidden)[rows.where], rows.labels).sum().backward()
    finally:
        for handle in handles:
            handle.remove()


def _add_gram(total: Tensor, rows: Tensor) -> None:
    rows = rows.float()
    total += (rows.T @ rows).cpu()


def _whiten(moments: Moments, settings: BasisSettings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    xx = (moments.xx / moments.count).numpy().astype(np.float64)
    if settings.centred:
        mean = (moments.x / moments.count).numpy().astype(np.float64)
        xx -= np.outer(mean, mean)
    gg = (moments.gg / moments.count).numpy().astype(np.float64)
    return _scaled_directions(xx, settings), _scaled_directions(gg, settings).T.copy()


def _scaled_directions(moment: NDArray[np.float64], settings: BasisSettings) -> NDArray[np.float32]:
    """Return the leading r eigenvectors as rows, each over the root of its damped eigenvalue; bfloat16 values."""
    d = len(moment)
    if d > 4 * settings.rank:  # Lanczos from a fixed start: a few eigenpairs of a large matrix, the same ones each time
        values, vectors = eigsh(moment, k=settings.rank, v0=np.ones(d))
        order = np.argsort(values)
        values, vectors = values[order], vectors[:, order]
    else:
        values, vectors = eigh(moment, subset_by_index=[d - settings.rank, d - 1])
    damped = np.maximum(values, 0) + settings.damping * np.trace(moment) / d
    signs = np.where(vectors[np.abs(vectors).argmax(0), np.arange(settings.rank)] < 0, -1.0, 1.0)
    rows = (vectors * signs / np.sqrt(damped)).T[::-1]
    return _bfloat16_values(rows)


def svd_basis(model: LanguageModel, settings: BasisSettings) -> Basis:
    """Return A, B from the leading singular triples of each weight, B carrying the singular values (LoRA-XS)."""
    factors, modules = {}, chosen_modules(model, settings.modules)
    _check_rank(modules, settings.rank)
    for name, module in modules.items():
        u, s, vt = torch.linalg.svd(plain(module.weight).float().cpu(), full_matrices=False)
        r = settings.rank
        factors[name] = (_bfloat16_values(vt[:r].numpy()), _bfloat16_values((u[:, :r] * s[:r]).numpy()))
    return Basis(factors)


def _bfloat16_values(array: NDArray[np.floating]) -> NDArray[np.float32]:
    rounded: NDArray[np.float32] = (
        torch.tensor(np.ascontiguousarray(array, dtype=np.float32)).bfloat16().float().numpy()
    )
    return rounded
