"""The base model of a device, cut in two: a frozen prefix that runs once, a top that carries the adapters.

    h = prefix(ids)                      layers 0 .. first-1, no gradients, kept between epochs and rounds
    nats = loss(norm(top(h + adapters))) layers first .. L-1, base in bfloat16 where the CPU has it, adapters in float32

The adapters are PEFT's: `global` holds the shared cores (A and B frozen, R trained, see `CoreA`), `own` is any LoRA of
the person. Logits and loss are float32 and only computed where a token counts. Right padding is harmless: attention is
causal, so no real token sees a pad, and no batch ever holds two people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from client import attention
from client.core_layer import CoreA, CoreVariant
from client.documents import Document
from client.network import NONE, load_net
from client.target_tokens import fitted, targets_in
from client.token_loss import token_nats
from privacy.adapter import AdapterLayout, Basis, Cores
from privacy.errors import ModelError

GLOBAL, OWN = "global", "own"
PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Encoded:
    """One document as tokens: `ids` int64 [T]; `target` bool [T], true where the token is the owner's own word.

    The first token is never a target, since nothing predicts it.
    """

    document: str
    ids: Tensor
    target: Tensor

    @property
    def own_tokens(self) -> int:
        """Return the number of target tokens."""
        return int(self.target.sum())


@dataclass(frozen=True)
class Cached:
    """A document with the prefix's output, `hidden` [T, width]: personal text in another form, kept like the text."""

    encoded: Encoded
    hidden: Tensor


