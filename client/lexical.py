"""Words of passages in memory, and two ways to score them: BM25 and the cosine of TF-IDF vectors.

    bm25(q, d)  = sum_{t in q} ln(1 + (N - n_t + 1/2) / (n_t + 1/2)) f (k1 + 1) / (f + k1 (1 - b + b |d| / avg))
    tfidf(q, d) = <v_q, v_d> / (|v_q| |v_d|),   v_d[t] = (1 + ln f) ln((N + 1) / (n_t + 1/2))

f is how often t stands in d, n_t in how many of the N passages; k1 = 1.2, b = 0.75 (Robertson and Zaragoza 2009,
section 3; Manning, Raghavan and Schuetze 2008, section 6.4). Passages come and go one at a time; nothing is on a disk.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
_WORD = re.compile(r"\w+", re.UNICODE)
STOP_WORDS = re.compile("a|an|and|are|be|for|i|in|is|it|me|my|of|on|or|so|that|the|this|to|was|we|what|with|you|your")
Scores = NDArray[np.float64]


def words(text: str) -> list[str]:
    """Return the lower-case words of a text without the commonest ones."""
    return [word for word in _WORD.findall(text.lower()) if not STOP_WORDS.fullmatch(word)]


class Lexicon:
    """The words of passages, each in a row of its own; a dropped row stays empty and scores 0."""

    def __init__(self) -> None:
        self._rows: dict[str, list[int]] = {}
        self._times: dict[str, list[int]] = {}
        self._terms: list[tuple[str, ...]] = []
        self._lengths: list[int] = []
        self._arrays: dict[str, tuple[NDArray[np.int64], Scores]] = {}
        self._norms: Scores | None = None
        self._damping: Scores | None = None
        self.live = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, text: str) -> int:
        """Take a passage and return its row."""
        row, counts = len(self._lengths), Counter(words(text))
        for term, times in counts.items():
            self._rows.setdefault(term, []).append(row)
            self._times.setdefault(term, []).append(times)
            self._arrays.pop(term, None)
        self._terms.append(tuple(counts))
        self._lengths.append(sum(counts.values()))
        self.live += 1
        self._norms = self._damping = None
        return row

    def drop(self, row: int) -> None:
        """Take a passage out, its words with it."""
        for term in self._terms[row]:
            at = self._rows[term].index(row)
            del self._rows[term][at], self._times[term][at]
            if not self._rows[term]:
                del self._rows[term], self._times[term]
            self._arrays.pop(term, None)
        self._terms[row], self._lengths[row] = (), 0
        self.live -= 1
        self._norms = self._damping = None

    def document_frequency(self, term: str) -> int:
        """Return in how many passages a term stands."""
        return len(self._rows.get(term, ()))

    def rows(self, term: str) -> tuple[int, ...]:
        """Return the rows that hold a term."""
        return tuple(self._rows.get(term, ()))

    def terms(self, row: int) -> tuple[str, ...]:
        """Return the different terms of a passage."""
        return self._terms[row]

    def bm25(self, query: str) -> Scores:
        """Return the BM25 score of every row, float64 [rows]; 0 where no word of the query stands."""
        scores, damping = np.zeros(len(self)), self._damping_of_rows()
        for term, weight in Counter(words(query)).items():
            if term in self._rows:
                rows, times = self._postings(term)
                found = len(rows)
                idf = math.log1p((self.live - found + 0.5) / (found + 0.5))
                scores[rows] += weight * idf * times * (K1 + 1) / (times + damping[rows])
        return scores

    def tfidf(self, query: str) -> Scores:
        """Return the cosine of every row's TF-IDF vector with the query's, float64 [rows]."""
        scores, square = np.zeros(len(self)), 0.0
        for term, number in Counter(words(query)).items():
            if term in self._rows:
                rows, times = self._postings(term)
                idf = self._idf(len(rows))
                weight = (1 + math.log(number)) * idf
                square += weight**2
                scores[rows] += weight * (1 + np.log(times)) * idf
        norms = self._norm_of_rows() * math.sqrt(square)
        return np.divide(scores, norms, out=np.zeros_like(scores), where=norms > 0)

    def _idf(self, found: int) -> float:
        return math.log((self.live + 1) / (found + 0.5))

    def _postings(self, term: str) -> tuple[NDArray[np.int64], Scores]:
        if term not in self._arrays:
            self._arrays[term] = np.asarray(self._rows[term]), np.asarray(self._times[term], dtype=np.float64)
        return self._arrays[term]

    def _damping_of_rows(self) -> Scores:
        """Return k1 (1 - b + b |d| / avg) of every row."""
        if self._damping is None:
            lengths = np.asarray(self._lengths, dtype=np.float64)
            average = max(1.0, lengths.sum() / max(1, self.live))
            self._damping = K1 * (1 - B + B * lengths / average)
        return self._damping

    def _norm_of_rows(self) -> Scores:
        if self._norms is None:
            squares = np.zeros(len(self))
            for term, rows in self._rows.items():
                idf = self._idf(len(rows))
                squares[self._postings(term)[0]] += ((1 + np.log(self._postings(term)[1])) * idf) ** 2
            self._norms = np.sqrt(squares)
        return self._norms
