"""Embeddings, word marks and figures of a person: bounded before they are written, and about that person alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.contribution import chosen_slot, contribution, fits
from client.documents import Document, Span
from client.encoder import EVERYDAY, HashedEncoder, open_encoder
from client.figures import PORTRAITS, STYLE, PublicTables, Served, metrics, served_by
from client.learner import TextLearner
from client.model import LanguageModel
from client.style import FIGURES, style_of
from client.train import CoreTraining
from privacy.errors import ModelError
from privacy.objective import GAIN_EDGES, LOSS_UNIT, METRICS, METRICS_NORM
from tests.client.test_client_learner import QUERY

TABLES = PublicTables(HashedEncoder(16), ("bread", "river", "tea", "garden"))
ANN = Document(
    "a", (Span("Rain again. ", own=False), Span("I like bread, bread and the river. ", own=True)), "history", 0
)
BEN = Document("b", (Span("We paint the garden. ", own=True),), "history", 0)


@pytest.fixture
def learner(cored: LanguageModel) -> TextLearner:
    found = TextLearner(cored, CoreTraining(sampling_rate=1.0, step=0.1), 160, TABLES)
    found.add("ann", [ANN])
    found.add("ben", [BEN])
    return found


def test_a_mean_embedding_is_a_direction_of_own_words_alone(learner: TextLearner) -> None:
    embedding = learner.portrait("ann")
    assert np.linalg.norm(embedding) == pytest.approx(1)
    np.testing.assert_allclose(embedding, TABLES.mean_embedding(["I like bread, bread and the river."]))
    learner.add("ann", [BEN])
    assert not np.allclose(learner.portrait("ann"), embedding), "text that was replaced is forgotten"
    assert not TABLES.mean_embedding([" "]).any() and not TABLES.mean_embedding([]).any()


@given(st.lists(st.text(max_size=60), max_size=4))
def test_a_portrait_is_never_longer_than_one(texts: list[str]) -> None:
    for shows in PORTRAITS:
        tables = replace(TABLES, shows=shows)
        portrait = tables.portrait(texts)
        assert portrait.shape == (tables.portrait_dim,) and np.linalg.norm(portrait) <= 1 + 1e-12


def test_style_is_how_and_not_what() -> None:
    calm = style_of(["I went to the market. It was a good day.", "We saw the boats."])
    other_topic = style_of(["I came to the station. It was a bad trip.", "We met the drivers."])
    loud = style_of(["I WENT TO THE MARKET!!! IT WAS A GOOD DAY!!!", "WE SAW THE BOATS!!!"])
    assert np.linalg.norm(calm - other_topic) < 0.1 < 0.3 < np.linalg.norm(calm - loud)
    assert not style_of([]).any() and not style_of(["...", " "]).any()
    assert len({figure.name for figure in FIGURES}) == len(calm) == 20


def test_word_marks_have_length_one_whatever_is_written(learner: TextLearner) -> None:
    query = replace(QUERY, purpose="describe.persona", objective="word-counts", slot_dim=4)
    rows = np.zeros((1, learner.layout.dim), dtype=np.float32)
    np.testing.assert_allclose(
        learner.figures("ann", rows, query, 0, 1), query.figure * np.array([0.5**0.5, 0.5**0.5, 0, 0])
    )
    assert not TABLES.word_marks(["nothing here"]).any()
    assert np.linalg.norm(TABLES.word_marks(["tea " * 1000])) == 1


def test_tables_are_named_by_encoder_and_words() -> None:
    others = [
        replace(TABLES, words=TABLES.words[::-1]),
        replace(TABLES, encoder=HashedEncoder(17)),
        replace(TABLES, shows=STYLE),
        PublicTables(HashedEncoder(16)),
    ]
    assert len({TABLES.sha256, *(each.sha256 for each in others)}) == 5
    assert open_encoder("hashed").common_words(5) == EVERYDAY[:5]
    with pytest.raises(ModelError, match="minilm"):
        open_encoder("word2vec")


@given(
    st.integers(0, 500),
    st.lists(st.floats(0, 1e6) | st.just(float("nan")) | st.just(float("inf")), min_size=3, max_size=3),
    st.lists(st.floats(0, 1e6), max_size=3),
    st.integers(0, 9),
    st.integers(0, 12),
)
def test_no_figure_and_no_vector_of_figures_is_out_of_bounds(
    tokens: int, losses: list[float], personas: list[float], compared: int, preferred: int
) -> None:
    served = Served(tokens, losses[0], losses[1], tuple(personas), losses[2], tokens // 2, compared, preferred)
    figures = metrics(served)
    assert figures.shape == (len(METRICS),) and ((figures >= 0) & (figures <= 1)).all()
    assert (figures**2).sum() <= METRICS_NORM**2 and figures[0] == 1


def test_figures_say_what_happened() -> None:
    served = Served(100, 400.0, 396.0, (398.0, 397.0), 397.0, 25, compared=4, preferred=3)
    told = dict(zip(METRICS, metrics(served), strict=True))
    assert told["loss_base"] == 4 / LOSS_UNIT and told["loss_chosen"] == 3.97 / LOSS_UNIT and told["accuracy"] == 0.25
    gains = [name for name in METRICS if name.startswith("gain_") and told[name]]
    assert gains == ["gain_3"] and GAIN_EDGES[2] <= 1 - 397 / 400 < GAIN_EDGES[3]
    assert told["without_persona"] == 1 and (told["compared"], told["preferred"]) == (1, 0.75)
    assert metrics(replace(served, personas=(395.0, 397.0)))[METRICS.index("without_persona")] == 0


def test_served_by_scores_base_global_and_every_persona(learner: TextLearner) -> None:
    start, query = learner.layout.zero_cores(), replace(QUERY, slot_dim=learner.layout.dim)
    better = learner.layout.unflatten(3 * learner.update("ann", start, query, 1))
    documents = learner.round_documents("ann", query)
    served = served_by(learner.model, documents, start, [start, better], 1)
    assert served.base == served.global_ == served.personas[0] > served.chosen == served.personas[1]
    assert served.tokens == sum(d.encoded.own_tokens for d in documents) and 0 <= served.right <= served.tokens
    told = dict(zip(METRICS, metrics(served), strict=True))
    assert told["loss_chosen"] < told["loss_global"] and told["without_persona"] == 0


def rows_of_three(learner: TextLearner, centroids: np.ndarray) -> np.ndarray:
    cores = np.zeros((3, learner.layout.dim))
    cores[1] = learner.update("ann", learner.layout.zero_cores(), QUERY, 1)
    return np.concatenate([cores, centroids], axis=1).astype(np.float32)


def test_devices_choose_by_loss_centroid_or_word(learner: TextLearner) -> None:
    query = replace(QUERY, slots=3, slot_dim=learner.layout.dim, purpose="train.persona")
    centroids = np.stack([-learner.portrait("ann"), np.zeros(16), learner.portrait("ann")])
    rows = rows_of_three(learner, centroids)
    learner.named = {"ben": 1}
    nearest, declared = replace(query, choice="nearest"), replace(query, choice="declared")
    plain = rows[:, : learner.layout.dim]
    assert chosen_slot(learner, "ann", query, plain) == 1
    assert chosen_slot(learner, "ann", nearest, rows) == 2
    assert [chosen_slot(learner, user, declared, plain) for user in ("ann", "ben")] == [None, 1]
    assert fits(learner, nearest, rows) and fits(learner, query, plain) and fits(learner, declared, plain)
    assert not (fits(learner, nearest, plain) or fits(learner, query, rows) or fits(learner, query, plain[:2]))
    vector = contribution(learner, "ann", nearest, rows, 1)
    _, weights = query.split(vector)
    assert weights is not None and np.flatnonzero(weights).tolist() == [2]
    assert np.linalg.norm(vector) <= float(query.clip_norm)
    assert not contribution(learner, "ann", declared, plain, 1).any()


def test_an_evaluation_has_one_row_more_than_slots(learner: TextLearner) -> None:
    query = replace(QUERY, slots=2, slot_dim=len(METRICS), purpose="measure.adapters", objective="evaluation-metrics")
    rows = rows_of_three(learner, np.zeros((3, 0)))
    assert fits(learner, query, rows) and not fits(learner, query, rows[:2])
    slots, weights = query.split(contribution(learner, "ann", query, rows, 1))
    assert weights is not None and np.flatnonzero(weights).tolist() == [0], "row 1 is the first persona"
    told = slots[0] * METRICS_NORM / query.figure
    assert told[0] == pytest.approx(1) and told[METRICS.index("without_persona")] == 0


def test_without_tables_there_is_no_portrait(cored: LanguageModel) -> None:
    bare = TextLearner(cored, CoreTraining(), 160)
    bare.add("ann", [ANN])
    assert bare.public_sha256 is None
    with pytest.raises(ModelError):
        bare.portrait("ann")
