"""Retrieval over a person's own documents, in memory: one retriever a type of data, then combined.

    within a type:  rrf(d) = sum_m w_m / (60 + rank_m(d)),   m in BM25, TF-IDF, dense, recency
    over types:     rrf(d) * (best likeness to the query in the type / best likeness in any type)

Reciprocal-rank fusion as in Cormack, Clarke and Buettcher 2009. Ranks of recency count only among what another
retriever found. `TextIndex` is the plain BM25 index of the simulation's retrieval arm.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bm25s
import numpy as np
from numpy.typing import NDArray

from client.documents import Document
from client.lexical import Lexicon, Scores, words
from client.library import Passage, documents, passages, rating_passages

if TYPE_CHECKING:
    from client.encoder import Encoder
    from client.vault import Vault

BM25, TFIDF, DENSE, RECENCY = "bm25", "tfidf", "dense", "recency"
METHODS = (BM25, TFIDF, DENSE, RECENCY)
WEIGHTS = {BM25: 1.0, TFIDF: 0.5, DENSE: 1.0, RECENCY: 0.25}
RRF_K, DEPTH = 60, 50
KEYWORDS, EXPANSION, FEEDBACK = 12, 6, 3
IDENTITY, BY_KEYWORDS, EXPANDED, BY_PROFILE = "identity", "keywords", "expanded", "profile"
QUERIES = (IDENTITY, BY_KEYWORDS, EXPANDED, BY_PROFILE)
NO_TIME = -np.inf
ENCODE_AT_ONCE = 64
DENSE_WORDS = 48  # of a query, its last ones: what a long question comes to stands at its end, and each word costs time
_ALLOWED = "SELECT d.id, d.sha256 FROM document d JOIN consent c ON c.source = d.source AND c.purpose = ? AND c.granted"


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage with its fused score; higher is better, comparable within one search alone."""

    passage: Passage
    score: float


class Shelf:
    """The passages of one type of data, row by row: their words, their vectors, their times."""

    def __init__(self) -> None:
        self.lexicon = Lexicon()
        self.passages: list[Passage | None] = []
        self._vectors: list[NDArray[np.float32] | None] = []
        self._matrix: NDArray[np.float32] | None = None

    def add(self, passage: Passage, vector: NDArray[np.float32] | None) -> None:
        """Put a passage on the shelf."""
        self.lexicon.add(passage.text)
        self.passages.append(passage)
        self._vectors.append(vector)
        self._matrix = None

    def drop(self, gone: Collection[int]) -> None:
        """Take all passages of the documents `gone` off the shelf."""
        for row, passage in enumerate(self.passages):
            if passage is not None and passage.document in gone:
                self.lexicon.drop(row)
                self.passages[row] = self._vectors[row] = None
                self._matrix = None

    def ranked(
        self, query: str, vector: NDArray[np.float32] | None, methods: Collection[str]
    ) -> tuple[float, list[tuple[int, float]]]:
        """Return the best likeness to the query here, and rows with fused scores, best first; equals go to the newer.

        Likeness is the cosine of embeddings where there are any, else that of TF-IDF vectors.
        """
        lists: list[tuple[float, list[int]]] = []
        if not self.passages:
            return 0.0, []
        likeness = self.likeness(vector) if vector is not None else self.lexicon.tfidf(query)
        if BM25 in methods:
            lists.append((WEIGHTS[BM25], self._best(self.lexicon.bm25(query))))
        if TFIDF in methods:
            tfidf = self.lexicon.tfidf(query) if vector is not None else likeness
            lists.append((WEIGHTS[TFIDF], self._best(tfidf)))
        if DENSE in methods and vector is not None:
            lists.append((WEIGHTS[DENSE], self._best(likeness)))
        candidates = {row for _, rows in lists for row in rows}
        if RECENCY in methods and candidates:
            lists.append((WEIGHTS[RECENCY], sorted(candidates, key=self._age, reverse=True)))
        fused = dict.fromkeys(candidates, 0.0)
        for weight, rows in lists:
            for rank, row in enumerate(rows, 1):
                fused[row] += weight / (RRF_K + rank)
        in_order = sorted(fused.items(), key=lambda pair: (pair[1], self._age(pair[0])), reverse=True)
        return max(0.0, float(likeness.max())), in_order

    def likeness(self, vector: NDArray[np.float32]) -> Scores:
        """Return the cosine of every row's embedding with `vector`, float64 [rows]; 0 for a row without one."""
        if self._matrix is None:
            none = np.zeros(len(vector), dtype=np.float32)
            self._matrix = np.array([none if v is None else v for v in self._vectors], dtype=np.float32)
            self._matrix = self._matrix.reshape(len(self._vectors), len(vector))
        return (self._matrix @ vector).astype(np.float64)

    def _best(self, scores: Scores) -> list[int]:
        """Return at most `DEPTH` rows of positive score, best first."""
        found = np.flatnonzero(scores > 0)
        if len(found) > DEPTH:
            found = found[np.argpartition(-scores[found], DEPTH)[:DEPTH]]
        return sorted(found.tolist(), key=lambda row: (scores[row], self._age(row)), reverse=True)

    def _age(self, row: int) -> tuple[float, int]:
        passage = self.passages[row]
        return (NO_TIME if passage is None or passage.written is None else passage.written), row


