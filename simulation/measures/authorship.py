"""Who wrote it? Attribution of texts among known authors: the criterion of style that needs no judge.

Character n-grams of two to four letters inside words, TF-IDF, logistic regression (Stamatatos 2009, "A survey of modern
authorship attribution methods", section 2.2; scikit-learn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privacy.errors import DataError

MOST_TEXTS = 30


class Attribution:
    """A classifier of authors, fitted on texts of each, at most `MOST_TEXTS` the newest."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        rows = [(text, user) for user, some in sorted(texts.items()) for text in some[-MOST_TEXTS:] if text.strip()]
        self.authors = sorted({user for _, user in rows})
        if len(self.authors) < 2:
            raise DataError("attribution needs two authors with a text")
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        self._model: Any = make_pipeline(vectors, LogisticRegression(C=10.0, max_iter=500, class_weight="balanced"))
        self._model.fit([text for text, _ in rows], [user for _, user in rows])

    def author(self, text: str) -> str:
        """Return the likeliest author of a text."""
        return str(self._model.predict([text])[0])

    def share_right(self, user: str, texts: Sequence[str]) -> float | None:
        """Return the share of `texts` that are attributed to `user`, None for no text with a word."""
        asked = [text for text in texts if text.strip()]
        return sum(self.author(text) == user for text in asked) / len(asked) if asked else None
