"""Texts behind one context are scored as if each stood behind it alone; what is written in a batch is written alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.model import GLOBAL, OWN, LanguageModel
from client.own import own_tensors, reset_own
from simulation.scorecard.shared_context import continued, plain_states, shared_nats

CONTEXT = "the boat went down the river to the mill, and the miller laughed at it"
TEXTS = (("Was it so? ", "yes"), ("Was it so? ", "no, by no means"), ("", "And then it rained for days."))


@pytest.fixture
def model(tiny_model_dir: Path) -> LanguageModel:
    made = LanguageModel.load(tiny_model_dir, top_layers=3)
    made.add_own(4, ("q_proj", "v_proj", "down_proj"))
    reset_own(made, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, p in own_tensors(made).items():
            if ".lora_B." in name:
                p.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    made.activate(GLOBAL, OWN)
    return made


def test_a_shared_context_changes_no_score(model: LanguageModel) -> None:
    """To rounding in float32; a wrong place or mask of any text moves its score by whole nats."""
    texts = [model.encode_text(q + a, [(len(q), len(q + a))], f"d{i}", 64) for i, (q, a) in enumerate(TEXTS)]
    ids = model.context_ids(CONTEXT, 200)
    alone = [
        float(n.double().sum()) for n in model.document_nats([model.prefix(model.with_context(t, ids)) for t in texts])
    ]
    assert [float(n.sum()) for n in shared_nats(model, ids, texts)] == pytest.approx(alone, rel=1e-5)
    shorter = [float(n.sum()) for n in shared_nats(model, ids[:-3], texts)]
    assert shorter != pytest.approx(alone, rel=1e-3), "the context counts"
    cached = [model.prefix(t) for t in texts]
    found = [
        float(model.nats(s, t.ids[t.target]).detach().double().sum())
        for s, t in zip(plain_states(model, cached), texts, strict=True)
    ]
    assert found == pytest.approx([float(n.double().sum()) for n in model.document_nats(cached)], rel=1e-5)


def test_what_is_written_in_a_batch_is_written_alone(model: LanguageModel) -> None:
    openings = [model.context_ids(text, 64) for text in (CONTEXT, "the mill", "")]
    together = continued(model, openings, 12)
    assert together == [continued(model, [ids], 12)[0] for ids in openings]
    assert together[2] == "" and together[0] and together[0] != together[1]
