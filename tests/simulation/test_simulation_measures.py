"""Every measure against a value known from outside: its paper, its library's documentation, or by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from privacy.errors import DataError
from simulation.measures.personalization import accuracy_penalty, degress, egises, perseval, responsiveness, win_rate
from simulation.measures.ranking import label_scores, ranking_scores, rating_scores
from simulation.measures.text import (
    bleu,
    embedding_f1,
    greedy_match,
    hits_at,
    meteor,
    meteor_label,
    movers_distance,
    rouge,
    sentence_bleu,
)

FOX, LOG = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."


def test_rouge_as_in_its_documentation() -> None:
    """README of google-research/rouge: R1 precision 6/8, recall 6/9; RL precision 5/8, recall 5/9."""
    found = rouge(FOX, LOG)
    assert found.rouge1 == pytest.approx(2 * 0.75 * (6 / 9) / (0.75 + 6 / 9))
    assert found.rouge_l == pytest.approx(2 * 0.625 * (5 / 9) / (0.625 + 5 / 9))


def test_bleu_as_in_its_documentation() -> None:
    """README of mjpost/sacrebleu: 48.53 with two references for three sentences."""
    references = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]
    texts = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    assert bleu(references, texts) == pytest.approx(48.53, abs=0.005)
    assert sentence_bleu(FOX, FOX) == pytest.approx(100)
    with pytest.raises(DataError):
        bleu([["one"]], ["one", "two"])


def test_meteor_as_in_its_paper() -> None:
    """Banerjee, Lavie 2005, section 2.2: two chunks of six matched words; Fmean = 10 P R / (R + 9 P)."""
    by_hand = 10 * (6 / 7) / (6 / 7 + 9) * (1 - 0.5 * (2 / 6) ** 3)
    assert meteor("the president then spoke to the audience", "the president spoke to the audience") == pytest.approx(
        by_hand
    )
    assert meteor("the runner runs", "the runners running") > 0.9 * (1 - 0.5 / 27), "stems match"
    assert meteor("", "word") == 0.0
    assert meteor_label().startswith("METEOR (exact, stem")


def test_bertscore_as_in_its_paper() -> None:
    """Zhang et al. 2020, figure 1: five reference tokens, best likenesses and idf weights, recall 0.753."""
    best = np.array([0.713, 0.515, 0.858, 0.797, 0.913])
    weights = np.array([1.27, 7.94, 1.82, 7.90, 8.88])
    likeness = np.full((5, 6), 0.1)
    likeness[np.arange(5), [3, 1, 0, 5, 4]] = best
    assert greedy_match(likeness, weights) == pytest.approx(0.753, abs=0.001)
    rows = np.eye(3)
    assert embedding_f1(rows, rows) == pytest.approx(1.0)
    assert embedding_f1(rows, rows[:1]) == pytest.approx(2 * (1 / 3) / (1 + 1 / 3))
    assert embedding_f1(rows, rows[:0]) == 0.0


def test_movers_distance_against_all_assignments() -> None:
    """With as many tokens on both sides the least transport is an assignment: all 120 of five are tried."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    least = min(np.mean([distances[i, j] for i, j in enumerate(p)]) for p in itertools.permutations(range(5)))
    assert movers_distance(a, b) == pytest.approx(least, abs=1e-6)
    line = movers_distance(np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [6.0], [8.0]]))
    assert line == pytest.approx(5.0), "on a line everything moves by five (SciPy's own example)"
    with pytest.raises(DataError):
        movers_distance(a, b[:0])


def test_hits_count_ties_against_the_right_one() -> None:
    scores = [[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]]
    assert hits_at(scores, [0, 0, 2], 1) == pytest.approx(1 / 3)
    assert hits_at(scores, [0, 0, 2], 2) == pytest.approx(2 / 3)
    assert hits_at(scores, [0, 0, 2], 3) == 1.0