class PersonalIndex:
    """All of a person's passages that serve `purpose`, kept up with the vault by `refresh`.

    Held-back documents are in it only where `held_back` says so: choices are scored on them.
    """

    def __init__(
        self, vault: Vault, encoder: Encoder | None = None, *, purpose: str = "own", held_back: bool = True
    ) -> None:
        self._vault, self._encoder, self._purpose, self.held_back = vault, encoder, purpose, held_back
        self._shelves: dict[str, Shelf] = {}
        self._known: dict[int, bytes] = {}  # number -> hash of its words: a changed document keeps its number
        self._last = 0
        self._ratings: tuple[Passage, ...] = ()
        self.topics: tuple[str, ...] = ()  # what the person writes about, for queries by profile
        self.refresh()

    def __len__(self) -> int:
        return sum(shelf.lexicon.live for shelf in self._shelves.values())

    @property
    def passages(self) -> list[Passage]:
        """Return every passage, type by type."""
        return [p for shelf in self._shelves.values() for p in shelf.passages if p is not None]

    def refresh(self) -> None:
        """Take in what is new in the vault and drop what is gone; embeddings that the vault lacks are made and kept."""
        here = {int(number): bytes(digest) for number, digest in self._vault.select(_ALLOWED, (self._purpose,))}
        if gone := {number for number, digest in self._known.items() if here.get(number) != digest}:
            for shelf in self._shelves.values():
                shelf.drop(gone)
        part = None if self.held_back else False
        new = [p for kept in documents(self._vault, self._purpose, self._last, part) for p in passages(kept)]
        # A source that was switched off and on again brings old numbers back, and so does a changed document.
        back = {n for n, digest in here.items() if n <= self._last and self._known.get(n) != digest}
        if back:
            old = documents(self._vault, self._purpose, 0, part)
            new += [p for kept in old if kept.number in back for p in passages(kept)]
        self._put(new)
        self._known = here
        self._last = max([self._last, *here])
        ratings = tuple(rating_passages(self._vault, self._purpose))
        if ratings != self._ratings:
            self._shelves.pop("rating", None)
            self._put(ratings)
            self._ratings = ratings

    def search(
        self,
        query: str,
        k: int,
        methods: Collection[str] = METHODS,
        types: Collection[str] | None = None,
        build: str = IDENTITY,
    ) -> list[Hit]:
        """Return the k best passages, best first; fewer where less matches. `build` is how the query is made."""
        if k < 1:
            return []
        query = self.query(query, build)
        vector = None
        if self._encoder is not None and DENSE in methods and words(query):
            vector = self._encoder.encode([" ".join(query.split()[-DENSE_WORDS:])])[0]
        found: list[Hit] = []
        shelves = [shelf for kind, shelf in self._shelves.items() if types is None or kind in types]
        ranked = [shelf.ranked(query, vector, methods) for shelf in shelves]
        most = max((best for best, _ in ranked), default=0.0)
        for shelf, (best, rows) in zip(shelves, ranked, strict=True):
            weight = best / most if most > 0 else 1.0
            found += [Hit(p, weight * score) for row, score in rows[:k] if (p := shelf.passages[row]) is not None]
        return sorted(found, key=lambda hit: -hit.score)[:k]

    def query(self, text: str, build: str) -> str:
        """Return the query made of `text`: as it is, its rarest known words, or with words of what it finds.

        Expansion is pseudo-relevance feedback: the rare words of the best passages stand behind the question's own. By
        the profile, those of the person's topics stand there that share a passage with a word of the question.
        """
        if build == IDENTITY:
            return text
        if build == BY_PROFILE:
            near = self._beside(set(words(text)))
            return " ".join([text, *[topic for topic in self.topics if topic in near][:EXPANSION]])
        rare = sorted(set(words(text)), key=self._frequency)
        known = [word for word in rare if self._frequency(word)][:KEYWORDS]
        if build == BY_KEYWORDS:
            return " ".join(known) or text
        found: dict[str, int] = {}
        for hit in self.search(text, FEEDBACK, (BM25,)):
            for word in set(words(hit.passage.text)) - set(known):
                found[word] = found.get(word, 0) + 1
        more = sorted(found, key=lambda word: (-found[word], self._frequency(word), word))[:EXPANSION]
        return " ".join([text, *more])

    def _beside(self, asked: set[str]) -> set[str]:
        """Return the words of all passages that hold a word of the query."""
        return {
            term
            for shelf in self._shelves.values()
            for row in {row for word in asked for row in shelf.lexicon.rows(word)}
            for term in shelf.lexicon.terms(row)
        } - asked

    def _frequency(self, word: str) -> int:
        return sum(shelf.lexicon.document_frequency(word) for shelf in self._shelves.values())

    def _put(self, new: Sequence[Passage]) -> None:
        vectors = self._embeddings(new)
        for passage in new:
            shelf = self._shelves.setdefault(passage.type, Shelf())
            shelf.add(passage, vectors.get((passage.document, passage.part)))

    def _embeddings(self, new: Sequence[Passage]) -> dict[tuple[int, int], NDArray[np.float32]]:
        """Return the embedding of every new passage, out of the vault or made now and put there."""
        if self._encoder is None or not new:
            return {}
        name, dim = self._encoder.sha256, self._encoder.dim
        found: dict[tuple[int, int], NDArray[np.float32]] = {}
        for document, part, value in self._vault.select(
            "SELECT document, passage, value FROM vector WHERE encoder = ? AND document >= ?",
            (name, min(passage.document for passage in new)),
        ):
            found[document, part] = np.frombuffer(value, dtype=np.float16).astype(np.float32)
        missing = [passage for passage in new if (passage.document, passage.part) not in found]
        for start in range(0, len(missing), ENCODE_AT_ONCE):
            batch = missing[start : start + ENCODE_AT_ONCE]
            made = self._encoder.encode([passage.text for passage in batch]).reshape(len(batch), dim)
            with self._vault.change() as rows:
                for passage, vector in zip(batch, made, strict=True):
                    found[passage.document, passage.part] = vector.astype(np.float16).astype(np.float32)
                    if passage.document > 0:  # a rating's passage is made of two tables; its vector lives in memory
                        rows.execute(
                            "INSERT OR REPLACE INTO vector SELECT id, ?, ?, ? FROM document WHERE id = ?",
                            (passage.part, name, vector.astype(np.float16).tobytes(), passage.document),
                        )
        return found


class TextIndex:
    """An index over one person's documents, oldest first; it lives in memory and dies with its process."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self._texts = [document.own_text.strip() for document in documents if document.own_text.strip()]
        tokens = [words(text) or ["_"] for text in self._texts]
        self._bm25 = bm25s.BM25(k1=1.2, b=0.75)
        if tokens:
            self._bm25.index(tokens, show_progress=False)

    def search(self, query: str, k: int) -> list[str]:
        """Return the own texts of the k best documents, best last, next to what follows; the newest if none match."""
        if not self._texts or k < 1:
            return []
        wanted = [word for word in words(query) if word in self._bm25.vocab_dict]
        scores = self._bm25.get_scores(wanted) if wanted else np.zeros(len(self._texts))
        newest_first = np.lexsort((-np.arange(len(self._texts)), -scores))
        return [self._texts[i] for i in newest_first[:k][::-1]]
