"""The models that are attacked: one of random weights, which is quick, or a real one with the product's own basis."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from client.base_model import base_model_path
from client.model import LanguageModel
from simulation.attacks.attributes import Size as TraitSize
from simulation.attacks.federation import Training
from simulation.attacks.inversion import Size as UpdateSize
from simulation.attacks.release import Size as ReleaseSize
from simulation.attacks.tiny import Maker, tiny_model
from simulation.basis_cache import cached_basis
from simulation.config import AdapterConfig
from simulation.progress import Progress


@dataclass(frozen=True)
class Subject:
    """A model and how much it is attacked; `matching` None leaves out the search, which a large vocabulary forbids."""

    make: Maker
    release: ReleaseSize
    inversion: UpdateSize
    matching: UpdateSize | None
    trait: TraitSize


RANDOM_WEIGHTS: Final = Subject(tiny_model, ReleaseSize(), UpdateSize(), UpdateSize(people=8, rank=8), TraitSize())


def subject_of(name: str) -> Subject:
    """Return the model of random weights for an empty name, else an embedded model; ModelError for unknown names."""
    if not name:
        return RANDOM_WEIGHTS
    path, default = base_model_path(name), AdapterConfig()

    def make(_folder: Path, rank: int) -> LanguageModel:
        adapter = replace(default, rank=rank)
        model = LanguageModel.load(path, top_layers=adapter.layers)
        model.attach(cached_basis(path, adapter, 0, Progress()))
        return model

    training = Training(rounds=12, step=0.3, server_learning_rate=1.0)
    return Subject(
        make,
        ReleaseSize(people=8, others=24, candidates=40, rank=default.rank, training=training),
        UpdateSize(people=4, rank=default.rank, tokens=default.rank - 1),
        None,
        TraitSize(rank=default.rank, documents=6, characters=400),
    )
