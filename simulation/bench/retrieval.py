"""A search among a person's documents: ours, out of a vault, beside rank-bm25 and plain sentence-transformers search.

The documents are invented: words of the encoder's vocabulary, the n-th drawn in proportion to 1/n. A query is six words
of one document; recall is how often that document is among the ten best. Times are CPU seconds of one thread, the
median over the queries, from the text of a query to the places of what was found.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.encoder import MAX_TOKENS, Encoder, MiniLM, minilm_folder
from client.importers import add
from client.lexical import words
from client.retrieve import BM25, DENSE, METHODS, PersonalIndex
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfideError
from simulation.bench.environments import Peer, PeerMissing
from simulation.bench.face import PASSPHRASE
from simulation.bench.limits import Limits
from simulation.bench.process import BenchFailed
from simulation.bench.row import Row, less_is_better

K = 10
VOCABULARY = 8000
SPARSE_NAME, SPARSE = "rank-bm25 0.2.2 (BM25Okapi)", Peer("bm25_search.py", "rank-bm25")
DENSE_NAME = "sentence-transformers 6.2, util.semantic_search"
DENSE_PEER = Peer("dense_search.py", "sentence-transformers")


@dataclass(frozen=True)
class RetrievalSizes:
    """How many documents of how many words, how many queries, how many texts are encoded by the clock on both sides."""

    documents: int = 10_000
    shortest: int = 20
    longest: int = 36
    queries: int = 60
    query_words: int = 6
    encoded: int = 256


@dataclass(frozen=True)
class Corpus:
    """Invented texts, the queries, and which text each query is made of."""

    texts: list[str]
    queries: list[str]
    wanted: list[int]

    @classmethod
    def invented(cls, vocabulary: Sequence[str], sizes: RetrievalSizes) -> Corpus:
        """Return a corpus over `vocabulary`, the same every time."""
        rng = np.random.default_rng(0)
        chances = 1 / np.arange(1, len(vocabulary) + 1)
        chances /= chances.sum()
        lengths = rng.integers(sizes.shortest, sizes.longest + 1, sizes.documents)
        drawn = rng.choice(len(vocabulary), int(lengths.sum()), p=chances)
        texts = [" ".join([vocabulary[w] for w in part.tolist()]) for part in np.split(drawn, np.cumsum(lengths)[:-1])]
        wanted = rng.choice(sizes.documents, sizes.queries, replace=False).tolist()
        queries = [" ".join(rng.choice(texts[i].split(), sizes.query_words, replace=False)) for i in wanted]
        return cls(texts, queries, wanted)

    def recall(self, found: Sequence[Sequence[int]]) -> float:
        """Return how often the text that a query is made of was found."""
        return statistics.mean(want in rows for want, rows in zip(self.wanted, found, strict=True))


def retrieval_rows(
    folder: Path,
    limits: Limits,
    missing: Callable[[str], None],
    sizes: RetrievalSizes | None = None,
    encoder: Encoder | None = None,
) -> list[Row]:
    """Return the rows `retrieve.sparse`, `.dense`, `.hybrid` and `.encode`; `missing` hears of what is not.

    `folder` takes the vault and the corpus. Raises ConfideError where ours finds less than a peer.
    """
    sizes = sizes or RetrievalSizes()
    torch.set_num_threads(1)
    encoder = encoder or MiniLM(minilm_folder())
    corpus = Corpus.invented(encoder.common_words(VOCABULARY), sizes)
    _write(folder, corpus)
    with Vault.create(folder / "home", Opener(passphrase=PASSPHRASE)) as vault:
        add(vault, folder / "notes")
        sparse = _Ours.over(PersonalIndex(vault), corpus, (BM25,))
        begun = time.process_time()
        full = PersonalIndex(vault, encoder)
        encode_s = (time.process_time() - begun) / sizes.documents
        dense, hybrid = (_Ours.over(full, corpus, methods) for methods in ((DENSE,), METHODS))
        np.save(folder / "embeddings.npy", _embeddings(vault, full, corpus, encoder.dim))
    rows = []
    try:
        rows += _sparse_rows(folder, corpus, sparse, limits)
    except (BenchFailed, PeerMissing) as error:
        missing(f"{SPARSE_NAME}: not run: {error}")
    if isinstance(encoder, MiniLM):
        try:
            rows += _dense_rows(folder, corpus, {"dense": dense, "hybrid": hybrid}, encode_s, limits, sizes)
        except (BenchFailed, PeerMissing) as error:
            missing(f"{DENSE_NAME}: not run: {error}")
    return rows


@dataclass(frozen=True)
class _Ours:
    query_s: float
    recall: float

    @classmethod
    def over(cls, index: PersonalIndex, corpus: Corpus, methods: Collection[str]) -> _Ours:
        """Ask every query twice and time the second: an index makes its arrays at the first."""
        place = {text: i for i, text in enumerate(corpus.texts)}
        found, took = [], []
        for query in corpus.queries:
            index.search(query, K, methods)
        for query in corpus.queries:
            begun = time.process_time()
            hits = index.search(query, K, methods)
            took.append(time.process_time() - begun)
            found.append([place[hit.passage.text] for hit in hits])
        return cls(statistics.median(took), corpus.recall(found))


def _write(folder: Path, corpus: Corpus) -> None:
    (folder / "notes").mkdir(parents=True)
    for number, text in enumerate(corpus.texts):
        (folder / "notes" / f"{number:06}.txt").write_text(text)
    spelled = {
        "texts": corpus.texts, "asked": corpus.queries,
        "documents": [words(text) for text in corpus.texts], "queries": [words(query) for query in corpus.queries],
    }  # fmt: skip
    (folder / "corpus.json").write_text(json.dumps(spelled))


def _embeddings(vault: Vault, index: PersonalIndex, corpus: Corpus, dim: int) -> NDArray[np.float32]:
    """Return what our index searches through, float32 [documents, dim], in the corpus' order."""
    kept = dict(vault.select("SELECT document, value FROM vector"))
    place = {text: i for i, text in enumerate(corpus.texts)}
    found = np.zeros((len(corpus.texts), dim), dtype=np.float32)
    for passage in index.passages:
        found[place[passage.text]] = np.frombuffer(kept[passage.document], dtype=np.float16)
    return found


