"""The second privacy unit: one record (a document) of a device, by Opacus on the device itself.

A separate line of a device's ledger, with its own unit; it is never added to the user-level charge of queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from privacy.canonical import Json
from privacy.errors import ConfigError, LedgerError

FLOATS = ("noise_multiplier", "sampling_rate", "clip_norm", "delta")


@dataclass(frozen=True)
class RecordCharge:
    """One local training run with record-level noise: DP-SGD over Poisson batches, per-document clipping.

    Adjacency: one document of this device added or removed. `artefact` names what was trained, for example
    "own_record_dp". The noise is Opacus' float Gaussian from a generator seeded by the operating system.
    """

    artefact: str
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clip_norm: float
    delta: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(getattr(self, name)) and getattr(self, name) > 0 for name in FLOATS):
            raise ConfigError("a record-level charge needs positive, finite figures; without noise there is none")
        if self.sampling_rate > 1 or self.delta >= 1 or type(self.steps) is not int or self.steps < 1:
            raise ConfigError("a record-level charge needs a rate up to 1, a delta below 1 and at least one step")

    def body(self) -> dict[str, Json]:
        """Return the body of its RECORD_DP entry: mechanism inputs only, floats as their shortest decimals."""
        figures: dict[str, Json] = {name: repr(float(getattr(self, name))) for name in FLOATS}
        return {**figures, "artefact": self.artefact, "sampler": "poisson", "steps": self.steps, "unit": "document"}

    @classmethod
    def from_body(cls, body: Mapping[str, Json]) -> RecordCharge:
        """Return the charge in a RECORD_DP entry; raises LedgerError for anything else."""
        try:
            figures = {name: float(str(body[name])) for name in FLOATS}
            charge = cls(artefact=str(body["artefact"]), steps=body["steps"], **figures)  # type: ignore[arg-type]
        except (KeyError, ValueError, ConfigError) as error:
            raise LedgerError(f"a RECORD_DP that cannot be read: {error}") from error
        if dict(body) != charge.body():
            raise LedgerError("a RECORD_DP that is not in its one form")
        return charge

    def epsilon(self) -> float:
        """Return the epsilon per document at `delta`, by dp-accounting's privacy loss distributions.

        Opacus reports by Renyi DP, which is never below this: a claim that falls short of it is wrong.
        """
        return _epsilon(self)


@lru_cache(maxsize=4096)
def _epsilon(charge: RecordCharge) -> float:
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant  # here: it takes a second

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = PoissonSampledDpEvent(charge.sampling_rate, GaussianDpEvent(charge.noise_multiplier))
    accountant.compose(SelfComposedDpEvent(step, charge.steps))
    return float(accountant.get_epsilon(charge.delta))
