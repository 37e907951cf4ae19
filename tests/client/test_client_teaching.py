"""The retriever's core learns from what helps the model; its gradient is that of the loss, its questions are fair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.contribution import contribution, fits
from client.documents import Document, Span
from client.encoder import HashedEncoder
from client.figures import PublicTables
from client.gain import TARGET_TOKENS, gains, question_of
from client.learner import TextLearner
from client.model import LanguageModel
from client.retriever_core import Example, RetrieverCore, softmax, taught_by_gain
from client.teaching import CHOICES, Shelf, examples
from client.train import CoreTraining
from privacy.errors import ModelError
from tests.client.test_client_learner import QUERY

RANK, WIDTH = 3, 16
ENCODER = HashedEncoder(WIDTH)
TABLES = PublicTables(ENCODER)
DIRECTIONS = TABLES.directions(RANK)
ZERO = RetrieverCore(DIRECTIONS, np.zeros((RANK, RANK)))
QUERIES = replace(QUERY, purpose="train.retriever", objective="retriever-distillation", slot_dim=RANK**2)
WORDS = [
    "bread and tea at home",
    "the river in winter",
    "a train to the market",
    "music in the garden",
    "a lost letter",
]


def own(name: str, text: str, opening: str = "") -> Document:
    return Document(name, (Span(opening, own=False), Span(text, own=True)), "history", 0)


HISTORY = [own(str(i), f"{words}, I like {words} and I want {words} again.") for i, words in enumerate(WORDS)]


def row(core: RetrieverCore) -> NDArray[np.float32]:
    return np.concatenate([core.core.ravel(), core.directions.ravel()])[None].astype(np.float32)


def some_examples(number: int = 6) -> list[Example]:
    rng = np.random.default_rng(3)
    unit = rng.standard_normal((number, 5, WIDTH))
    unit /= np.linalg.norm(unit, axis=2, keepdims=True)
    return [Example(u[0], u[1:], softmax(rng.standard_normal(4))) for u in unit]


def test_the_gradient_is_that_of_the_loss() -> None:
    taught = some_examples()
    core = RetrieverCore(DIRECTIONS, np.random.default_rng(1).standard_normal((RANK, RANK)))
    found = core.gradient(taught)
    for place in np.ndindex(RANK, RANK):
        step = np.zeros((RANK, RANK))
        step[place] = 1e-5
        up, down = (replace(core, core=core.core + sign * step).loss(taught) for sign in (1, -1))
        assert found[place] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-7)
    assert np.linalg.norm(core.update(taught)) == pytest.approx(1)
    assert not core.update([]).any() and core.loss([]) == 0


def test_steps_along_the_update_lower_the_loss() -> None:
    taught, core, losses = some_examples(), ZERO, list[float]()
    for _ in range(40):
        losses.append(core.loss(taught))
        core = replace(core, core=core.core + 0.02 * core.update(taught).reshape(RANK, RANK))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_core_of_zeros_changes_no_query_and_documents_never_change() -> None:
    embeddings = ENCODER.encode(WORDS).astype(np.float64)
    np.testing.assert_array_equal(ZERO.queries(embeddings), embeddings)
    turned = replace(ZERO, core=np.eye(RANK))
    np.testing.assert_allclose(turned.scores(embeddings[0], embeddings), embeddings @ turned.queries(embeddings[:1])[0])
    again = RetrieverCore.from_row(row(turned)[0].astype(np.float64), WIDTH)
    np.testing.assert_allclose(again.core, turned.core)
    with pytest.raises(ValueError, match="retriever"):
        RetrieverCore.from_row(np.zeros(10), WIDTH)


def test_directions_are_orthonormal_public_and_the_same_everywhere() -> None:
    np.testing.assert_allclose(DIRECTIONS @ DIRECTIONS.T, np.eye(RANK), atol=1e-9)
    np.testing.assert_array_equal(PublicTables(HashedEncoder(WIDTH)).directions(RANK), DIRECTIONS)
    with pytest.raises(ModelError):
        TABLES.directions(WIDTH + 1)


def test_a_question_is_what_was_known_and_what_was_written() -> None:
    asked = question_of(own("a", "I am well.", "How are you? "))
    assert asked is not None and (asked.opening, asked.words) == ("How are you? ", "I am well.")
    alone = question_of(own("b", "one two three four five six"))
    assert alone is not None and (alone.opening, alone.words) == ("one two", " three four five six")
    assert question_of(own("c", "one")) is None and question_of(own("d", "", "only others")) is None


def test_the_very_words_help_more_than_others(cored: LanguageModel) -> None:
    """The tiny model is untrained, so a memory may help or not; what is tested is that gains are the model's own."""
    asked = question_of(HISTORY[0])
    assert asked is not None
    memories = [asked.words, WORDS[1], WORDS[2]]
    found = gains(cored, asked, memories)
    assert found.shape == (3,) and np.isfinite(found).all()
    np.testing.assert_allclose(found[1:], gains(cored, asked, memories[1:]), atol=1e-3)
    assert gains(cored, asked, []).shape == (0,)


