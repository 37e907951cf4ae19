"""The tone of a text in two numbers: how formal it is, and how glad or cross.

    F = (nouns + adjectives + prepositions + articles - pronouns - verbs - adverbs - interjections + 100) / 2

in percent of all words (Heylighen, Dewaele 1999, "Formality of language", section 3), tagged by the scrubber's spaCy
model. Sentiment is TextBlob's polarity in [-1, 1], a lexicon of English words.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from client.scrub_engine import SPACY_PACKAGE

FORMAL = ("NOUN", "PROPN", "ADJ", "ADP", "DET")
INFORMAL = ("PRON", "VERB", "AUX", "ADV", "INTJ")


def formality(text: str) -> float:
    """Return F of a text in [0, 100]: about 40 for talk, 60 for the press; 50 for no word."""
    return formality_of(Counter(str(token.pos_) for token in _tagger()(text) if token.is_alpha))


def formality_of(tags: Mapping[str, int]) -> float:
    """Return F from counts of universal part-of-speech tags; determiners stand for articles."""
    total = sum(tags.values())
    if not total:
        return 50.0
    lean = sum(tags.get(tag, 0) for tag in FORMAL) - sum(tags.get(tag, 0) for tag in INFORMAL)
    return (100 * lean / total + 100) / 2


def sentiment(text: str) -> float:
    """Return TextBlob's polarity, -1 cross to 1 glad."""
    from textblob import TextBlob

    return float(TextBlob(text).sentiment.polarity)


@lru_cache(maxsize=1)
def _tagger() -> Any:
    return importlib.import_module(SPACY_PACKAGE).load(exclude=["ner", "lemmatizer", "parser"])
