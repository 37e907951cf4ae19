"""What a reply is made with: the base model with a release's core and an own adapter folded into its layers.

    y = (W + B A) x,      A = [R A_basis ; A_own]  [r, d_in],      B = [B_basis , B_own]  [d_out, r]

The same sum as the adapters give side by side. Where the changed matrices fit into `MOST_MERGED_MB` they are made once
and a token costs what it costs without adapters; W + B A is rounded as W is. Else x goes through A and B in float32.
Folded layers are kept ready for the ways that served last, so that another person's or another release's are put in by
changing references alone. Training and rounds work on the model's own adapters, which this leaves where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from client.gains import GLOBAL_CORE
from client.model import LanguageModel
from client.network import is_quantized, plain
from client.own import own_factors
from client.personal import LORA
from client.releases import kept
from client.vault import Vault
from privacy.adapter import Basis, Cores, Matrix
from privacy.errors import ModelError

READY = 4  # ways that are kept folded
MOST_MERGED_MB = 512.0  # of all of them together
Children = dict[str, Any]
Factors = Mapping[str, tuple[Matrix, Matrix]]  # module -> A [r, d_in], B [d_out, r]


class Folded(nn.Module):
    """A linear layer with what adapts it beside it: x [..., d_in] -> W x + B A x [..., d_out]; for replies alone."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("a", a.to(base.weight.device), persistent=False)
        self.register_buffer("b", b.to(base.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; its own memory is written to, so no gradient may be wanted."""
        y: Tensor = self.base(x)
        low = F.linear(x.float(), self.get_buffer("a"))
        return y.add_(F.linear(low, self.get_buffer("b")))


class Merged(nn.Module):
    """A linear layer whose matrix holds what adapts it: x [..., d_in] -> (W + B A) x [..., d_out]."""

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        own = plain(base.weight)
        self.register_buffer("weight", (own.float() + (b @ a).to(own.device)).to(own.dtype), persistent=False)
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return F.linear(x, self.get_buffer("weight"), self.bias)


class Layers(dict[str, Folded | Merged]):
    """Folded layers by full name, and where each stands: the children of its parent, and its name among them."""

    def __init__(self, net: nn.Module, layers: Mapping[str, Folded | Merged]) -> None:
        super().__init__(layers)
        self.slots = [(*_slot(net, name), layer) for name, layer in layers.items()]


def core_factors(basis: Basis, cores: Cores) -> Factors:
    """Return a release's shared core as ordinary factors: A = R A_basis, B = B_basis."""
    return {name: (cores[name] @ a, b) for name, (a, b) in basis.factors.items()}


def fold(model: LanguageModel, parts: Sequence[Factors], most_mb: float = MOST_MERGED_MB) -> Layers:
    """Return the layers that give the sum of all parts. Raises ModelError where one does not fit the model.

    They are merged where that takes at most `most_mb` of 2^20 bytes.
    """
    layers: dict[str, Folded | Merged] = {}
    names = {name for part in parts for name in part}
    size = sum(base.weight.nbytes for name in names if (base := _base(model, name)) is not None)
    held = any(base is not None and is_quantized(base.weight) for base in (_base(model, name) for name in names))
    kind = (
        Merged if size <= most_mb * 2**20 and not held else Folded
    )  # merged, a quantised layer would be none any more
    for name in sorted(names):
        base = _base(model, name)
        here = [part[name] for part in parts if name in part]
        if base is None or any((b.shape[0], a.shape[1]) != (base.out_features, base.in_features) for a, b in here):
            raise ModelError(f"an adapter does not fit the model here, {model.name}, at {name}")
        a = torch.cat([torch.tensor(a) for a, _ in here])
        b = torch.cat([torch.tensor(b) for _, b in here], 1)
        layers[name] = kind(base, a, b).requires_grad_(False)
    return Layers(model.net, layers)


@contextmanager
def in_place(model: LanguageModel, layers: Layers | None) -> Iterator[None]:
    """Let the model be the bare one with these layers in it inside the block, and what it was before behind it."""
    wanted: list[tuple[Children, str, nn.Module]] = list(layers.slots) if layers is not None else []
    if model.peft is not None:
        bare = [(n, m) for n, m in model.net.named_modules() if isinstance(m, BaseTunerLayer)]
        wanted += [(*_slot(model.net, n), m.get_base_layer()) for n, m in bare if layers is None or n not in layers]
    before = [(children, name, children[name]) for children, name, _ in wanted]
    for children, name, module in wanted:
        children[name] = module
    try:
        yield
    finally:
        for children, name, old in before:
            children[name] = old


def _slot(net: nn.Module, name: str) -> tuple[Children, str]:
    """Return the children among which a module stands, and its name there: written to without PyTorch's checks."""
    parent, _, last = name.rpartition(".")
    return net.get_submodule(parent)._modules, last


class Serving:
    """Folded layers of what serves one person, ready for the ways that served last; call with the model's lock held."""

    def __init__(self, vault: Vault, model: LanguageModel, most: int = READY) -> None:
        self._vault, self._model, self._most = vault, model, most
        self._ready: dict[tuple[str, int, float], Layers] = {}

    def layers(self, release: str, adapter: int) -> Layers | None:
        """Return what a release, "" for none, and an own adapter, 0 for none, give; None for what cannot be folded.

        Raises ReleaseInvalid or ModelError where they are not what they were or do not fit.
        """
        made = 0.0
        if adapter:
            made, kind = self._vault.select("SELECT made, kind FROM adapter WHERE id = ?", (adapter,))[0]
            if kind != LORA:
                return None
        key = (release, adapter, float(made))
        if key not in self._ready:
            self._ready[key] = fold(self._model, self._parts(release, adapter))
        self._ready[key] = self._ready.pop(key)  # the last to serve is the last to go
        while len(self._ready) > self._most or (len(self._ready) > 1 and self._merged_mb() > MOST_MERGED_MB):
            del self._ready[next(iter(self._ready))]
        return self._ready[key]

    def forget(self) -> None:
        """Drop all folded layers: they know what their adapters know."""
        self._ready.clear()

    def _merged_mb(self) -> float:
        layers = [layer for way in self._ready.values() for layer in way.values() if isinstance(layer, Merged)]
        return sum(layer.get_buffer("weight").nbytes for layer in layers) / 2**20

    def _parts(self, release: str, adapter: int) -> list[Factors]:
        found: list[Factors] = []
        shared = kept(self._vault, release)
        if shared is not None:
            found.append(core_factors(shared.basis, shared.adapters[GLOBAL_CORE]))
        if adapter:
            facts, data = self._vault.select("SELECT facts, tensors FROM adapter WHERE id = ?", (adapter,))[0]
            if json.loads(facts).get("unfinished"):
                raise ModelError(f"own adapter {adapter} is not finished")
            found.append(own_factors(load_tensors(bytes(data))))
        return found


def _base(model: LanguageModel, name: str) -> nn.Linear | None:
    try:
        found: Any = model.net.get_submodule(name)
    except AttributeError:
        return None
    base = getattr(found, "base_layer", found)
    return base if isinstance(base, nn.Linear) else None
