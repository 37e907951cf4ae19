"""A written text against the person's own: ROUGE, BLEU, METEOR, BERTScore, Word Mover's Distance, exact choice.

Counting is that of kept libraries. `embedding_f1` and `movers_distance` read token embeddings of a small encoder
(MiniLM): they order texts of one report, and compare with no published BERTScore or Word Mover's Distance. METEOR
matches exact words and stems; synonyms only where WordNet's files are there, which the label says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.errors import DataError

Vector = NDArray[np.float64]
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA = 0.9, 3.0, 0.5  # Banerjee, Lavie 2005, section 2.2


@dataclass(frozen=True)
class Rouge:
    """F1 of unigrams and of the longest common subsequence, in [0, 1]."""

    rouge1: float
    rouge_l: float


def rouge(reference: str, text: str) -> Rouge:
    """Return ROUGE-1 and ROUGE-L F1 with Porter stems (Lin 2004; Google's `rouge-score`)."""
    scores = _rouge_scorer().score(reference, text)
    return Rouge(float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def bleu(references: Sequence[Sequence[str]], texts: Sequence[str]) -> float:
    """Return the BLEU of a corpus in [0, 100]; `references` holds lists as long as `texts` (sacreBLEU, 13a tokens).

    Raises DataError where the lengths differ. (Papineni et al. 2002; Post 2018, arXiv:1804.08771)
    """
    import sacrebleu

    if not texts or any(len(some) != len(texts) for some in references):
        raise DataError("BLEU needs one reference of each list for every text")
    return float(sacrebleu.corpus_bleu(list(texts), [list(some) for some in references]).score)


def sentence_bleu(reference: str, text: str) -> float:
    """Return the BLEU of one text with exponential smoothing, in [0, 100]."""
    import sacrebleu

    return float(sacrebleu.sentence_bleu(text, [reference]).score)


class NoSynonyms:
    """Stands where WordNet is not: no word has a synonym."""

    def synsets(self, _word: str) -> list[Any]:
        """Return nothing."""
        return []


@lru_cache(maxsize=1)
def _synonyms() -> Any:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return NoSynonyms()
    return wordnet


def meteor_label() -> str:
    """Return what METEOR matches here: "METEOR (exact, stem)", and synonyms where WordNet is present."""
    return "METEOR (exact, stem)" if isinstance(_synonyms(), NoSynonyms) else "METEOR (exact, stem, synonyms)"


def meteor(reference: str, text: str) -> float:
    """Return METEOR in [0, 1] with the constants of its paper (Banerjee, Lavie 2005; NLTK), see `meteor_label`."""
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    wanted, found = reference.split(), text.split()
    if not wanted or not found:
        return 0.0
    return float(
        single_meteor_score(
            wanted,
            found,
            stemmer=PorterStemmer(),
            wordnet=_synonyms(),
            alpha=METEOR_ALPHA,
            beta=METEOR_BETA,
            gamma=METEOR_GAMMA,
        )
    )


def greedy_match(likeness: Vector, weights: Vector | None = None) -> float:
    """Return the weighted mean over rows of the best likeness in a row: one side of BERTScore, `likeness` [n, m].

    (Zhang et al. 2020, arXiv:1904.09675, section 3; weights = inverse document frequencies there.)
    """
    best = likeness.max(axis=1)
    shares = np.ones(len(best)) if weights is None else weights
    return float(best @ shares / shares.sum())


def embedding_f1(reference: Vector, text: Vector) -> float:
    """Return BERTScore's F1 from unit token embeddings [n, e] and [m, e], without idf weights or rescaling."""
    if not len(reference) or not len(text):
        return 0.0
    likeness = reference @ text.T
    recall, precision = greedy_match(likeness), greedy_match(likeness.T)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def movers_distance(reference: Vector, text: Vector) -> float:
    """Return the least mean distance that the tokens [n, e] must travel to those [m, e], all weighing alike.

    (Kusner et al. 2015, ICML, section 4; solved exactly by SciPy's linear programme.) Raises DataError for no token.
    """
    from scipy.stats import wasserstein_distance_nd

    if not len(reference) or not len(text):
        raise DataError("Word Mover's Distance needs a token on both sides")
    return float(wasserstein_distance_nd(reference, text))


def hits_at(scores: Sequence[Sequence[float]], right: Sequence[int], k: int) -> float:
    """Return the share of questions whose right candidate is among the k best; equals count against it.

    `scores` are higher for better candidates. Hits@1 of twenty is ConvAI2's (Dinan et al. 2019, arXiv:1902.00098).
    """
    if not scores:
        raise DataError("Hits@K needs a question")
    hits = [
        sum(s >= row[best] for i, s in enumerate(row) if i != best) < k for row, best in zip(scores, right, strict=True)
    ]
    return float(np.mean(hits))
