"""What trains and scores for devices: one base model, the encoded documents of one or many people."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.documents import Document
from client.figures import PublicTables, metrics, served_by
from client.model import GLOBAL, Cached, Encoded, LanguageModel
from client.preference import preference_update
from client.retriever_core import RetrieverCore
from client.teaching import Shelf, examples
from client.train import CoreTraining, core_update
from privacy.adapter import AdapterLayout, Cores
from privacy.errors import ModelError
from privacy.objective import (
    CENTROIDS,
    METRICS_NORM,
    METRICS_OBJECTIVE,
    PREFERENCE,
    REPLY_ONLY,
    TRAINS_A_CORE,
    TRAINS_A_RETRIEVER,
    WORDS,
)
from privacy.query import Query


class TextLearner:
    """Local training on people's documents; the frozen layers' outputs are computed once and kept in memory.

    What is kept is personal text in another form: it lives in this process alone and `forget` drops it. With
    `most_bytes` whoever was used longest ago is forgotten until the rest fits; the person in use always stays. `knows`
    says who has to be added again.
    """

    def __init__(
        self,
        model: LanguageModel,
        training: CoreTraining,
        max_document_tokens: int,
        tables: PublicTables | None = None,
        most_bytes: int | None = None,
    ) -> None:
        self.model, self.training, self.max_document_tokens = model, training, max_document_tokens
        self.tables, self.most_bytes = tables, most_bytes
        self.held_bytes = 0
        self._sizes = OrderedDict[str, int]()  # by person, whoever was used last at the end
        self.named: dict[str, int] = {}  # the persona that a person's owner declared
        self.votes: dict[str, tuple[int, int]] = {}  # blind comparisons made, and won by the shared adapters
        self._portraits: dict[str, NDArray[np.float64]] = {}
        self._shelves: dict[str, Shelf] = {}
        self.documents: dict[str, tuple[Document, ...]] = {}
        self._encoded: dict[str, list[Encoded]] = {}
        self._replies: dict[str, list[Encoded]] = {}
        self._cached: dict[str, dict[str, Cached]] = {}  # by person, and there by document

    @property
    def layout(self) -> AdapterLayout:
        """Return the order of the cores in a flat vector."""
        assert self.model.layout is not None
        return self.model.layout

    def add(self, user: str, documents: Sequence[Document]) -> int:
        """Take a person's (scrubbed) documents, in place of earlier ones, and return their number of own tokens."""
        self.forget(user)
        self.documents[user] = tuple(documents)
        encoded = [self.model.encode(d, self.max_document_tokens) for d in documents]
        self._encoded[user] = [e for e in encoded if e.own_tokens]
        self._hold(user, sum(2 * len(d.text) for d in documents) + sum(_bytes_of(e) for e in encoded))
        return sum(e.own_tokens for e in encoded)

    def knows(self, user: str) -> bool:
        """Return whether the person's documents are held."""
        return user in self.documents

    def forget(self, user: str) -> None:
        """Drop everything kept of a person."""
        for kept in (self.documents, self._encoded, self._replies, self._portraits, self._shelves, self._cached):
            kept.pop(user, None)
        self.held_bytes -= self._sizes.pop(user, 0)

    def round_documents(self, user: str, query: Query) -> list[Cached]:
        """Return the person's documents for this round: at most `own_tokens` of the limits, the next part each round.

        Documents are put into consecutive parts that fit the limit; round k trains on part k modulo their number. A
        document over the limit alone is read in pieces: left out, it would take most people's whole text with it.
        """
        known = self._reply_tokens(user) if query.objective == REPLY_ONLY else self._encoded[user]
        self._hold(user, 0)
        return [self._prefix(user, e) for e in part_of_round(known, query)]

    def update(self, user: str, start: Cores, query: Query, seed: int) -> NDArray[np.float64]:
        """Return the person's local update from `start`, float64 [slot_dim]; `seed` draws the Poisson batches.

        It rests on no more steps and own tokens than the query's limits, whatever the settings of training are. Raises
        ModelError for an objective that trains no adapter.
        """
        if query.objective not in TRAINS_A_CORE:
            raise ModelError(f"{query.objective} trains no adapter")
        limits = query.limits
        training = replace(self.training, steps=min(self.training.steps, limits.local_steps), seconds=limits.seconds)
        generator = torch.Generator().manual_seed(seed)
        update = preference_update if query.objective == PREFERENCE else core_update
        return update(self.model, self.round_documents(user, query), start, training, generator)

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        """Return the mean nats per own token of this round's documents under `cores`; 0 where there are none."""
        self.model.set_cores(cores)
        self.model.activate(GLOBAL)
        nats = self.model.document_nats(self.round_documents(user, query))
        tokens = sum(len(n) for n in nats)
        return float(sum(float(n.double().sum()) for n in nats) / tokens) if tokens else 0.0

    def _reply_tokens(self, user: str) -> list[Encoded]:
        """Return the person's documents with those own tokens as targets that answer somebody, see `reply_ranges`."""
        if user not in self._replies:
            limit = self.max_document_tokens
            rows = (
                self.model.encode_text(d.text, reply_ranges(d), f"{d.id}, replies", limit) for d in self.documents[user]
            )
            self._replies[user] = [e for e in rows if e.own_tokens]
        return self._replies[user]

    def distance(self, user: str, row: NDArray[np.float32], query: Query) -> float:
        """Return the distance of the person's portrait to the centroid at the end of `row`, float32 [numbers]."""
        portrait = self.portrait(user)
        return float(np.linalg.norm(portrait - row[-len(portrait) :].astype(np.float64)))

    def declared(self, user: str) -> int | None:
        """Return the persona that the owner named, if any."""
        return self.named.get(user)

    def portrait(self, user: str) -> NDArray[np.float64]:
        """Return the person's portrait, float64 [dim], of norm at most 1; kept until `forget`."""
        if user not in self._portraits:
            texts = [document.own_text for document in self.documents[user]]
            self._portraits[user] = self._tables().portrait(texts)
        return self._portraits[user]

    def figures(self, user: str, rows: NDArray[np.float32], query: Query, slot: int, seed: int) -> NDArray[np.float64]:
        """Return what an objective that trains no adapter gives for `slot`, float64 [slot_dim], in units of the clip.

        Raises ModelError for an objective that is none of these.
        """
        if query.objective == CENTROIDS:
            return query.figure * self.portrait(user)
        if query.objective == WORDS:
            texts = [document.own_text for document in self.documents[user]]
            return query.figure * self._tables().word_marks(texts)
        if query.objective == METRICS_OBJECTIVE:
            shared, *personas = (self.layout.unflatten(row.astype(np.float64)) for row in rows)
            served = served_by(self.model, self.round_documents(user, query), shared, personas, slot)
            compared, preferred = self.votes.get(user, (0, 0))
            return query.figure / METRICS_NORM * metrics(replace(served, compared=compared, preferred=preferred))
        if query.objective in TRAINS_A_RETRIEVER:
            core = RetrieverCore.from_row(rows[0].astype(np.float64), self._tables().encoder.dim)
            taught = examples(self.model, self._tables().encoder, self.shelf(user), core, query, seed)
            return query.figure * core.update(taught)
        raise ModelError(f"{query.objective} gives no figures")

    def shelf(self, user: str) -> Shelf:
        """Return the person's documents as a retriever sees them; kept until `forget`."""
        if user not in self._shelves:
            self._shelves[user] = Shelf.of(self.documents[user], self._tables().encoder)
        return self._shelves[user]

    @property
    def public_sha256(self) -> str | None:
        """Return the hash of the encoder and word list that this device holds; None without."""
        return self.tables.sha256 if self.tables is not None else None

    def _tables(self) -> PublicTables:
        if self.tables is None:
            raise ModelError("no encoder on this device")
        return self.tables

    def _prefix(self, user: str, encoded: Encoded) -> Cached:
        mine = self._cached.setdefault(user, {})
        if encoded.document not in mine:
            mine[encoded.document] = made = self.model.prefix(encoded)
            self._hold(user, made.hidden.nbytes + _bytes_of(encoded))
        return mine[encoded.document]

    def _hold(self, user: str, more: int) -> None:
        """Count `more` bytes for the person in use, and forget others until all fits."""
        self._sizes[user] = self._sizes.get(user, 0) + more
        self._sizes.move_to_end(user)
        self.held_bytes += more
        while self.most_bytes is not None and self.held_bytes > self.most_bytes and len(self._sizes) > 1:
            self.forget(next(iter(self._sizes)))


