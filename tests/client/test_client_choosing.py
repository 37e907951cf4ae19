"""What is chosen beyond an arm: the weight of memories, the words before them, single sentences, another order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client import crossfit, own_training
from client.assistant import Assistant
from client.crossfit import Folds
from client.encoder import HashedEncoder
from client.extract import extracts
from client.forget import Wanted, forget
from client.generate import reply
from client.library import Passage, documents
from client.model import GLOBAL, LanguageModel
from client.personal import train
from client.personalize import ARMS, Choice, choose, earlier, held_back_rows, score_arms, score_steering, with_steering
from client.prompt import NOBODY, SUMMARY, About, templates
from client.refine import ADVICE, BUDGET, kept_advice, refine
from client.rerank import by_likelihood
from client.retrieve import BY_PROFILE, METHODS, PersonalIndex
from client.steering import STRENGTHS, checked_strength, steered, steered_nats, steered_reply
from client.vault import Vault
from privacy.errors import ConfigError
from tests.vault_of_notes import vault_of_notes

NewModel = Callable[..., LanguageModel]
WORDS = ["boat", "lamp", "train", "green", "sister", "bees", "books", "rain", "cards", "field", "door", "kitchen"]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    pairs = [(WORDS[i % 12], WORDS[(i * 5 + 1) % 12]) for i in range(30)]
    texts = [
        f"Note {i}: the {first} and the {second} again, but not the {first}." for i, (first, second) in enumerate(pairs)
    ]
    with vault_of_notes(tmp_path, monkeypatch, texts) as made:
        yield made


@pytest.fixture
def model(new_model: NewModel) -> LanguageModel:
    return new_model(dtype=torch.float32)


def passage(number: int, text: str, kind: str = "note") -> Passage:
    return Passage(number, 0, kind, "t", None, text, own=True)


# -- the weight of memories ---------------------------------------------------------------------------------------


def test_the_dial_is_the_formula_and_its_marks_are_the_two_predictions() -> None:
    rows = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    for strength, wanted in ((0.0, rows[0]), (-1.0, rows[1])):
        torch.testing.assert_close(steered(rows[0], rows[1], strength), wanted)
    by_hand = rows[0].exp() ** 2.5 * rows[1].exp() ** -1.5
    torch.testing.assert_close(steered(rows[0], rows[1], 1.5).exp(), by_hand / by_hand.sum(-1, keepdim=True))
    for wrong in (-1.1, 3.1, float("nan")):
        with pytest.raises(ConfigError, match="from -1"):
            checked_strength(wrong)


def test_at_zero_and_minus_one_the_nats_are_those_with_and_without(vault: Vault, model: LanguageModel) -> None:
    [row, *_] = held_back_rows(vault, model)
    placed = model.with_context(row.encoded, model.context_ids("The boat and the lamp.", 64))
    found = steered_nats(model, placed, row.encoded, (0.0, -1.0, 0.5))
    for each, nats in zip((placed, row.encoded), found, strict=False):
        assert float(model.document_nats([model.prefix(each)])[0].sum()) == pytest.approx(nats, rel=1e-4)
    assert found[2] not in (found[0], found[1])


def test_a_steered_reply_goes_from_no_memories_to_more_of_them(model: LanguageModel) -> None:
    system, plain = "The boat is green. " * 6, "Answer."
    without = reply(model, plain, "Which boat?", 6)
    assert steered_reply(model, system, plain, "Which boat?", -1.0, 6).text == without.text
    asis = reply(model, system, "Which boat?", 6)
    assert steered_reply(model, system, plain, "Which boat?", 0.0, 6).text == asis.text
    assert steered_reply(model, system, plain, "Which boat?", 2.0, 6).tokens <= 6


def test_the_weight_is_chosen_on_one_half_and_checked_on_the_other() -> None:
    made = Choice("hybrid", {}, 20, 0.1, 0.1, False, "Uses your texts.")
    base = np.random.default_rng(0).normal(50, 3, 20)
    better = np.tile(base, (len(STRENGTHS), 1))
    better[-1] *= 0.9
    chosen = with_steering(made, better)
    assert chosen.steer == STRENGTHS[-1] and "10.0% more on the half that had no say" in chosen.words
    fooled = better.copy()
    fooled[-1, 1::2] = base[1::2] * 1.2
    assert with_steering(made, fooled).steer == 0.0 and "looked better and was not" in with_steering(made, fooled).words
    noise = np.tile(base, (len(STRENGTHS), 1)) + np.random.default_rng(1).normal(0, 2, (len(STRENGTHS), 20))
    assert with_steering(made, np.tile(base, (len(STRENGTHS), 1))) == made
    assert with_steering(made, noise).steer in STRENGTHS


# -- another order, single sentences ------------------------------------------------------------------------------


def test_what_makes_the_question_likelier_comes_first(model: LanguageModel) -> None:
    question = "zq zq zq zq zq zq"
    found = [passage(1, "A calm day."), passage(2, "zq zq zq zq zq zq zq zq"), passage(3, "Tea and rain.")]
    asked = model.encode_text(question, [(0, len(question))], "q", 99)
    nats = []
    for each in found:  # by the plain definition: one document after another
        ids = torch.cat([model.context_ids(each.text, 99)[:-1], model.context_ids("\n", 4)])
        model.activate(GLOBAL)
        placed = model.prefix(model.with_context(asked, ids))
        nats.append(float(model.document_nats([placed])[0].double().sum()))
    order = [found[i] for i in np.argsort(nats)]
    assert by_likelihood(model, question, found, 3) == order and by_likelihood(model, question, found, 2) == order[:2]
    assert max(nats) - min(nats) > 0.01, "an order of equals says nothing"
    assert by_likelihood(model, "", found, 2) == found[:2], "nothing asked, nothing changed"


def test_a_summary_is_of_the_task_and_says_nothing_twice() -> None:
    found = [
        passage(1, "The ferry leaves at dawn on Tuesdays. My sister likes tea a lot. It rained all week long."),
        passage(2, "The ferry leaves at dawn on Tuesdays. The bees are fine this year, thanks."),
        passage(3, "Yes."),
    ]
    chosen = extracts(found, "When does the ferry leave at dawn?", 3)
    assert chosen[0].text == "The ferry leaves at dawn on Tuesdays."
    assert [p.text for p in chosen].count(chosen[0].text) == 1 and chosen[0].document == 1
    assert extracts([], "x", 3) == [] and extracts([found[2]], "x", 3) == []


def test_a_query_by_profile_takes_topics_that_go_with_the_question(vault: Vault) -> None:
    index = PersonalIndex(vault)
    index.topics = ("lamp", "zeppelin", "boat")
    built = index.query("the boat", BY_PROFILE).split()
    assert "zeppelin" not in built and built[:2] == ["the", "boat"] and built.count("boat") == 1


# -- refinement ---------------------------------------------------------------------------------------------------


def test_refinement_keeps_to_its_budget_and_never_reads_what_choices_are_scored_on(
    vault: Vault, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = PersonalIndex(vault, HashedEncoder(64), held_back=False)
    seen: list[str] = []
    encode = model.encode_text

    def watched(text: str, ranges: Any, name: str, most: int) -> Any:
        seen.append(name)
        return encode(text, ranges, name, most)

    monkeypatch.setattr(model, "encode_text", watched)
    found = refine(vault, model, index, NOBODY)
    assert found is not None and found.readings <= BUDGET and found.trials >= 1
    held = {f"v{row[0]}" for row in vault.select("SELECT id FROM document WHERE held_back")}
    assert seen and not held & set(seen)
    assert found.nats <= found.plain_nats and len(found.misaligned) == 3
    small = refine(vault, model, index, NOBODY, budget=9)
    assert small is not None and small.trials == 0 and small.readings <= 9


def test_what_the_words_took_from_a_text_is_forgotten_with_it(vault: Vault) -> None:
    number = vault.one("SELECT id FROM document")
    with vault.change() as rows:
        rows.execute("INSERT INTO profile VALUES (?, 'advice: The writer also writes about: zeppelins.')", (number,))
    vault.set_setting(ADVICE, templates()["advice"]["attempts"][0])
    assert "zeppelins" in kept_advice(vault)
    forget(vault, Wanted(documents=(number,)))
    assert kept_advice(vault) == templates()["advice"]["attempts"][0]


def test_where_nothing_is_shown_to_be_better_memories_are_trusted_unless_the_model_alone_does_better() -> None:
    base, few = np.full(20, 50.0), np.array([9, 9])
    noise = base + np.random.default_rng(1).normal(0, 1, 20)
    names, tokens = ["global", "trusted", "own+trusted", "own"], np.full(20, 10)
    for starts, wanted in (("own+trusted", "own+trusted"), ("trusted", "trusted")):
        some = [n for n in names if n in ("global", "own", starts)]
        rows = {"global": base, "own": noise, starts: base - 1.0}
        assert choose(some, np.vstack([rows[n] for n in some]), tokens).arm == wanted
    assert choose(names[:2], np.vstack([base, base + 0.5]), tokens).arm == "global", "the model alone loses less"
    assert choose(names[:3], np.array([[50.0, 50], [1, 1], [2, 2]]), few).arm == "own+trusted"
    assert choose(names, np.vstack([base, base - 1, base - 1, base - 9]), tokens).arm == "own"


def test_every_arm_is_scored_and_the_dial_too(vault: Vault, model: LanguageModel) -> None:
    index = PersonalIndex(vault, HashedEncoder(64), held_back=False)
    about = About({"role": "nurse"}, ("boat",), advice="Notes of one writer:")
    arms = [arm for arm in ARMS if not arm.own]
    names, nats, tokens = score_arms(vault, model, index, arms, about)
    assert names == [arm.name for arm in arms] and np.isfinite(nats).all()
    by_name = dict(zip(names, nats, strict=True))
    assert all((by_name["hybrid"] != by_name[n]).any() for n in ("rerank", "summary", "refined", "profile", "global"))
    summary = next(arm for arm in arms if arm.prompt == SUMMARY)
    dial = score_steering(vault, model, index, summary, about)
    assert dial.shape == (len(STRENGTHS), len(tokens))
    np.testing.assert_allclose(dial[STRENGTHS.index(0.0)], by_name["summary"], rtol=1e-3)
    assert json.loads(json.dumps(with_steering(Choice("summary", {}, 9, 0, 0, False, ""), dial).to_json()))


def test_with_little_text_every_document_counts_and_none_is_scored_by_what_learned_it(
    vault: Vault, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [row[0] for row in vault.select("SELECT id FROM document WHERE NOT held_back ORDER BY id")]
    held = [row[0] for row in vault.select("SELECT id FROM document WHERE held_back ORDER BY id")]
    forget(vault, Wanted(documents=tuple(numbers[6:] + held[1:])))
    trained: list[set[str]] = []
    scored: list[tuple[str, int]] = []
    real = own_training.train_own

    def watched(model: LanguageModel, rows: Any, *rest: Any) -> Any:
        trained.append({row.encoded.document for row in rows})
        return real(model, rows, *rest)

    monkeypatch.setattr(crossfit, "train_own", watched)
    told = Assistant(vault, model, HashedEncoder(64))
    activate = Folds.activate

    def seen(self: Folds, document: int) -> None:
        activate(self, document)
        scored.append((f"v{document}", self._loaded))

    monkeypatch.setattr(Folds, "activate", seen)
    train(vault, model)
    made = told.personalize()
    assert made.documents == 7 and {"own", "own+hybrid"} <= set(made.bits)
    assert len(trained) == 2 and not trained[0] & trained[1] and len(trained[0] | trained[1]) == 6
    assert len({name for name, _ in scored}) == 7
    assert all(name not in trained[fold] for name, fold in scored)


def test_a_document_is_never_shown_for_itself(vault: Vault) -> None:
    index = PersonalIndex(vault, HashedEncoder(64), held_back=False)
    *_, kept = documents(vault, "own", held_back=False)  # the newest: all others are earlier
    found = earlier(index, kept.as_document().text, kept, METHODS, 30)
    assert found and kept.number not in {passage.document for passage in found}
