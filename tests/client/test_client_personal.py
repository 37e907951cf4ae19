"""Own adapters of a vault: three kinds that learn, gone with what they learned from; chance chooses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from client import personal
from client.documents import Document, Span
from client.encoder import HashedEncoder
from client.forget import RETRAIN, Wanted, forget
from client.limits import Limits
from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel
from client.personal import (
    KINDS,
    active,
    put_into,
    scored_part,
    serve,
    train,
    training_slice,
)
from client.personalize import ARMS, BASELINE, arms_for, choose, score_arms
from client.prompt import NOBODY, About
from client.retrieve import PersonalIndex
from client.vault import Vault
from privacy.adapter import Basis
from privacy.errors import ConfideError, ModelError
from tests.vault_of_notes import vault_of_notes

NewModel = Callable[..., LanguageModel]
WORDS = ["boat", "lamp", "train", "green", "sister", "bees", "books", "rain", "cards", "field", "door", "kitchen"]


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    pairs = [(WORDS[i % 12], WORDS[(i * 5 + 1) % 12]) for i in range(40)]
    texts = [
        f"Note {i}: zyx the {first} and the {second} zyx again, zyx the {first}."
        for i, (first, second) in enumerate(pairs)
    ]
    with vault_of_notes(tmp_path, monkeypatch, texts) as made:
        yield made


def mean_nats(model: LanguageModel, vault: Vault) -> float:
    """Return the mean nats of the held-back notes under what is active."""
    rows = [model.prefix(encoded) for _, encoded in training_slice(vault, model, Limits())]
    nats = torch.cat(model.document_nats(rows))
    return float(nats.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_and_comes_back_out_of_the_vault(vault: Vault, new_model: NewModel, kind: str) -> None:
    model = new_model(dtype=torch.float32)
    before = mean_nats(model, vault)
    made = train(vault, model, kind)
    model.activate(GLOBAL, OWN)
    learned = mean_nats(model, vault)
    assert learned < 0.98 * before, "training must show"
    model.activate(GLOBAL)
    assert mean_nats(model, vault) == pytest.approx(before, rel=1e-5), "switched off it is the base model"
    fresh = new_model(dtype=torch.float32)
    put_into(vault, fresh, made.number)
    assert mean_nats(fresh, vault) == pytest.approx(learned, rel=1e-5)
    assert active(vault) == (made.number, kind, made.release) and made.privacy is None
    assert made.release.startswith("base ")


def test_kinds_follow_each_other_in_one_model(vault: Vault, new_model: NewModel) -> None:
    model = new_model(dtype=torch.float32)
    before = mean_nats(model, vault)
    for kind in (*KINDS, *reversed(KINDS)):
        train(vault, model, kind, limits=Limits(documents=4))
    model.drop_own()
    model.activate(GLOBAL)
    assert mean_nats(model, vault) == pytest.approx(before, rel=1e-5)
    assert vault.one("SELECT count(*) FROM adapter WHERE active") == 1


def test_beside_shared_cores_all_but_ia3_stand(vault: Vault, new_model: NewModel, tiny_basis: Basis) -> None:
    model = new_model(dtype=torch.float32)
    model.attach(tiny_basis)
    for kind in ("lora", "prompt"):
        train(vault, model, kind, limits=Limits(documents=8))
    with pytest.raises(ModelError, match="IA3 cannot stand beside"):
        train(vault, model, "ia3")


def test_nothing_held_back_is_trained_on(vault: Vault, new_model: NewModel) -> None:
    made = train(vault, new_model(dtype=torch.float32), limits=Limits(documents=1000))
    learned = {
        row[0] for row in vault.select("SELECT document FROM adapter_document WHERE adapter = ?", (made.number,))
    }
    held = {row[0] for row in vault.select("SELECT id FROM document WHERE held_back")}
    assert held and not learned & held and len(learned) + len(held) == 40


def test_an_adapter_goes_with_what_it_learned_from_and_no_other(vault: Vault, new_model: NewModel) -> None:
    model = new_model(dtype=torch.float32)
    made = train(vault, model)
    held = vault.one("SELECT id FROM document WHERE held_back")
    forget(vault, Wanted(documents=(held,)))
    assert active(vault) is not None and vault.setting(RETRAIN) == ""
    learned = vault.one("SELECT document FROM adapter_document WHERE adapter = ?", (made.number,))
    assert forget(vault, Wanted(documents=(learned,))).adapters == 1
    assert active(vault) is None and vault.setting(RETRAIN) == "1"
    again = train(vault, model)
    assert again.documents == made.documents - 1 and vault.setting(RETRAIN) == ""


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_record_level_privacy_is_asked_for_and_told(vault: Vault, new_model: NewModel, kind: str) -> None:
    made = train(vault, new_model(dtype=torch.float32), kind, record_epsilon=8.0)
    assert made.privacy is not None and 0 < made.privacy.epsilon <= 8.0 and made.privacy.noise_multiplier > 0.3


def test_under_privacy_only_what_a_step_drew_goes_through_the_model(
    vault: Vault, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model(dtype=torch.float32)
    calls: list[str] = []
    prefix = model.prefix

    def counted(encoded: Encoded) -> Cached:
        calls.append(encoded.document)
        return prefix(encoded)

    monkeypatch.setattr(model, "prefix", counted)
    monkeypatch.setattr(personal, "RECORD_STEPS", 2)
    made = train(vault, model, record_epsilon=8.0)
    assert made.documents >= 30 and 0 < len(calls) < 25, "two steps do not read all of a large vault"


def test_what_cannot_be_trained_is_refused_in_one_line(vault: Vault, new_model: NewModel) -> None:
    model = new_model(dtype=torch.float32)
    for kind, epsilon, limits, told in (
        ("full", None, Limits(), "no own adapter of kind full"),
        ("ia3", 8.0, Limits(), "no per-document gradients"),
        ("lora", None, Limits(documents=2), "needs 3 documents of yours; there are 2"),
        ("lora", None, Limits(first_hour=3, last_hour=3), "from 3 to 3"),
    ):
        with pytest.raises(ConfideError, match=told):
            train(vault, model, kind, epsilon, limits)
    assert active(vault) is None


def test_hours_run_over_midnight() -> None:
    night = Limits(first_hour=22, last_hour=6)
    assert [night.allow(datetime(2025, 1, 1, hour, tzinfo=UTC)) for hour in (21, 22, 0, 5, 6, 12)] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


def test_the_clock_ends_a_training(vault: Vault, new_model: NewModel) -> None:
    made = train(vault, new_model(dtype=torch.float32), limits=Limits(seconds=0.0))
    assert made.seconds < 60


def test_adapters_can_be_switched(vault: Vault, new_model: NewModel) -> None:
    model = new_model(dtype=torch.float32)
    one, two = (train(vault, model, limits=Limits(documents=4)).number for _ in range(2))
    assert active(vault) is not None and active(vault)[0] == two  # type: ignore[index]
    serve(vault, one)
    assert active(vault)[0] == one  # type: ignore[index]
    serve(vault, None)
    assert active(vault) is None


# -- choosing -----------------------------------------------------------------------------------------------------


def test_the_question_is_never_scored() -> None:
    reply = Document("d", (Span("Tea?\n", own=False), Span("Yes, please.", own=True)), "test", 0)
    assert scored_part(reply) == ("Tea?", ((5, 17),))
    note = Document("d", (Span("one two three four five six seven eight", own=True),), "test", 0)
    question, ranges = scored_part(note)
    assert question == "one two" and ranges == ((7, 39),)
    assert scored_part(Document("d", (Span("theirs", own=False),), "test", 0))[1] == ()


def test_the_ladder_grows_with_what_is_known() -> None:
    assert arms_for(0, True, NOBODY) == (BASELINE,)
    assert {arm.name for arm in arms_for(1, True, NOBODY)} == {
        "global", "bm25", "dense", "hybrid", "trusted", "topics", "rerank",
    }  # fmt: skip
    assert "own" in {arm.name for arm in arms_for(9, True, NOBODY)}
    assert "own" not in {arm.name for arm in arms_for(9, False, NOBODY)}
    assert arms_for(9, True, About({"role": "nurse"}, ("boats",), advice="By one writer:")) == ARMS


def test_chance_is_not_chosen_and_a_real_gain_is() -> None:
    rng = np.random.default_rng(5)
    tokens = np.full(40, 20)
    base = rng.normal(60, 8, 40)
    chosen = 0
    for _ in range(200):
        noise = base + rng.normal(0, 3, (3, 40))
        chosen += choose(["global", "a", "b", "c"], np.vstack([base, noise]), tokens).arm != "global"
    assert chosen <= 40, "three arms at 5 % each, with room for chance"
    better = choose(["global", "own"], np.vstack([base, base * 0.95 + rng.normal(0, 0.5, 40)]), tokens)
    assert better.arm == "own" and better.gain == pytest.approx(0.05, abs=0.02) and not better.false_choice
    assert better.words.startswith("Uses an adapter trained on your texts: ")


def test_a_false_choice_is_said() -> None:
    half = np.arange(20) % 2 == 0
    base = np.full(20, 50.0)
    result = choose(["global", "own"], np.vstack([base, np.where(half, 45.0, 60.0)]), np.full(20, 10))
    assert result.arm == "own" and result.false_choice and "false choice" in result.words


def test_with_too_few_texts_the_model_stays_as_it_is() -> None:
    result = choose(["global", "own"], np.array([[50.0, 50, 50], [1, 1, 1]]), np.array([9, 9, 9]))
    assert result.arm == "global" and "are needed" in result.words


def test_all_arms_are_scored_on_the_same_tokens_and_own_wins_here(vault: Vault, new_model: NewModel) -> None:
    model = new_model(dtype=torch.float32)
    train(vault, model)
    index = PersonalIndex(vault, HashedEncoder(64), held_back=False)
    names, nats, tokens = score_arms(vault, model, index, arms_for(30, True, NOBODY), NOBODY)
    held = int(vault.one("SELECT count(*) FROM document WHERE held_back"))
    assert nats.shape == (len(names), held) and (tokens > 0).all() and np.isfinite(nats).all()
    assert nats[names.index("own")].sum() < nats[names.index("global")].sum()
    with pytest.raises(AssertionError, match="would find it"):
        score_arms(vault, model, PersonalIndex(vault, held_back=True), ARMS, NOBODY)