def _sparse_rows(folder: Path, corpus: Corpus, ours: _Ours, limits: Limits) -> list[Row]:
    _, found = SPARSE.run({"corpus": str(folder / "corpus.json"), "k": K}, folder)
    theirs = corpus.recall(found["found"])
    _no_less(ours.recall, theirs, SPARSE_NAME)
    counts: dict[str, int] = {}
    for text in corpus.texts:
        for word in set(words(text)):
            counts[word] = counts.get(word, 0) + 1
    postings = statistics.median(sum(counts.get(w, 0) for w in set(words(query))) for query in corpus.queries)
    limit = 16 * postings / limits.memory
    same = (
        f"{len(corpus.texts)} documents, {len(corpus.queries)} queries, words, the {K} best; recall {ours.recall:.2f} "
        f"against {theirs:.2f}; ours also finds words in the query's text and weighs the type of data; not the same: "
        f"k1, and how a frequent word counts; limit: {postings:.0f} rows and counts of a query's words read once"
    )
    return [
        less_is_better(
            "retrieve.sparse", "CPU seconds a query", ours.query_s, (SPARSE_NAME, found["query_s"]), same, limit
        )
    ]


def _dense_rows(
    folder: Path, corpus: Corpus, ours: dict[str, _Ours], encode_s: float, limits: Limits, sizes: RetrievalSizes
) -> list[Row]:
    job = {
        "corpus": str(folder / "corpus.json"), "k": K, "model": str(minilm_folder()), "max_tokens": MAX_TOKENS,
        "embeddings": str(folder / "embeddings.npy"), "encoded": sizes.encoded,
    }  # fmt: skip
    _, found = DENSE_PEER.run(job, folder)
    if found["apart"] > 1e-3:
        raise ConfideError(f"the two sides' embeddings are {found['apart']:.1e} apart: not the same encoder")
    theirs = corpus.recall(found["found"])
    limit = _query_work(sizes.query_words) / limits.gemm_float32 + 4 * 384 * len(corpus.texts) / limits.memory
    rows = []
    for kind, one in ours.items():
        _no_less(one.recall, theirs, DENSE_NAME)
        same = (
            f"{len(corpus.texts)} documents, {len(corpus.queries)} queries, MiniLM in float32, its embeddings the "
            f"same to {found['apart']:.0e}, the {K} best; recall {one.recall:.2f} against {theirs:.2f}; limit: the "
            "encoder's products for a query, and every embedding read once"
        )
        if kind == "hybrid":
            same += "; not the same: ours fuses BM25, TF-IDF, embeddings and age"
        rows.append(
            less_is_better(
                f"retrieve.{kind}", "CPU seconds a query", one.query_s, (DENSE_NAME, found["query_s"]), same, limit
            )
        )
    text_words = (sizes.shortest + sizes.longest) // 2
    same = (
        f"all {len(corpus.texts)} documents of ours, kept encrypted in the vault, against {sizes.encoded}; "
        "batches of 16; limit: the encoder's products at a token a word"
    )
    limit = _query_work(text_words) / limits.gemm_float32
    rows.append(
        less_is_better(
            "retrieve.encode", "CPU seconds a document", encode_s, (DENSE_NAME, found["encode_s"]), same, limit
        )
    )
    return rows


def _query_work(tokens: int) -> float:
    """Return the multiplications of MiniLM's six layers, 384 wide, for so many words and two special tokens."""
    return 6 * (4 * 384**2 + 2 * 384 * 1536) * (tokens + 2)


def _no_less(ours: float, theirs: float, name: str) -> None:
    if ours < theirs - 0.02:
        raise ConfideError(f"ours finds {ours:.2f}, {name} {theirs:.2f}: a comparison of speed would not be fair")
