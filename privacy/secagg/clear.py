"""Sums in the clear behind the same interface as the private one, so that one loop drives every transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from privacy.answer import sum_answers
from privacy.errors import ConfigError, SignatureInvalid, SumInvalid, WireError
from privacy.query import Query
from privacy.secagg.messages import Begin
from privacy.wire import NO_HEAD, Answer, Refusal, RefusalCode, decode, decode_request


class ClearSum:
    """A sum of transport `ideal` or `off`: one stage, answers in the clear. Whoever runs this sees every answer.

    `keys` None takes unsigned answers too, between the parts of one process.
    """

    def __init__(self, query: Query, invited: Sequence[str], keys: Mapping[str, Ed25519PublicKey] | None) -> None:
        if query.transport not in ("ideal", "off") or len(set(invited)) != len(invited):
            raise ConfigError("a sum in the clear needs transport ideal or off and devices that are each invited once")
        self.query, self.survivors = query, tuple[str, ...]()
        self.heads: dict[str, str] = {}
        self._invited, self._keys = dict.fromkeys(invited), keys
        self._answers: dict[str, Answer] = {}
        self._total: NDArray[np.int64] | None = None
        self._closed = False

    @property
    def stage(self) -> str:
        """Return `answer`, `finished` or `aborted`."""
        return "finished" if self._total is not None else "aborted" if self._closed else "answer"

    @property
    def finished(self) -> bool:
        """Return whether `total` is there."""
        return self._total is not None

    @property
    def total(self) -> NDArray[np.int64]:
        """Return the sum over the survivors, int64 [dim]; raises SumInvalid before there is one."""
        if self._total is None:
            raise SumInvalid(f"there is no sum at stage {self.stage}")
        return self._total

    def requests(self) -> dict[str, bytes]:
        """Return the frame to send to each invited device."""
        return {} if self._closed else dict.fromkeys(self._invited, Begin(self.query.sha256).encode())

    def receive(self, device_id: str, frame: bytes) -> bool:
        """Take one frame and return True; False, and no effect, unless it is this device's first valid answer."""
        if self._closed or device_id not in self._invited or device_id in self._answers:
            return False
        try:
            answer = decode(frame)
            if not isinstance(answer, Answer) or answer.device_id != device_id:
                return False
            if answer.query_sha256 != self.query.sha256 or answer.vector.size != self.query.dim:
                return False
            if self._keys is not None:
                answer.verify(self._keys[device_id])
        except (KeyError, WireError, SignatureInvalid):
            return False
        self._answers[device_id] = answer
        return True

    def advance(self) -> None:
        """Close the sum with the answers that are in; raises CohortTooSmall below the floor."""
        if self._closed:
            raise ConfigError(f"a sum that is {self.stage} does not go on")
        self._closed = True
        self._total, _ = sum_answers(self.query, self._answers.values())
        self.survivors = tuple(sorted(self._answers))
        self.heads = {name: self._answers[name].ledger_head for name in self.survivors}


class ClearDevice:
    """The device's side: gives its one answer to whoever asks by the query's hash, as often as asked."""

    def __init__(
        self,
        query: Query,
        device_id: str,
        vector: NDArray[np.uint32],
        signing_key: Ed25519PrivateKey | None = None,
        ledger_head: str = NO_HEAD,
    ) -> None:
        if query.transport == "masked":
            raise ConfigError("an answer to a private sum never goes in the clear")
        answer = Answer(query.sha256, device_id, vector, ledger_head)
        self._answer = (answer.signed(signing_key, ledger_head) if signing_key else answer).encode()
        self._begin = Begin(query.sha256)
        self._refusal = Refusal(query.sha256, device_id, RefusalCode.SUM).encode()

    def reply(self, frame: bytes) -> bytes:
        """Return the frame that answers a request: the answer, or a refusal; no exception leaves."""
        try:
            asked = decode_request(frame) == self._begin
        except WireError:
            asked = False
        return self._answer if asked else self._refusal
