"""What a campaign rests on that is public and too large for its plan: words, a retriever's frozen directions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.tensors import tensors_to_bytes

FILE = "public.json"


@dataclass(frozen=True)
class Public:
    """`words` that may be counted, in the order of their numbers; `arrays` by name.

    `directions` [r, e] with orthonormal rows, `centroids` [K, p] to begin with: what is not there is drawn by the
    plan's seed. `curvature` [k, d] and `steepness` [k] make a `server.curvature.Curvature`.
    """

    words: tuple[str, ...] = ()
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def save(self, checkpoints: Path) -> None:
        """Write it beside the campaign; a campaign that has begun must find the same."""
        facts = {"arrays": tensors_to_bytes(self.arrays).hex() if self.arrays else "", "words": list(self.words)}
        write_atomic(checkpoints / FILE, json.dumps(facts).encode())

    @classmethod
    def load(cls, checkpoints: Path) -> Public:
        """Return what lies in the folder, nothing where there is no such file. Raises ConfigError for a broken one."""
        path = checkpoints / FILE
        if not path.exists():
            return cls()
        try:
            facts = json.loads(path.read_bytes())
            arrays = load_tensors(bytes.fromhex(facts["arrays"])) if facts["arrays"] else {}
            return cls(tuple(map(str, facts["words"])), arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{FILE} is not what a campaign rests on ({type(error).__name__})") from error
