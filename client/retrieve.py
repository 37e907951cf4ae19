"""Retrieval over a person's own documents, in memory: BM25 (k1 1.2, b 0.75), recency where nothing matches."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
import numpy as np

from client.documents import Document

_WORD = re.compile(r"\w+", re.UNICODE)
STOP_WORDS = re.compile("a|an|and|are|be|for|i|in|is|it|me|my|of|on|or|so|that|the|this|to|was|we|what|with|you|your")


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


def words(text: str) -> list[str]:
    """Return the lower-case words of a text without the commonest ones."""
    return [word for word in _WORD.findall(text.lower()) if not STOP_WORDS.fullmatch(word)]
