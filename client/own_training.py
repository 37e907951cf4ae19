"""Training of a person's own adapter: AdamW over their documents, or Opacus' steps under record-level privacy.

    rate(t) = learning_rate * min(1, t / warm-up) * (1 - t),   t = max(steps done / steps, seconds gone / seconds)

Where time runs out first the rate has fallen to zero by then: a training that is cut short is a finished one. After
each step `watch` may take a checkpoint or end the training; from a checkpoint it goes on with the very same numbers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import torch
from opacus import PrivacyEngine
from opacus.accountants.utils import get_noise_multiplier
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel, batches_by_length, padded
from client.own import RecordPrivacy, load_own, own_modules, own_tensors, reset_own
from client.train import DocumentLoss, StepPlan, private_steps, quiet, trainable

Charge = Callable[[float, float, int, float, float], None]  # noise multiplier, sampling rate, steps, clip, delta
OWN_MODULES = ("q_proj", "v_proj", "o_proj", "down_proj")
WARM_UP = 0.1
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class OwnTraining:
    """The own adapter: AdamW over `epochs` passes, in at most `seconds`; the rate falls to zero.

    `record_epsilon` asks for document-level (epsilon, delta) by Opacus; its rate stays as it is. `batch_tokens` bounds
    what goes through the model at once, padding included: less of it is less memory and the same gradient.
    """

    rank: int = 8
    epochs: int = 2
    learning_rate: float = 1e-3
    batch_documents: int = 4
    modules: tuple[str, ...] = OWN_MODULES
    record_epsilon: float | None = None
    record_delta: float = 1e-5
    document_clip: float = 1.0
    seconds: float = math.inf
    batch_tokens: int = 2048
    most_steps: int | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a training stands after `done` steps: numbers, moments, what is left of a pass, what was accounted.

    It knows the documents as well as the adapter does, and is kept and forgotten like it.
    """

    done: int
    seconds: float
    tensors: Mapping[str, Tensor]
    history: tuple[tuple[float, float, int], ...] = ()

    def to_bytes(self) -> bytes:
        """Return the checkpoint as one safetensors file."""
        facts = {"done": self.done, "seconds": self.seconds, "history": self.history}
        return save_tensors({k: t.contiguous() for k, t in self.tensors.items()}, {"facts": json.dumps(facts)})

    @classmethod
    def of_bytes(cls, data: bytes) -> Checkpoint:
        """Return the checkpoint that `to_bytes` wrote."""
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["facts"])
        history = tuple((float(n), float(q), int(k)) for n, q, k in facts["history"])
        return cls(int(facts["done"]), float(facts["seconds"]), load_tensors(data), history)


class Lazily(Sequence[Cached]):
    """Encoded documents whose prefix is computed when they are looked at: only a few of many are, and none is kept."""

    def __init__(self, model: LanguageModel, rows: Sequence[Encoded]) -> None:
        self._model, self._rows = model, [row for row in rows if row.own_tokens]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Cached: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Cached]: ...
    def __getitem__(self, at: int | slice) -> Cached | Sequence[Cached]:
        if isinstance(at, slice):
            return Lazily(self._model, self._rows[at])
        return self._model.prefix(self._rows[at])


Watch = Callable[[int, int, Callable[[], Checkpoint]], None]  # steps done, of how many, what takes a checkpoint


def _unwatched(_done: int, _steps: int, _take: Callable[[], Checkpoint]) -> None:
    return None


