"""Own training that was cut off goes on with the same numbers, and accounts for every step it took."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from client import own_training
from client.model import GLOBAL, OWN, Cached, LanguageModel
from client.own_training import Checkpoint, OwnTraining, train_own

CachedDialogues = Callable[..., list[Cached]]
NewModel = Callable[..., LanguageModel]
PLAIN = OwnTraining(rank=2, epochs=4, learning_rate=5e-3, batch_documents=3, batch_tokens=64)
PRIVATE = replace(PLAIN, record_epsilon=8.0)


class CutOff(Exception):
    """What stands for a lost process where the test wants to look at the state behind it."""


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def fresh(new_model: NewModel) -> LanguageModel:
    model = new_model(dtype=torch.float32)
    model.add_own(2, PLAIN.modules)
    return model


def cut_off(model: LanguageModel, documents: list[Cached], settings: OwnTraining, after: int) -> tuple[bytes, int]:
    kept: list[tuple[bytes, int]] = []

    def watch(done: int, steps: int, take: Callable[[], Checkpoint]) -> None:
        if done == after:
            kept.append((take().to_bytes(), steps))
            raise CutOff

    with pytest.raises(CutOff):
        train_own(model, documents, settings, seed(3), watch=watch)
    return kept[0]


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_plain_training_goes_on_bit_by_bit(new_model: NewModel, cached: CachedDialogues, after: int) -> None:
    model = fresh(new_model)
    whole, _ = train_own(model, cached(model, 7), PLAIN, seed(3))
    data, _ = cut_off(model, cached(model, 7), PLAIN, after)
    other = fresh(new_model)  # another process: another model, another generator
    again, _ = train_own(other, cached(other, 7), PLAIN, seed(99), start=Checkpoint.of_bytes(data))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert any(tensor.any() for name, tensor in whole.items() if ".lora_B." in name), "or nothing was trained"


def test_a_private_training_that_goes_on_counts_its_steps_once(new_model: NewModel, cached: CachedDialogues) -> None:
    model = fresh(new_model)
    _, whole = train_own(model, cached(model, 7), PRIVATE, seed(3))
    data, steps = cut_off(model, cached(model, 7), PRIVATE, 5)
    start = Checkpoint.of_bytes(data)
    assert sum(k for _, _, k in start.history) == start.done == 5 < steps
    assert "generator" not in start.tensors, "it would say what the noise was"
    taken: list[Any] = []
    charges: list[Any] = []
    _, privacy = train_own(
        model,
        cached(model, 7),
        PRIVATE,
        seed(4),
        lambda *figures: charges.append(figures),
        lambda done, _steps, take: taken.append((done, take().history)),
        start,
    )
    assert privacy == whole and not charges
    assert [done for done, _ in taken] == list(range(6, steps + 1))
    assert [sum(k for _, _, k in history) for _, history in taken] == list(range(6, steps + 1))


def test_documents_one_by_one_or_together_give_one_gradient(new_model: NewModel, cached: CachedDialogues) -> None:
    model = fresh(new_model)
    together, _ = train_own(model, cached(model, 6), replace(PLAIN, batch_tokens=10_000), seed(1))
    alone, _ = train_own(model, cached(model, 6), replace(PLAIN, batch_tokens=1), seed(1))
    for name, tensor in together.items():
        torch.testing.assert_close(alone[name], tensor, rtol=0, atol=2e-3)


def test_the_rate_has_fallen_to_zero_when_the_clock_runs_out(
    new_model: NewModel, cached: CachedDialogues, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(own_training, "time", SimpleNamespace(monotonic=lambda: 0.02 * next(ticks)))
    model = fresh(new_model)
    moved: list[float] = []
    before: list[torch.Tensor] = []

    def watch(_done: int, _steps: int, take: Callable[[], Checkpoint]) -> None:
        flat = torch.cat([t.flatten() for name, t in sorted(take().tensors.items()) if name.startswith("own.")])
        if before:
            moved.append(float((flat - before[-1]).norm()))
        before.append(flat)

    settings = replace(PLAIN, epochs=100_000, seconds=2.0)
    train_own(model, cached(model, 6), settings, seed(1), watch=watch)
    assert len(moved) > 10 and moved[-1] < 0.2 * max(moved)
    model.activate(GLOBAL, OWN)
