"""What the tests of the learning half share: tiny models of a fixed seed, a basis, documents of two speakers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client.basis import BasisSettings, whitened_basis
from client.documents import Document, Span
from client.model import Cached, LanguageModel
from privacy.adapter import Basis

SENTENCES = (
    "I sold the old boat at last.",
    "Rain again, so we stayed in and played cards until the lamp went out.",
    "No.",
    "My sister keeps bees and I keep her books, more or less.",
    "Tea?",
    "The train was late by an hour and nobody knew why it had stopped in the fields.",
    "I would rather walk.",
    "They painted the kitchen green, the green of a school door.",
)

NewModel = Callable[..., LanguageModel]


def dialogue(number: int, name: str = "") -> Document:
    """Return a document of which the second half is the owner's own."""
    partner = SENTENCES[number % 3] + "\n"
    own = SENTENCES[number % len(SENTENCES)]
    return Document(name or f"d{number}", (Span(partner, own=False), Span(own, own=True)), "history", number)


@pytest.fixture(scope="session")
def new_model(tiny_model_dir: Path) -> NewModel:
    """Return a maker of fresh tiny models; every call reads the same weights."""

    def make(top_layers: int = 3, dtype: torch.dtype | None = None) -> LanguageModel:
        return LanguageModel.load(tiny_model_dir, top_layers, dtype)

    return make


@pytest.fixture(scope="session")
def tiny_basis(new_model: NewModel) -> Basis:
    """Return a whitened basis of rank 4 on all linear modules of the top three layers."""
    model = new_model()
    texts = [model.encode_text(s, [(0, len(s))], f"s{i}", 64) for i, s in enumerate(SENTENCES)]
    return whitened_basis(model, texts, BasisSettings(rank=4, damping=0.01))


@pytest.fixture
def cored(new_model: NewModel, tiny_basis: Basis) -> LanguageModel:
    """Return a fresh model that carries zero cores over `tiny_basis`."""
    model = new_model()
    model.attach(tiny_basis)
    return model


@pytest.fixture(scope="session")
def dialogues() -> Callable[..., list[Document]]:
    """Return a maker of documents: the partner's sentence, then the owner's, of many lengths."""

    def make(count: int, first: int = 0) -> list[Document]:
        return [dialogue(first + i) for i in range(count)]

    return make


@pytest.fixture(scope="session")
def cached() -> Callable[..., list[Cached]]:
    """Return a maker of documents that `model` has taken through its frozen layers."""

    def make(model: LanguageModel, count: int, first: int = 0) -> list[Cached]:
        return [model.prefix(model.encode(dialogue(first + i), 96)) for i in range(count)]

    return make