def test_ndcg_as_in_textbook_and_library() -> None:
    """The well-known example with gains 3, 2, 3, 0, 1, 2: DCG 6.861, and scikit-learn's documented 0.69."""
    from sklearn.metrics import ndcg_score

    gains = [3.0, 2.0, 3.0, 0.0, 1.0, 2.0]
    found = ranking_scores(gains, [6, 5, 4, 3, 2, 1], 6)
    assert found.ndcg == pytest.approx(6.861 / 7.141, abs=5e-4)
    documented = ranking_scores([10, 0, 0, 1, 5], [0.1, 0.2, 0.3, 4, 70], 5)
    assert documented.ndcg == pytest.approx(0.69, abs=0.006)
    rng = np.random.default_rng(2)
    for k in (1, 3, 7):
        truth, scores = rng.integers(0, 4, 9).astype(float).tolist(), rng.random(9).tolist()
        assert ranking_scores(truth, scores, k).ndcg == pytest.approx(float(ndcg_score([truth], [scores], k=k)))


def test_precision_and_recall_by_hand() -> None:
    found = ranking_scores([1, 0, 1, 0, 1], [5, 4, 3, 2, 1], 2)
    assert [found.precision, found.recall, found.hit_ratio] == pytest.approx([0.5, 1 / 3, 1.0])
    assert ranking_scores([0, 0, 1], [3, 2, 1], 2).hit_ratio == 0.0
    with pytest.raises(DataError):
        ranking_scores([0, 0], [1, 2], 1)


def test_errors_and_labels_as_documented() -> None:
    """The examples in scikit-learn's documentation of mean_absolute_error, mean_squared_error and f1_score."""
    found = rating_scores([3, -0.5, 2, 7], [2.5, 0.0, 2, 8])
    assert [found.mae, found.mse, found.rmse] == pytest.approx([0.5, 0.375, 0.6124], abs=1e-4)
    labels = label_scores(list("012012"), list("021001"))
    assert [labels.f1, labels.micro_f1] == pytest.approx([0.267, 0.333], abs=1e-3)
    assert labels.accuracy == pytest.approx(2 / 6)
    with pytest.raises(DataError):
        rating_scores([], [])


def square(distance: float) -> np.ndarray:
    return np.array([[0.0, distance], [distance, 0.0]])


def test_egises_by_hand() -> None:
    """Two people 0.5 apart, the system's texts 0.2: of two there is one pair, its weight is 1, and DEGRESS 0.2 / 0.5.

    With a third 0.1 and 0.3 away, X_12 = 0.5 e^0.5 / (e^0.5 + e^0.1) = 0.29934.
    """
    ones = np.ones(2)
    found = degress(square(0.5), ones, square(0.2), ones)
    assert found == pytest.approx([0.4] * 2, abs=1e-4)
    assert egises([found]) == pytest.approx(0.6, abs=1e-4)
    three = np.array([[0.0, 0.5, 0.1], [0.5, 0.0, 0.3], [0.1, 0.3, 0.0]])
    assert responsiveness(three, np.ones(3))[0, 1] == pytest.approx(0.29934, abs=1e-5)


def test_egises_is_none_for_people_themselves_and_whole_for_one_answer_to_all() -> None:
    ones = np.ones(2)
    assert egises([degress(square(0.5), ones, square(0.5), ones)]) == pytest.approx(0.0)
    assert egises([degress(square(0.5), ones, square(0.0), ones)]) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(DataError):
        degress(np.zeros((1, 1)), np.ones(1), np.zeros((1, 1)), np.ones(1))


def test_perseval_takes_off_for_inaccuracy() -> None:
    """The right answers to all keep nearly all of DEGRESS; equally wrong ones lose; who is served worse loses more."""
    exact, wrong = accuracy_penalty(np.zeros(3)), accuracy_penalty(np.full(3, 0.9))
    assert exact == pytest.approx([1 - 1 / (1 + 1000 * math.exp(-10 * 2 / 10001))] * 3)
    assert (wrong < exact).all()
    uneven = accuracy_penalty(np.array([0.1, 0.1, 0.9]))
    assert uneven[2] < uneven[0]
    ones = np.ones(2)
    same = degress(square(0.5), ones, square(0.5), ones)
    assert perseval([(same, np.zeros(2))]) == pytest.approx(0.999, abs=1e-3)