def train_own(
    model: LanguageModel,
    documents: Sequence[Cached],
    settings: OwnTraining,
    generator: torch.Generator,
    charge: Charge | None = None,
    watch: Watch = _unwatched,
    start: Checkpoint | None = None,
) -> tuple[dict[str, Tensor], RecordPrivacy | None]:
    """Train a fresh adapter `own` over the active global core and return its tensors and its record-level guarantee.

    It is of the kind that the model carries (`LanguageModel.add_own`). Without `record_epsilon` the guarantee is None:
    the adapter may know any document by heart and must stay on the device. With it the RDP accountant of Opacus bounds
    what the adapter tells about any one document (add or remove one); the noise is float Gaussian, so the bound is that
    of the real-number mechanism. `generator` draws the initial values, the batches and the noise, so it must be secret
    wherever the guarantee is relied on. `charge` is called with the mechanism's figures before the first noise is
    drawn. `start` is a checkpoint of the same documents and settings: steps taken since it left no trace, and are taken
    again with new noise.
    """
    model.activate(GLOBAL, OWN)
    loss = DocumentLoss(model, own_modules(model))
    if start is None:
        reset_own(model, generator)
    else:
        load_own(model, {name: start.tensors[f"own.{name}"] for name in own_tensors(model)})
    usable = documents if isinstance(documents, Lazily) else [d for d in documents if d.encoded.own_tokens]
    optimizer = torch.optim.AdamW(loss.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    run = _Run(model, loss, optimizer, generator, settings, watch)
    if start is not None:
        run.restore(start)
    privacy = None
    if usable and settings.record_epsilon is not None:
        privacy = run.privately(usable, charge, start)
    elif usable:
        run.plainly(usable, start)
    return {name: p.detach().clone() for name, p in own_tensors(model).items()}, privacy


class _Run:
    """One training under way."""

    def __init__(
        self,
        model: LanguageModel,
        loss: DocumentLoss,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        settings: OwnTraining,
        watch: Watch,
    ) -> None:
        self.model, self.loss, self.optimizer, self.generator = model, loss, optimizer, generator
        self.settings, self.watch = settings, watch
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.order: list[int] = []
        self._began, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Return how long the training has taken, what came before a checkpoint included."""
        return self._before + time.monotonic() - self._began

    def restore(self, start: Checkpoint) -> None:
        """Take over the optimizer's moments, the rest of the pass, and the random numbers of a plain training."""
        for i, p in enumerate(self.parameters):
            kept = {name: start.tensors[f"{name}.{i}"].clone() for name in _MOMENTS if f"{name}.{i}" in start.tensors}
            if kept:
                self.optimizer.state[p] = kept
        self.order = start.tensors["order"].tolist()
        self._before = start.seconds
        if self.settings.record_epsilon is None:
            self.generator.set_state(start.tensors["generator"])

    def checkpoint(self, done: int, history: Sequence[Any] = ()) -> Checkpoint:
        """Return where the training stands."""
        tensors = {f"own.{name}": p.detach().clone() for name, p in own_tensors(self.model).items()}
        for i, p in enumerate(self.parameters):
            for name in _MOMENTS:
                if name in self.optimizer.state.get(p, {}):
                    tensors[f"{name}.{i}"] = self.optimizer.state[p][name].detach().clone()
        tensors["order"] = torch.tensor(self.order, dtype=torch.int64)
        if self.settings.record_epsilon is None:  # that of a private one would say what its noise was
            tensors["generator"] = self.generator.get_state()
        return Checkpoint(done, self.seconds, tensors, tuple(tuple(each) for each in history))

    def plainly(self, documents: Sequence[Cached], start: Checkpoint | None) -> None:
        """AdamW over shuffled batches; the loss of a batch is the mean of its documents' means."""
        settings = self.settings
        steps = _steps(settings, settings.epochs * math.ceil(len(documents) / settings.batch_documents))
        with trainable(self.parameters):
            for number in range(start.done if start else 0, steps):
                if number and self.seconds > settings.seconds:
                    break
                for group in self.optimizer.param_groups:
                    group["lr"] = settings.learning_rate * self._share_of_rate(number, steps)
                if not self.order:
                    self.order = torch.randperm(len(documents), generator=self.generator).tolist()
                batch, self.order = self.order[: settings.batch_documents], self.order[settings.batch_documents :]
                self._step([documents[i] for i in batch])
                self.watch(number + 1, steps, lambda done=number + 1: self.checkpoint(done))  # type: ignore[misc]
        self.optimizer.zero_grad(set_to_none=True)

    def _share_of_rate(self, number: int, steps: int) -> float:
        gone = max(number / steps, self.seconds / self.settings.seconds)
        return min(1.0, (number + 1) / max(1.0, WARM_UP * steps)) * max(0.0, 1.0 - gone)

    def _step(self, batch: Sequence[Cached]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for chunk in batches_by_length([len(d.encoded.ids) for d in batch], self.settings.batch_tokens):
            rows = padded([batch[i] for i in chunk])
            (self.loss(rows.hidden, *rows.where, rows.labels).sum() / len(batch)).backward()
        self.optimizer.step()

    def privately(self, documents: Sequence[Cached], charge: Charge | None, start: Checkpoint | None) -> RecordPrivacy:
        """Opacus' steps; a training that goes on was charged for when it began."""
        settings = self.settings
        assert settings.record_epsilon is not None
        rate = 1.0 / math.ceil(len(documents) / min(len(documents), settings.batch_documents))
        steps = _steps(settings, settings.epochs * round(1.0 / rate))
        noise = noise_for(settings.record_epsilon, settings.record_delta, rate, steps)
        left = settings.seconds - self._before
        plan = StepPlan(steps, rate, settings.document_clip, noise, settings.batch_tokens, left)
        if charge is not None and start is None:
            charge(noise, rate, steps, settings.document_clip, settings.record_delta)

        def after(done: int, engine: PrivacyEngine) -> None:
            self.watch(done, steps, lambda: self.checkpoint(done, engine.accountant.history))

        history = start.history if start else ()
        engine = private_steps(self.loss, self.optimizer, documents, plan, self.generator, after, history)
        with quiet():
            spent = float(engine.get_epsilon(settings.record_delta))
        if not math.isinf(settings.seconds):  # when the clock ended it may tell of the text: the whole plan is charged
            spent = max(spent, settings.record_epsilon)
        return RecordPrivacy(spent, settings.record_delta, noise, rate, steps)


def _steps(settings: OwnTraining, wanted: int) -> int:
    return max(1, wanted if settings.most_steps is None else min(wanted, settings.most_steps))


@lru_cache(maxsize=1024)
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the least noise multiplier that Opacus' RDP accountant finds enough; seconds of search, then kept."""
    with quiet():
        found = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
        )
    return float(found)
