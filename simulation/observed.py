"""The researcher's view of a simulated round: what each device learned, before clip and noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.figures import PublicTables
from client.learner import TextLearner
from client.model import LanguageModel
from client.train import CoreTraining, core_updates
from privacy.canonical import sha256_hex
from privacy.files import ProcessDisk, write_atomic
from privacy.objective import NEXT_TOKEN, REPLY_ONLY
from privacy.query import Query

Vector = NDArray[np.float64]
TOGETHER = (NEXT_TOKEN, REPLY_ONLY)  # objectives whose step is one pass over documents


class ObservedLearner(TextLearner):
    """A learner that keeps each person's last update: for the report, and for the run without noise.

    With `together` above 1 so many people's steps are taken in one pass through the model, `client.train.core_updates`;
    all who are asked must then be asked in every round, or work is done for nothing.

    Kept in `folder`, so that a run that was cut off reports its rounds whole; `RunFolder.close` destroys it. With
    `every_round` one is kept for each round, because the run without noise comes after all of them.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        training: CoreTraining,
        max_document_tokens: int,
        every_round: bool = False,
        tables: PublicTables | None = None,
        most_bytes: int | None = None,
        together: int = 1,
    ) -> None:
        super().__init__(model, training, max_document_tokens, tables, most_bytes)
        self.folder, self.every_round, self.together = folder, every_round, together

    def update(self, user: str, start: Mapping[str, NDArray[np.float32]], query: Query, seed: int) -> Vector:
        """Return the update of `TextLearner.update`, from memory when the start and the round are the same."""
        begun = sha256_hex(self.layout.flatten(start).tobytes())
        kept = self.kept(user, query.round)
        if kept is None or kept[0] != begun:
            group = self._group(user, query, begun)
            if len(group) > 1:
                documents = [self.round_documents(one, query) for one in group]
                updates = core_updates(self.model, documents, start, self.training)
            else:
                updates = [super().update(user, start, query, seed)]
            for one, update in zip(group, updates, strict=True):
                data = f"{query.round} {begun}\n".encode() + update.astype("<f8").tobytes()
                write_atomic(self._file(one, query.round), data, mode=0o600, disk=ProcessDisk())
            return updates[0]
        return kept[1]

    def _group(self, user: str, query: Query, begun: str) -> list[str]:
        """Return the person and at most `together` - 1 of those who come next and have not trained from `begun` yet."""
        if self.together == 1 or query.objective not in TOGETHER or query.slots > 1:
            return [user]
        known = list(self.documents)
        after = known[known.index(user) + 1 :][: self.together - 1]
        kept = {one: self.kept(one, query.round) for one in after}
        return [user, *(one for one, found in kept.items() if found is None or found[0] != begun)]

    def kept(self, user: str, number: int) -> tuple[str, Vector] | None:
        """Return the hash of the start and the update of the person's last training for round `number`, if kept."""
        if not self._file(user, number).exists():
            return None
        head, _, data = self._file(user, number).read_bytes().partition(b"\n")
        of_round, begun = head.decode().split()
        return (begun, np.frombuffer(data, "<f8")) if int(of_round) == number else None

    def _file(self, user: str, number: int) -> Path:
        return self.folder / (f"{user}-{number}.update" if self.every_round else f"{user}.update")
