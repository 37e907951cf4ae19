"""What a campaign learned besides adapters, as a release publishes it: personas in words, centroids, a retriever."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from privacy.adapter import Matrix, read_tensors
from privacy.canonical import Json, is_digest
from privacy.errors import ReleaseInvalid
from privacy.tensors import tensors_to_bytes

TABLES: Final = ("centroids", "directions", "retriever")
MAX_TABLES_BYTES: Final = 64 * 2**20
MAX_DESCRIPTION: Final = 2000
NO_TABLES: Final = "0" * 64
_COUNT: Final = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,3})?")


@dataclass(frozen=True)
class PersonaFacts:
    """What a release says of a published persona: its noisy number of members, a decimal, and some words."""

    noisy_count: str
    description: str = ""

    def __post_init__(self) -> None:
        counted = isinstance(self.noisy_count, str) and _COUNT.fullmatch(self.noisy_count)
        if not counted or not isinstance(self.description, str) or len(self.description) > MAX_DESCRIPTION:
            raise ReleaseInvalid("release: what it says of a persona is malformed")


@dataclass(frozen=True)
class Learned:
    """What a campaign learned besides adapters, all of it from noisy sums.

    `tables`: `centroids` [P, p] of the published personas in the order of their names, `retriever` [r, r] over the
    frozen `directions` [r, e]. `public_sha256` names the encoder and figures that they go with.
    """

    tables: Mapping[str, Matrix] = field(default_factory=dict)
    personas: Mapping[str, PersonaFacts] = field(default_factory=dict)
    public_sha256: str = NO_TABLES

    def __post_init__(self) -> None:
        known = set(self.tables) <= set(TABLES) and all(t.ndim == 2 and t.size for t in self.tables.values())
        if (
            not known
            or not all(np.isfinite(t).all() for t in self.tables.values())
            or not is_digest(self.public_sha256)
        ):
            raise ReleaseInvalid("release: a table is none, or not finite")
        retriever, directions = self.tables.get("retriever"), self.tables.get("directions")
        if (retriever is None) != (directions is None):
            raise ReleaseInvalid("release: a retriever's core and its directions belong together")
        if retriever is not None and directions is not None and retriever.shape != (len(directions), len(directions)):
            raise ReleaseInvalid("release: the retriever's core does not fit its directions")
        if "centroids" in self.tables and len(self.tables["centroids"]) != len(self.personas):
            raise ReleaseInvalid("release: there must be a centroid for each persona")

    def document(self) -> dict[str, Json]:
        """Return what release.json says of it."""
        personas: dict[str, Json] = {name: asdict(facts) for name, facts in self.personas.items()}
        tables: list[Json] = [*sorted(self.tables)]
        return {"personas": personas, "public_sha256": self.public_sha256, "tables": tables}

    def to_bytes(self) -> bytes:
        """Return the tables as one safetensors file, float32."""
        return tensors_to_bytes({name: np.asarray(t, dtype=np.float32) for name, t in self.tables.items()})

    @classmethod
    def of(cls, told: Mapping[str, Any], data: bytes | None) -> Learned:
        """Return what `told` (see `document`) and the file of tables say; raises ReleaseInvalid or ModelError."""
        if set(told) != {"personas", "public_sha256", "tables"}:
            raise ReleaseInvalid("release.json: what was learned has not exactly its fields")
        tables = read_tensors(data, MAX_TABLES_BYTES) if data is not None else {}
        if sorted(tables) != told["tables"]:
            raise ReleaseInvalid("release: its tables are not those it names")
        return cls(tables, {n: PersonaFacts(**each) for n, each in told["personas"].items()}, told["public_sha256"])


NOTHING: Final = Learned()