def by_sums(expected: np.ndarray, to_document: np.ndarray, made: np.ndarray, made_to: np.ndarray) -> list[float]:
    """DEGRESS in single sums over the other people, nothing shared with the code under test."""
    n, found = len(expected), []
    for j in range(n):
        total, others = 0.0, [i for i in range(n) if i != j]
        for k in others:
            weights = [math.exp(expected[j][i] / to_document[j]) for i in others]
            x = math.exp(expected[j][k] / to_document[j]) / sum(weights) * expected[j][k]
            weights = [math.exp(made[j][i] / made_to[j]) for i in others]
            y = math.exp(made[j][k] / made_to[j]) / sum(weights) * made[j][k]
            total += (min(x, y) + 1e-5) / (max(x, y) + 1e-5)
        found.append(total / (n - 1))
    return found


def between(n: int, seed: int) -> np.ndarray:
    distances = np.random.default_rng(seed).uniform(0.1, 0.9, (n, n))
    both = (distances + distances.T) / 2
    np.fill_diagonal(both, 0.0)
    return both


def test_degress_as_it_is_summed_by_hand() -> None:
    """Vansh et al. 2023: four people, two documents, sums written out; EGISES is one less the mean over all."""
    told = []
    for seed in (1, 2):
        to, made_to = (np.random.default_rng(seed + s).uniform(0.3, 1, 4) for s in (10, 20))
        found = degress(between(4, seed), to, between(4, seed + 5), made_to)
        assert found == pytest.approx(by_sums(between(4, seed), to, between(4, seed + 5), made_to), rel=1e-9)
        told.append(found)
    assert egises(told) == pytest.approx(1 - (told[0].mean() + told[1].mean()) / 2)


def test_perseval_by_hand() -> None:
    """Dasgupta et al. 2024 with alpha 3, beta 1, gamma 4; two people, distances 0.2 and 0.6 from their own texts.

    best 0.2, mean 0.4: ADP = 1 / (1 + 10^4 e^-2.5) = 0.0012168; ACP = 1 / (1 + 10^4) = 0.0001 and, at exponent -20,
    1 / (1 + 10^4 e^-20) = 0.99998. EDP = 1 - 1 / (1 + 10^3 e^(-10 (ADP + ACP))) = 0.99899 and 0.04298.
    """
    penalty = accuracy_penalty(np.array([0.2, 0.6]))
    adp = 1 / (1 + 1e4 * math.exp(-10 * 0.2 / 0.8))
    acp = [1 / (1 + 1e4), 1 / (1 + 1e4 * math.exp(-10 * 0.4 / 0.2))]
    by_hand = [1 - 1 / (1 + 1e3 * math.exp(-10 * (adp + one))) for one in acp]
    assert adp == pytest.approx(0.0012168, rel=1e-3) and by_hand == pytest.approx([0.99899, 0.04298], abs=5e-4)
    assert penalty == pytest.approx(by_hand, rel=1e-6)
    ones = np.ones(2)
    half = degress(square(0.5), ones, square(0.2), ones)
    assert perseval([(half, np.array([0.2, 0.6]))]) == pytest.approx(float(half[0]) * sum(by_hand) / 2, rel=1e-6)


def test_precision_and_recall_of_labels_as_documented() -> None:
    """scikit-learn's documentation of precision_score and recall_score, macro: 0.22 and 0.33."""
    found = label_scores(list("012012"), list("021001"))
    assert [found.precision, found.recall] == pytest.approx([0.2222, 0.3333], abs=1e-4)


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([1, 2, 3], [0, 2, 4]) == 0.5
    with pytest.raises(DataError):
        win_rate([], [])