class LanguageModel:
    """A causal language model with shared cores and an own adapter over its top layers.

    `first` is the first adapted layer; 0 means that nothing can be cached (architectures whose lower half does not
    replay exactly; found by a probe when the model is loaded).
    """

    def __init__(self, net: Any, tokenizer: PreTrainedTokenizerBase, top_layers: int, name: str) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.net = net.eval()
        attention.use(self.net)
        self.net.config.use_cache = False
        self.net.requires_grad_(False)
        self.inner: Any = net.base_model
        self._layers_name, layers = _layer_list(self.inner, net.config.num_hidden_layers)
        self.depth = len(layers)
        self.first = max(0, self.depth - top_layers)
        self.head: Tensor = net.get_output_embeddings().weight
        self.head32, self.device, self.dtype = self.head.float(), self.head.device, self.head.dtype
        self.peft: PeftModel | None = None
        self.layout: AdapterLayout | None = None
        self._places: dict[str, dict[str, nn.Module | None]] = {}  # module of the basis -> what holds its core
        self.prompt: nn.Embedding | None = None  # a soft prompt of the person's own, see `add_prompt`
        self._prompted = False
        self._active: list[str] | None = None  # the adapters that are switched on; None: to be switched anew
        self._probe()

    @classmethod
    def load(
        cls, path: Path | str, top_layers: int = 10, dtype: torch.dtype | None = None, quantize: str = NONE
    ) -> LanguageModel:
        """Return the model in folder (or hub id) `path`, on the GPU where there is one.

        `dtype` None keeps what is stored; `quantize`: see `client.network`. Raises ModelError for what is no causal LM.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            net = load_net(path, dtype, quantize)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"cannot load a causal language model from {path}: {reason}") from error
        return cls(net, tokenizer, top_layers, str(path))

    # -- text to tokens -------------------------------------------------------------------------------------------

    def encode(self, document: Document, max_tokens: int) -> Encoded:
        """Return the first `max_tokens` tokens of a document, with the special tokens that the tokenizer itself adds.

        Where what others wrote before the owner's first word leaves less than a quarter of them for the owner, its
        beginning is left out: a headline behind a long article is read all the same.

        A token is a target when all its characters but leading white space lie in the owner's unmasked words, so a
        token that touches a partner's word or a placeholder never is.
        """
        return self.encode_text(document.text, list(document.target_ranges()), document.id, max_tokens)

    def encode_text(self, text: str, ranges: Sequence[tuple[int, int]], name: str, max_tokens: int) -> Encoded:
        """Return the tokens of `text` with targets inside the character `ranges`, see `encode`."""
        row = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, inside = row["input_ids"], targets_in(text, row["offset_mapping"], ranges)
        ids, inside = fitted(ids, inside, max_tokens, bool(ids) and ids[0] in self.tokenizer.all_special_ids)
        target = torch.tensor(inside, dtype=torch.bool)
        target[:1] = False
        return Encoded(name, torch.tensor(ids, dtype=torch.long), target)

    def context_ids(self, text: str, max_tokens: int) -> Tensor:
        """Return the last `max_tokens` tokens of a text that goes before a document, with an empty line after it."""
        if not text:
            return torch.empty(0, dtype=torch.long)
        ids = self.tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids[-max_tokens:], dtype=torch.long)

    def with_context(self, encoded: Encoded, context: Tensor) -> Encoded:
        """Return the document behind `context`, its own tokens and targets the very same."""
        start = int(bool(len(encoded.ids)) and int(encoded.ids[0]) in self.tokenizer.all_special_ids)
        ids = torch.cat([encoded.ids[:start], context, encoded.ids[start:]])
        none = torch.zeros(len(context), dtype=torch.bool)
        return Encoded(encoded.document, ids, torch.cat([encoded.target[:start], none, encoded.target[start:]]))

    # -- the two halves -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefix(self, encoded: Encoded) -> Cached:
        """Return the document with the output of the frozen layers below the first adapted one.

        One document at a time: the result is independent of what else is being computed, bit for bit.
        """
        if self.first == 0:
            return Cached(encoded, encoded.ids.to(self.device))
        with self._only_layers(0, self.first, norm=False):
            hidden = self.inner(input_ids=encoded.ids[None].to(self.device), use_cache=False).last_hidden_state
        return Cached(encoded, hidden[0].clone())

    def top(self, hidden: Tensor) -> Tensor:
        """Return the normed last hidden states, [B, T, width], of cached prefixes right-padded to one length."""
        if self.prompt is not None and self._prompted:
            numbers = torch.arange(self.prompt.num_embeddings, device=self.device).expand(len(hidden), -1)
            with self._only_layers(self.first, self.depth):
                both = torch.cat([self.prompt(numbers).to(hidden.dtype), hidden], 1)
                states = self.inner(inputs_embeds=both, use_cache=False).last_hidden_state
            states = states[:, self.prompt.num_embeddings :]
        elif self.first == 0:
            states = self.inner(input_ids=hidden, use_cache=False).last_hidden_state
        else:
            with self._only_layers(self.first, self.depth):
                states = self.inner(inputs_embeds=hidden, use_cache=False).last_hidden_state
        assert isinstance(states, Tensor)
        return states

    def nats(self, states: Tensor, labels: Tensor, rows: int = 256) -> Tensor:
        """Return -ln p(label) for each hidden state: states [N, width], labels [N], float32 [N]."""
        return token_nats(states, labels, self.head, self.head32, rows)

    @torch.no_grad()
    def document_nats(self, documents: Sequence[Cached], batch_tokens: int = 2048) -> list[Tensor]:
        """Return the nats of every target token, one float32 [own_tokens] a document, in the given order."""
        result: list[Tensor] = [torch.empty(0)] * len(documents)
        for batch in batches_by_length([len(d.encoded.ids) for d in documents], batch_tokens):
            rows = padded([documents[i] for i in batch])
            nats = self.nats(self.top(rows.hidden)[rows.where], rows.labels).cpu()
            counts = torch.bincount(rows.row, minlength=len(batch)).tolist()
            for i, part in zip(batch, nats.split(counts), strict=True):
                result[i] = part
        return result

    # -- adapters -------------------------------------------------------------------------------------------------

    def attach(self, basis: Basis) -> None:
        """Put zero cores over `basis` into the model as PEFT's adapter `global`, replacing an earlier basis.

        Raises ModelError where the basis names modules that the model lacks, or that lie below the first adapted layer.
        """
        self._active = None
        if self.peft is not None:
            self._tuner().unload()
        self._check_sites(basis)
        ranks = {site.module: site.rank for site in basis.layout.sites}
        rank = next(iter(ranks.values()))
        config = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(ranks), task_type="CAUSAL_LM"
        )
        self.peft = get_peft_model(self.net, config, adapter_name=GLOBAL)
        for name, (a, b) in basis.factors.items():
            layer = self.net.get_submodule(name)
            layer.lora_A[GLOBAL] = CoreA(torch.tensor(a), self.dtype).to(self.device)
            lora_b = nn.Linear(b.shape[1], b.shape[0], bias=False, device=self.device)
            lora_b.weight = nn.Parameter(torch.tensor(b, device=self.device, dtype=self.dtype))
            layer.lora_variant[GLOBAL] = CoreVariant()
            layer.lora_B[GLOBAL], layer.scaling[GLOBAL], layer.r[GLOBAL] = lora_b, 1.0, ranks[name]
        self.layout = basis.layout
        found = {site.module: self.net.get_submodule(site.module) for site in basis.layout.sites}
        self._places = {name: layer.lora_A[GLOBAL]._modules for name, layer in found.items()}
        self.activate(GLOBAL)

    def add_own(self, rank: int, modules: Sequence[str], kind: str = "lora", top_layers: int | None = None) -> None:
        """Add an untrained adapter `own` on the named modules ("q_proj", …) of the adapted layers, in place of another.

        `top_layers` keeps it to the topmost so many of them: what lies below then needs no backward pass.

        `kind` "lora" of `rank` stands beside the shared cores where there are any; "ia3" scales what the modules give
        and stands alone (PEFT mixes the two in no model); "prompt" is `rank` vectors before the adapted layers, the
        modules aside. Raises ModelError where that cannot be.
        """
        self.drop_own()
        if kind == "prompt":
            if self.first == 0:
                raise ModelError("a soft prompt needs an architecture whose layers can be cut in two")
            self.prompt = nn.Embedding(rank, self.head.shape[1], device=self.device).requires_grad_(False)
            return
        lowest = 0 if top_layers is None else self.depth - top_layers
        stem = f"{_name_of(self.net, self.inner)}{self._layers_name}."
        names = [
            name
            for name in self.linear_modules()
            if name.rsplit(".", 1)[-1] in modules and int(name[len(stem) :].split(".", 1)[0]) >= lowest
        ]
        if not names:
            raise ModelError(f"the adapted layers have none of the modules {', '.join(modules)}")
        config: PeftConfig = LoraConfig(
            r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM"
        )
        if kind == "ia3":
            if self.layout is not None:
                raise ModelError("IA3 cannot stand beside shared cores: use LoRA or a soft prompt")
            narrow = [name for name in names if name.endswith("down_proj")]
            config = IA3Config(target_modules=names, feedforward_modules=narrow, task_type="CAUSAL_LM")
        if self.peft is None:
            self.peft = get_peft_model(self.net, config, adapter_name=OWN)
        else:
            self.peft.add_adapter(OWN, config)
        self.activate(GLOBAL)

    def drop_own(self) -> None:
        """Take the adapter `own` out, of whatever kind."""
        self.prompt, self._active = None, None
        if self.peft is not None and OWN in self.peft.peft_config:
            if self.layout is None:
                self._tuner().unload()
                self.peft = None
            else:
                self.peft.delete_adapter(OWN)

    def activate(self, *adapters: str) -> None:
        """Switch on the named adapters, all others off, everything frozen; what it does not carry is left out."""
        self._prompted = OWN in adapters
        if self.peft is not None:
            wanted = [name for name in adapters if name in self.peft.peft_config]
            if wanted == self._active:  # PEFT walks all modules for a switch: a quarter of a short training
                return
            self._active = wanted
            if wanted:
                self._tuner().enable_adapter_layers()
                self._tuner().set_adapter(wanted)
            else:
                self._tuner().disable_adapter_layers()
        self.net.requires_grad_(False)

    def set_cores(self, cores: Cores) -> None:
        """Copy cores (module -> R [r, r]) into the adapter `global`."""
        with torch.no_grad():
            for name, linear in self.cores().items():
                linear.weight.copy_(torch.tensor(cores[name]))

    def cores(self) -> dict[str, nn.Linear]:
        """Return the trainable core of every module of the basis, in the layout's order."""
        assert self.layout is not None
        return {n: core for n, place in self._places.items() if isinstance(core := place["core"], nn.Linear)}

    def linear_modules(self) -> dict[str, nn.Linear]:
        """Return every linear module of the adapted layers by full name: where adapters may sit."""
        stem = f"{_name_of(self.net, self.inner)}{self._layers_name}."
        modules = {}
        for name, module in self.net.named_modules():
            base = getattr(module, "base_layer", module)
            inside_peft = name.endswith(".base_layer") or ".lora_" in name
            if not isinstance(base, nn.Linear) or not name.startswith(stem) or inside_peft:
                continue
            if int(name[len(stem) :].split(".", 1)[0]) >= self.first:
                modules[name] = base
        return modules

    # -- inside ---------------------------------------------------------------------------------------------------

    def _tuner(self) -> Any:
        """Return PEFT's wrapper around the layers, which switches and removes adapters."""
        assert self.peft is not None
        return self.peft.base_model

    @contextmanager
    def _only_layers(self, start: int, end: int, norm: bool = True) -> Iterator[None]:
        """Run the inner model with layers start..end-1 alone; without its last norm for the prefix."""
        layers = getattr(self.inner, self._layers_name)
        last_norm = getattr(self.inner, "norm", None)
        setattr(self.inner, self._layers_name, nn.ModuleList(list(layers)[start:end]))
        if not norm:
            self.inner.norm = nn.Identity()
        try:
            yield
        finally:
            setattr(self.inner, self._layers_name, layers)
            if not norm:
                self.inner.norm = last_norm

    def _check_sites(self, basis: Basis) -> None:
        known = self.linear_modules()
        for site in basis.layout.sites:
            linear = known.get(site.module)
            if linear is None or (linear.in_features, linear.out_features) != (site.d_in, site.d_out):
                raise ModelError(f"the basis does not fit this model at {site.module}")

    @torch.no_grad()
    def _probe(self) -> None:
        """Compare prefix, top and head with one plain forward pass; fall back to no prefix, else raise ModelError."""
        ids = self.tokenizer(PROBE_TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"].to(self.device)
        logits = self.net(input_ids=ids, use_cache=False).logits[0].float()
        wanted = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0].neg()
        tolerance = 0.25 if self.dtype == torch.bfloat16 else 1e-3
        for first in dict.fromkeys((self.first, 0)):
            self.first = first
            try:
                cached = self.prefix(Encoded("probe", ids[0], torch.ones_like(ids[0], dtype=torch.bool)))
                found = self.nats(self.top(cached.hidden[None])[0, :-1], ids[0, 1:])
            except (AttributeError, TypeError, RuntimeError):
                continue
            if torch.allclose(found.float(), wanted, rtol=0, atol=tolerance):
                return
        raise ModelError(f"{self.name}: this architecture's logits are not head(norm(layers(x))); it is not supported")


