"""A sum in the clear, transports `ideal` and `off`, behind the same seams as a masked one: one stage, one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from privacy.answer import sum_answers
from privacy.errors import ConfigError, SignatureInvalid, WireError
from privacy.query import Query
from privacy.session import Collection
from privacy.wire import Answer, decode


class ClearSum:
    """Collects signed answers of the invited and adds them up. Whoever holds this object sees every single answer."""

    def __init__(self, query: Query, invited: Sequence[str], keys: Mapping[str, Ed25519PublicKey]) -> None:
        missing = sorted(set(invited) - set(keys))
        if missing:
            raise ConfigError(f"the directory has no key of {missing[0]}")
        self.query = query
        self._keys = {device: keys[device] for device in invited}
        self._answers: dict[str, Answer] = {}
        self._total: NDArray[np.int64] | None = None

    @property
    def stage(self) -> str:
        """Return the name of the one stage."""
        return "answer"

    @property
    def finished(self) -> bool:
        """Return whether the sum is there."""
        return self._total is not None

    @property
    def total(self) -> NDArray[np.int64]:
        """Return the lifted sum, int64 [dim]; raises ConfigError before the stage was closed."""
        if self._total is None:
            raise ConfigError("a sum that is not finished")
        return self._total

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return whose answers are in the sum."""
        return tuple(sorted(self._answers))

    @property
    def heads(self) -> dict[str, str]:
        """Return the head of its own ledger that each survivor signed."""
        return {device: self._answers[device].ledger_head for device in self.survivors}

    def requests(self) -> dict[str, bytes]:
        """Return the frame to send to each device."""
        return dict.fromkeys(self._keys, Collection(self.query.sha256).encode())

    def receive(self, device_id: str, frame: bytes) -> bool:
        """Take the first genuine answer of a device; False, without effect, for anything else."""
        if self.finished or device_id in self._answers or device_id not in self._keys:
            return False
        try:
            answer = decode(frame)
            if not isinstance(answer, Answer) or answer.device_id != device_id:
                return False
            if answer.query_sha256 != self.query.sha256 or answer.vector.size != self.query.dim:
                return False
            answer.verify(self._keys[device_id])
        except (WireError, SignatureInvalid):
            return False
        self._answers[device_id] = answer
        return True

    def advance(self) -> None:
        """Close the stage; raises CohortTooSmall where too few answered."""
        self._total, _ = sum_answers(self.query, (self._answers[device] for device in self.survivors))
