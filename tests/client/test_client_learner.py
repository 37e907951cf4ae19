"""The learner reads a bounded part of a person's documents each round, and forgets a person wholly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.documents import Document, Span
from client.learner import TextLearner, flat_cores, part_of_round, pieces, reply_ranges
from client.model import Encoded, LanguageModel
from client.preference import Pair, pair_of
from client.train import CoreTraining, core_update
from privacy.errors import ModelError
from privacy.query import Cohort, Limits, Query

Dialogues = Callable[..., list[Document]]
QUERY = Query(
    federation="test",
    campaign="first",
    round=0,
    attempt=0,
    purpose="train.global",
    slots=1,
    slot_dim=1,
    clip_norm=Fraction(1, 10),
    noise_multiplier=Fraction(1),
    cohort=Cohort(100),
    transport="ideal",
    release_sha256="a" * 64,
    basis_sha256="b" * 64,
    policy_sha256="d" * 64,
    ledger_head="c" * 64,
    objective="next-token",
    limits=Limits(own_tokens=120, local_steps=2),
)


@pytest.fixture
def learner(cored: LanguageModel) -> TextLearner:
    return TextLearner(cored, CoreTraining(sampling_rate=1.0, step=0.1), 160)


def encoded(own_tokens: list[int]) -> list[Encoded]:
    return [
        Encoded(f"d{i}", torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool))
        for i, n in enumerate(own_tokens)
    ]


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 80))
def test_rounds_read_every_document_once_and_within_the_limit(sizes: list[int], limit: int) -> None:
    query, documents = replace(QUERY, limits=Limits(own_tokens=limit, local_steps=1)), encoded(sizes)
    wanted = [piece.document for d in documents for piece in pieces(d, limit)]
    parts: list[list[Encoded]] = []
    while len([d for part in parts for d in part]) < len(wanted):
        parts.append(part_of_round(documents, replace(query, round=len(parts))))
        assert parts[-1] and sum(d.own_tokens for d in parts[-1]) <= limit
    assert [d.document for part in parts for d in part] == wanted
    again = part_of_round(documents, replace(query, round=len(parts)))
    assert [d.document for d in again] == [d.document for d in (parts[0] if parts else [])]


@given(st.lists(st.booleans(), min_size=1, max_size=90), st.integers(1, 80))
def test_pieces_hold_every_token_once_and_no_more_targets_than_the_limit(own: list[bool], limit: int) -> None:
    whole = Encoded("d", torch.arange(len(own)), torch.tensor([False, *own[1:]]))
    found = pieces(whole, limit)
    assert all(0 <= piece.own_tokens <= limit for piece in found) and len({p.document for p in found}) == len(found)
    lost = whole.own_tokens - sum(piece.own_tokens for piece in found)
    assert 0 <= lost <= max(0, len(own) // limit), "only the first token of a later piece stops being a target"
    if whole.own_tokens <= limit:
        assert found == [whole]
    else:
        assert all(torch.equal(p.ids, whole.ids[int(p.ids[0]) : int(p.ids[0]) + len(p.ids)]) for p in found)


def test_a_long_document_is_trained_on(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", dialogues(4))
    short = replace(QUERY, limits=Limits(own_tokens=5, local_steps=1))
    assert learner.update("ann", learner.layout.zero_cores(), short, 5).any()


def test_own_tokens_are_counted_over_all_documents(learner: TextLearner, dialogues: Dialogues) -> None:
    documents = [*dialogues(3), Document("silent", (Span("not mine", own=False),), "history", 9)]
    wanted = sum(len(span.text) for d in documents[:-1] for span in d.spans if span.own)
    assert learner.add("ann", documents) == wanted
    assert len(learner.round_documents("ann", QUERY)) == 3


def test_a_persons_new_text_takes_the_place_of_the_old(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", dialogues(1))
    stale = learner.round_documents("ann", QUERY)[0]
    learner.add("ann", [replace(dialogues(1, first=3)[0], id=stale.encoded.document)])
    fresh = learner.round_documents("ann", QUERY)[0]
    assert not torch.equal(fresh.encoded.ids, stale.encoded.ids) and len(fresh.hidden) == len(fresh.encoded.ids)


def test_forgetting_drops_one_persons_everything(learner: TextLearner, dialogues: Dialogues) -> None:
    for user in ("ann", "ben"):
        learner.add(user, dialogues(2))
        learner.round_documents(user, QUERY)
    learner.forget("ann")
    assert list(learner._cached) == ["ben"] and len(learner._cached["ben"]) == 2 and list(learner._encoded) == ["ben"]
    learner.forget("nobody")


def test_the_same_seed_is_the_same_update(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", dialogues(4))
    zero = learner.layout.zero_cores()
    first, again = (learner.update("ann", zero, QUERY, 5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (learner.layout.dim,) and first.any()


def test_no_more_steps_are_taken_than_the_query_allows(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", dialogues(4))
    one = replace(QUERY, limits=Limits(own_tokens=120, local_steps=1))
    update = learner.update("ann", learner.layout.zero_cores(), one, 5)
    assert np.linalg.norm(update) == pytest.approx(0.1, rel=1e-4), "the training's two steps would be longer"


def test_an_update_lowers_the_loss_it_was_trained_on(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", dialogues(4))
    update = learner.update("ann", learner.layout.zero_cores(), QUERY, 5)
    [zero, trained] = flat_cores(learner.layout, np.stack([np.zeros_like(update), update]))
    assert learner.loss("ann", trained, QUERY) < learner.loss("ann", zero, QUERY)


def test_nothing_to_read_is_no_loss_and_no_update(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.add("ann", [])
    assert learner.loss("ann", learner.layout.zero_cores(), QUERY) == 0.0
    assert not learner.update("ann", learner.layout.zero_cores(), QUERY, 5).any()


DIALOGUE = Document(
    "talk",
    (
        Span("I begin with this. ", own=True),
        Span("Do you like tea? ", own=False),
        Span("Yes, I like green tea. ", own=True),
    ),
    "history",
    0,
)


def test_replies_are_own_words_behind_anothers() -> None:
    [(start, end)] = reply_ranges(DIALOGUE)
    assert DIALOGUE.text[start:end] == "Yes, I like green tea. "
    assert reply_ranges(replace(DIALOGUE, spans=DIALOGUE.spans[:1])) == []


def test_only_replies_are_learned_where_they_are_asked_for(learner: TextLearner) -> None:
    learner.add("ann", [DIALOGUE])
    learner.add("ben", [replace(DIALOGUE, spans=DIALOGUE.spans[:1])])
    every, replies = replace(QUERY, slot_dim=learner.layout.dim), replace(QUERY, objective="reply-only")
    [whole], [part] = learner.round_documents("ann", every), learner.round_documents("ann", replies)
    own = whole.encoded.target & ~part.encoded.target
    assert part.encoded.own_tokens and own.any() and not (part.encoded.target & ~whole.encoded.target).any()
    start = learner.layout.zero_cores()
    assert not np.array_equal(learner.update("ann", start, every, 1), learner.update("ann", start, replies, 1))
    assert not learner.update("ben", start, replies, 1).any() and learner.update("ben", start, every, 1).any()


def test_a_preference_step_makes_own_words_likelier_than_the_models(learner: TextLearner) -> None:
    learner.add("ann", [DIALOGUE])
    query, start = replace(QUERY, objective="preference-pairs"), learner.layout.zero_cores()
    update = learner.update("ann", start, query, 1)
    assert np.linalg.norm(update) > 0 and np.array_equal(update, learner.update("ann", start, query, 1))
    [document] = learner.round_documents("ann", query)
    pair = pair_of(learner.model, document, torch.Generator().manual_seed(1))
    assert torch.equal(pair.own.encoded.target, pair.sample.encoded.target)
    before = _margin(learner.model, pair)
    learner.model.set_cores(learner.layout.unflatten(update))
    assert _margin(learner.model, pair) > before


def _margin(model: LanguageModel, pair: Pair) -> float:
    own, sample = model.document_nats([pair.own, pair.sample])
    return float(sample.sum() - own.sum())


def test_an_objective_that_trains_no_adapter_is_none_of_an_update(learner: TextLearner) -> None:
    learner.add("ann", [DIALOGUE])
    query = replace(QUERY, objective="centroid-sums", purpose="cluster.persona")
    with pytest.raises(ModelError):
        learner.update("ann", learner.layout.zero_cores(), query, 1)


def test_no_step_begins_after_the_seconds_of_the_limits(learner: TextLearner, dialogues: Dialogues) -> None:
    learner.training = replace(learner.training, steps=2, seconds=1e9)
    learner.add("ann", dialogues(2))
    documents, start = learner.round_documents("ann", QUERY), learner.layout.zero_cores()

    def length(seconds: float, steps: int) -> float:
        settings = replace(learner.training, seconds=seconds, steps=steps)
        return float(np.linalg.norm(core_update(learner.model, documents, start, settings, torch.Generator())))

    assert length(0.0, 2) == length(1e9, 1) != length(1e9, 2)
