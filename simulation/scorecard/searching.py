"""Personal search: the person's own document, looked for among everybody's by the words that lead up to it.

A question is what stands before the person's first own word, else the first quarter of a text; what is searched is the
rest of every text, so no document holds its own question. First by words and meaning alone, then re-ranked:

    s(d | q, person) = s(d | q) + w cos(d, person)        person: mean embedding of what they wrote before

    plain       hybrid search (BM25 and cosine by reciprocal rank), w = 0
    personal    w chosen on tuning documents, by everybody's NDCG together
    eager       w = `STRONG`, whatever tuning says: what much re-ranking does to hits and echo
    wrong       re-ranked for the next person, w as in personal

    echo        share of the k results that fall in the topic that is commonest in the person's history

Topics are `TOPICS` clusters of the embeddings of all documents (k-means). What re-ranking adds to `echo` is the echo
chamber; where it grows faster than the hits, people are shown more of themselves than helps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.documents import Document, Person
from client.encoder import Encoder
from client.lexical import Lexicon
from client.personal import scored_part
from privacy.errors import DataError
from simulation.measures.ranking import ranking_scores
from simulation.progress import Progress
from simulation.scorecard.person import split_history

Vector = NDArray[np.float64]
Values = dict[str, dict[str, dict[str, float]]]
PLAIN, PERSONAL, EAGER, WRONG = "plain search", "personal search", "eager search", "wrong person"
ARMS = (PLAIN, PERSONAL, EAGER, WRONG)
K, TOPICS, FUSION = 10, 12, 60.0
NDCG, HIT, ECHO = f"NDCG@{K} of the own document", f"hit ratio@{K}", f"results of one’s own topic, @{K}"
WEIGHTS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
STRONG = 0.02  # the first place of a list gives 0.016
MOST_WORDS = 200
MOST_HISTORY, AT_ONCE = 20, 64


@dataclass(frozen=True)
class Page:
    """One document of the corpus: whose, the question that leads up to it, and the rest of its text."""

    user: str
    question: str
    text: str


@dataclass(frozen=True)
class Searcher:
    """One person: places in the corpus of what they wrote before (`learn`), of tuning and of test documents."""

    user: str
    learn: tuple[int, ...]
    tuning: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def history(self) -> tuple[int, ...]:
        """Return all that comes before the test documents."""
        return self.learn + self.tuning


class Corpus:
    """Everybody's documents: their words, vectors [n, e], topics [n]."""

    def __init__(self, pages: Sequence[Page], encoder: Encoder, progress: Progress) -> None:
        from sklearn.cluster import KMeans

        self.pages, self._lexicon = pages, Lexicon()
        for page in pages:
            self._lexicon.add(page.text)
        self.vectors = _encoded([page.text for page in pages], encoder, progress)
        self.questions = _encoded([page.question for page in pages], encoder, progress)
        clusters = KMeans(min(TOPICS, len(pages)), n_init=3, random_state=0).fit(self.vectors)
        self.topics: NDArray[np.int64] = clusters.labels_.astype(np.int64)

    def found(self, place: int) -> Vector:
        """Return the score of every document for the question of the one at `place`, [n]: reciprocal ranks added."""
        question = self.pages[place].question
        lists = [self.vectors @ self.questions[place], self._lexicon.bm25(question)]
        total: Vector = np.sum([1 / (FUSION + 1 + _ranks(scores)) for scores in lists], axis=0)
        return total

    def nearness(self, history: Sequence[int]) -> Vector:
        """Return the cosine of every document with the mean of a history, [n]; zeros without one."""
        if not history:
            return np.zeros(len(self.pages))
        mean = self.vectors[list(history)].mean(axis=0)
        near: Vector = self.vectors @ (mean / max(1e-12, float(np.linalg.norm(mean))))
        return near

    def own_topic(self, history: Sequence[int]) -> int:
        """Return the commonest topic of a history, -1 without one."""
        return int(np.bincount(self.topics[list(history)]).argmax()) if history else -1


def _ranks(scores: Vector) -> Vector:
    """Return the place of each score, 0 the highest; what scores nothing comes last, all alike."""
    places = np.empty(len(scores))
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return np.where(scores > 0, places, float(len(scores)))


def _encoded(texts: Sequence[str], encoder: Encoder, progress: Progress) -> Vector:
    rows = []
    with progress.task("reading documents", len(texts)) as step:
        for start in range(0, len(texts), AT_ONCE):
            some = [" ".join(text.split()[:MOST_WORDS]) for text in texts[start : start + AT_ONCE]]
            rows.append(encoder.encode(some).astype(np.float64))
            for _ in some:
                step()
    return np.concatenate(rows)


def search_values(
    people: Sequence[Person], encoder: Encoder, tuning_documents: int, test_documents: int, progress: Progress
) -> tuple[Values, dict[str, float]]:
    """Return measure -> arm -> person -> value on the newest test documents, and what tuning chose.

    Raises DataError for fewer than two people with history and a test document to be found.
    """
    corpus, searchers = _read(people, encoder, tuning_documents, test_documents, progress)
    gains = np.zeros(len(WEIGHTS))
    for one in searchers:
        near = corpus.nearness(one.learn)
        for place in one.tuning:
            found = corpus.found(place)
            gains += [_told(corpus, found + w * near, place, -1)[NDCG] for w in WEIGHTS]
    weight = WEIGHTS[int(np.argmax(gains))]
    values: Values = {}
    for number, one in enumerate(searchers):
        other = searchers[(number + 1) % len(searchers)]
        mine, topic = corpus.nearness(one.history), corpus.own_topic(one.history)
        shift = {
            PLAIN: 0.0 * mine,
            PERSONAL: weight * mine,
            EAGER: STRONG * mine,
            WRONG: weight * corpus.nearness(other.history),
        }
        for arm, more in shift.items():
            told = [_told(corpus, corpus.found(place) + more, place, topic) for place in one.test]
            for measure in told[0]:
                mean = float(np.mean([row[measure] for row in told]))
                values.setdefault(measure, {}).setdefault(arm, {})[one.user] = mean
    return values, {"weight of the person": weight, "documents": float(len(corpus.pages))}


def _told(corpus: Corpus, scores: Vector, place: int, topic: int) -> dict[str, float]:
    best = np.argsort(-scores, kind="stable")[:K]
    found = ranking_scores((np.arange(len(scores)) == place).astype(float).tolist(), scores.tolist(), K)
    row = {NDCG: found.ndcg, HIT: found.hit_ratio}
    return {**row, ECHO: float(np.mean(corpus.topics[best] == topic))} if topic >= 0 else row


def _read(
    people: Sequence[Person], encoder: Encoder, tuning: int, test: int, progress: Progress
) -> tuple[Corpus, list[Searcher]]:
    pages: list[Page] = []
    searchers = []
    for person in people:
        learn, newest = split_history(person.history, tuning)
        parts = [_placed(pages, person.user, some) for some in (learn[-MOST_HISTORY:], newest, person.test[-test:])]
        if parts[0] and parts[2]:
            searchers.append(Searcher(person.user, *parts))
    if len(searchers) < 2:
        raise DataError("search needs two people with history and a test document")
    return Corpus(pages, encoder, progress), searchers


def _placed(pages: list[Page], user: str, documents: Sequence[Document]) -> tuple[int, ...]:
    """Put documents that have both a question and a rest into the corpus and return their places."""
    places = []
    for document in documents:
        question, ranges = scored_part(document)
        rest = " ".join(document.text[a:b] for a, b in ranges).strip()
        if question.strip() and rest:
            places.append(len(pages))
            pages.append(Page(user, question, rest))
    return tuple(places)