def _bytes_of(encoded: Encoded) -> int:
    return int(encoded.ids.nbytes + encoded.target.nbytes)


def reply_ranges(document: Document) -> list[tuple[int, int]]:
    """Return the character ranges of the person's own words that stand behind another's: what somebody asked for."""
    end = 0
    for span in document.spans:
        end += len(span.text)
        if not span.own and span.text.strip():
            return [(start, stop) for start, stop in document.target_ranges() if start >= end]
    return []


def part_of_round(documents: Sequence[Encoded], query: Query) -> list[Encoded]:
    """Return the consecutive part of `documents` that round `query.round` trains on, see `round_documents`."""
    parts = parts_of(documents, query.limits.own_tokens)
    return parts[query.round % len(parts)] if parts else []


def parts_of(documents: Sequence[Encoded], limit: int) -> list[list[Encoded]]:
    """Return `documents` in consecutive parts of at most `limit` own tokens each, longer ones in pieces."""
    parts: list[list[Encoded]] = []
    size = 0
    for document in (piece for whole in documents for piece in pieces(whole, limit)):
        if not parts or size + document.own_tokens > limit:
            parts.append([])
            size = 0
        parts[-1].append(document)
        size += document.own_tokens
    return parts


def pieces(document: Encoded, limit: int) -> list[Encoded]:
    """Return the document whole, or as consecutive pieces of at most `limit` own tokens where it holds more.

    A piece begins behind the last own token of the piece before it and is read without it; its name tells where it
    lies. The first token of a piece is never a target, since nothing predicts it there.
    """
    if document.own_tokens <= limit:
        return [document]
    found, start, end = [], 0, len(document.ids)
    while start < end:
        target = document.target[start:].clone()
        target[:1] = False
        own = target.nonzero()[:, 0]
        stop = start + int(own[limit - 1]) + 1 if len(own) > limit else end
        target = target[: stop - start]
        if target.any():
            found.append(Encoded(f"{document.document}[{start}:{stop}]", document.ids[start:stop], target))
        start = stop
    return found


def flat_cores(layout: AdapterLayout, slots: NDArray[np.float64]) -> list[dict[str, NDArray[np.float32]]]:
    """Return the cores of every slot, rows of float64 [slots, dim]."""
    return [layout.unflatten(row) for row in slots]