def test_gains_do_not_depend_on_the_adapter_of_the_round(cored: LanguageModel) -> None:
    asked = question_of(HISTORY[0])
    assert asked is not None and cored.layout is not None
    before = gains(cored, asked, WORDS[1:3])
    cored.set_cores(cored.layout.unflatten(np.full(cored.layout.dim, 0.3)))
    np.testing.assert_array_equal(gains(cored, asked, WORDS[1:3]), before)


@pytest.fixture
def learner(cored: LanguageModel) -> TextLearner:
    found = TextLearner(cored, CoreTraining(), 160, TABLES)
    found.add("ann", HISTORY)
    found.add("ben", HISTORY[:2])
    return found


def test_examples_never_offer_the_questions_own_document(cored: LanguageModel) -> None:
    shelf = Shelf.of([*HISTORY, own("empty", " ")], ENCODER)
    assert len(shelf.texts) == len(HISTORY) == len(shelf.questions)
    taught = examples(cored, ENCODER, shelf, ZERO, QUERIES, 1)
    assert len(taught) == max(1, QUERIES.limits.own_tokens // TARGET_TOKENS)
    for turn, example in enumerate(taught):
        place = shelf.questions[turn][0]
        assert len(example.documents) == min(CHOICES, len(HISTORY) - 1) and example.teacher.sum() == pytest.approx(1)
        assert not np.any(np.all(np.isclose(example.documents, shelf.embeddings[place]), axis=1))
        known = [shelf.known[shelf.questions[turn][1].document, i] for i in range(len(HISTORY)) if i != place]
        np.testing.assert_allclose(sorted(example.teacher), sorted(taught_by_gain(np.array(known))))


def test_contrast_is_taught_by_where_a_question_came_from(cored: LanguageModel) -> None:
    shelf = Shelf.of(HISTORY, ENCODER)
    query = replace(QUERIES, objective="retriever-contrast")
    for example in examples(cored, ENCODER, shelf, ZERO, query, 1):
        assert example.teacher.tolist() == [1.0] + [0.0] * (len(example.documents) - 1)
    assert not shelf.known, "no model was asked"


def test_a_device_answers_with_a_whole_unit_or_with_nothing(learner: TextLearner) -> None:
    for objective in ("retriever-distillation", "retriever-contrast"):
        query = replace(QUERIES, objective=objective)
        assert fits(learner, query, row(ZERO))
        given = contribution(learner, "ann", query, row(ZERO), 7)
        assert np.linalg.norm(given) == pytest.approx(query.figure)
        np.testing.assert_array_equal(contribution(learner, "ann", query, row(ZERO), 7), given)
    assert not contribution(learner, "ben", QUERIES, row(ZERO), 7).any(), "two documents give nothing to choose from"


@pytest.mark.parametrize("changes", [{"slot_dim": RANK**2 + 1}, {"slot_dim": 4}, {"slot_dim": 1000}])
def test_rows_that_are_no_retriever_do_not_fit(learner: TextLearner, changes: dict[str, Any]) -> None:
    assert not fits(learner, replace(QUERIES, **changes), row(ZERO))


def test_forgetting_takes_the_shelf_with_it(learner: TextLearner) -> None:
    learner.shelf("ann")
    learner.forget("ann")
    with pytest.raises(KeyError):
        learner.shelf("ann")