@dataclass(frozen=True)
class Rows:
    """Documents of one person, right-padded: `hidden` [B, T, width] (or ids [B, T]) and where the targets stand.

    `where` indexes [B, T] at the positions that predict a target, `labels` [N] are those targets, `row` [N] tells the
    document of each.
    """

    hidden: Tensor
    where: tuple[Tensor, Tensor]
    labels: Tensor
    row: Tensor


def padded(documents: Sequence[Cached]) -> Rows:
    """Return the documents as one padded batch with the positions whose next token is a target."""
    hidden = nn.utils.rnn.pad_sequence([d.hidden for d in documents], batch_first=True)
    rows, columns, labels = [], [], []
    for i, document in enumerate(documents):
        at = document.encoded.target.nonzero()[:, 0]
        rows.append(torch.full_like(at, i))
        columns.append(at - 1)
        labels.append(document.encoded.ids[at])
    row, column = torch.cat(rows).to(hidden.device), torch.cat(columns).to(hidden.device)
    return Rows(hidden, (row, column), torch.cat(labels).to(hidden.device), row)


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return indices in batches of like length, each of one document or of at most `batch_tokens` with its padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _layer_list(inner: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    for name, child in inner.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return name, child
    raise ModelError(f"no list of {depth} layers in {type(inner).__name__}; this architecture is not supported")


def _name_of(net: nn.Module, inner: nn.Module) -> str:
    for name, module in net.named_modules():
        if module is inner:
            return f"{name}." if name else ""
    return ""
