"""The search measures what a federation would do: the device's updates, the claim's noise, slices that stay apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.basis import BasisSettings, whitened_basis
from client.documents import Document, Person, Span
from client.model import Cached, LanguageModel
from client.train import CoreTraining, core_update
from privacy.accounting import epsilon_zcdp
from privacy.errors import ConfigError, DataError
from server.optimizer import FedAvg
from simulation.search.campaign import Folder, clipped_mean, report, run_campaign
from simulation.search.local import LocalRule, local_updates, unit_norms, with_row_cores
from simulation.search.payers import by_thirds, features, table
from simulation.search.plot import svg
from simulation.search.pooled import PooledTraining, core_parameters, lora_parameters, train_pooled
from simulation.search.recipe import Noise, Recipe, recipe_of
from simulation.search.replay import Choice, noisy_mean, recorded_updates, retried
from simulation.search.scored import bootstrap, person_nats, relative_gain
from simulation.search.slices import cached, score_documents, slices_of, train_parts

SENTENCES = (
    "The harbour froze over twice that winter.",
    "He mends clocks.",
    "We walked to the mill and back before the rain.",
    "Nobody asked where the ladder had gone.",
    "She counts sheep for the county.",
)


def person(number: int) -> Person:
    documents = tuple(
        Document(f"p{number}.{i}", (Span(SENTENCES[(number + i) % 5], own=True),), "test" if i == 2 else "history", i)
        for i in range(3)
    )
    return Person(f"p{number}", documents)


@pytest.fixture
def model(tiny_model_dir: Path) -> LanguageModel:
    found = LanguageModel.load(tiny_model_dir, 3)
    texts = [found.encode_text(s, [(0, len(s))], f"s{i}", 64) for i, s in enumerate(SENTENCES)]
    found.attach(whitened_basis(found, texts, BasisSettings(rank=4)))
    return found


@pytest.fixture
def parts(model: LanguageModel) -> list[list[list[Cached]]]:
    return train_parts(model, [person(i) for i in range(6)], 1, 64)


@pytest.fixture
def people(parts: list[list[list[Cached]]]) -> list[list[Cached]]:
    return [own[0] for own in parts]


class CutOff(Folder):
    """A folder whose run ends before its second round counts."""

    def keep(self, row: dict[str, Any], updates: np.ndarray, state: dict[str, np.ndarray]) -> None:
        if row["round"] == 1:
            raise KeyboardInterrupt
        super().keep(row, updates, state)


def recipe(**changes: object) -> Recipe:
    values = {"name": "r", "basis": "b", "people": 6, "cohort": 4, "rounds": 3, "local": {"steps": 1, "step": 0.05}}
    return recipe_of({**values, "clip": 0.05, "server_length": 0.05, **changes})


def test_updates_side_by_side_are_those_of_the_device(model: LanguageModel, people: list[list[Cached]]) -> None:
    assert model.layout is not None
    rng = np.random.default_rng(0)
    start = 0.02 * rng.standard_normal(model.layout.dim)
    settings = CoreTraining(steps=2, step=0.05, sampling_rate=1.0, document_clip=1e6)
    cores = model.layout.unflatten(start)
    wanted = [core_update(model, own, cores, settings, torch.Generator().manual_seed(1)) for own in people]
    found = local_updates(model, with_row_cores(model), people, start, LocalRule(2, 0.05))
    np.testing.assert_allclose(found, np.array(wanted), atol=2e-4)
    assert np.abs(np.array(wanted)).max() > 2e-3, "the tolerance must be small against what is compared"


def test_a_campaign_cut_off_goes_on_to_the_same_end(
    model: LanguageModel, parts: list[list[list[Cached]]], people: list[list[Cached]], tmp_path: Path
) -> None:
    whole, cut = Folder(tmp_path / "whole"), Folder(tmp_path / "cut")
    for folder in (whole, cut):
        folder.path.mkdir()
    noisy = {"noise": {"epsilon": 8.0, "people": 200}, "server": "adam", "server_length": 0.05, "momentum": 0.5}
    wanted = run_campaign(recipe(**noisy), whole, model, parts, people[:2])
    with pytest.raises(KeyboardInterrupt):
        run_campaign(recipe(**noisy), CutOff(cut.path), model, parts, people[:2])
    assert len(cut.rows()) == 1
    with np.load(whole.path / "state.npz") as state:
        np.testing.assert_array_equal(state["weights"], wanted)
    again = run_campaign(recipe(**noisy), cut, model, parts, people[:2])
    np.testing.assert_array_equal(again, wanted)
    assert len(cut.rows()) == 3 and recorded_updates(cut.path, 2).shape == (4, len(wanted))
    with pytest.raises(DataError):
        recorded_updates(cut.path, 3)


def test_learning_lowers_the_loss_of_those_who_train(
    model: LanguageModel, parts: list[list[list[Cached]]], people: list[list[Cached]], tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    weights = run_campaign(recipe(rounds=4, cohort=6), folder, model, parts, people)
    gains = [row["gain"] for row in folder.rows()]
    assert gains[-1] > gains[0] > 0
    found = report(model, weights, people)
    assert found["gain"] == pytest.approx(gains[-1]) and found["low"] <= found["gain"] <= found["high"]


def test_an_adaptive_clip_comes_down_to_the_updates_of_raw_gradients(
    model: LanguageModel, parts: list[list[list[Cached]]], people: list[list[Cached]], tmp_path: Path
) -> None:
    raw = {"steps": 1, "step": 0.05, "normalised": False}
    changes = {"local": raw, "clip": 100.0, "adaptive": {"quantile": 0.5, "rate": 1.0}, "rounds": 6}
    run_campaign(recipe(**changes), Folder(tmp_path), model, parts, people[:1])
    rows = Folder(tmp_path).rows()
    assert [row["clip"] for row in rows] == pytest.approx([100 * np.exp(-n / 2) for n in range(6)])
    norms = np.linalg.norm(recorded_updates(tmp_path, 0), axis=1)
    assert norms.std() > 1e-4, "raw gradients have lengths of their own"


def test_a_round_can_be_tried_again_without_training(
    model: LanguageModel, parts: list[list[list[Cached]]], people: list[list[Cached]], tmp_path: Path
) -> None:
    folder = Folder(tmp_path)
    weights = run_campaign(recipe(rounds=1, cohort=6), folder, model, parts, people[:1])
    zero = np.zeros(len(weights))
    again, _ = retried(recorded_updates(tmp_path, 0), Choice(0.05), FedAvg(0.05), zero, zero)
    np.testing.assert_allclose(again, weights, atol=1e-4)  # updates are kept in float16


def test_noise_has_the_deviation_it_claims_and_is_one_seeds() -> None:
    updates = np.zeros((3, 40_000))
    found = noisy_mean(updates, Choice(1.0, 0.01, 4))
    assert found.std() == pytest.approx(0.01, rel=0.02), "40,000 draws: five deviations are 1.8 percent"
    np.testing.assert_array_equal(found, noisy_mean(updates, Choice(1.0, 0.01, 4)))


def test_answers_are_bounded_by_one_and_short_ones_are_not_stretched() -> None:
    updates = np.array([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(clipped_mean(updates, 1.0), [1 / 3, 0.5 / 3])
    np.testing.assert_allclose(unit_norms(updates), [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


@pytest.mark.parametrize("epsilon", [1.0, 2.0, 8.0])
def test_the_noise_of_a_campaign_spends_its_epsilon_and_no_more(epsilon: float) -> None:
    z = Noise(epsilon).multiplier(10)
    assert epsilon_zcdp(10 / (2 * z**2), 1e-6) <= epsilon * (1 + 1e-6)
    assert epsilon_zcdp(10 / (2 * (0.99 * z) ** 2), 1e-6) > epsilon
    assert Noise(epsilon).of_mean(10) == pytest.approx(z / (1700 * 964) ** 0.5)


def test_fewer_participations_dropouts_and_small_cohorts_cost_what_they_should() -> None:
    twice = Noise(8.0, participations=2, dropout=0.1)
    assert twice.invited(8) == 425 and twice.multiplier(8) == pytest.approx(Noise(8.0).multiplier(2))
    # floor(2 425 / 3) + 1 - 42 = 242 honest survivors of 382.5 who answer
    assert twice.of_mean(8) == pytest.approx(twice.multiplier(8) / (382.5 * 242) ** 0.5)
    small = Noise(8.0, participations=2, dropout=0.1, group=128)
    assert small.of_mean(8) / twice.of_mean(8) == pytest.approx((242 / 74) ** 0.5)


def test_slices_never_overlap_and_do_not_depend_on_the_files_order() -> None:
    pool, others = [person(i) for i in range(8)], [person(i) for i in range(20, 29)]
    first, again = slices_of(pool, others, 4), slices_of(pool[::-1], others[::-1], 4)
    assert first == again
    names = [{p.user for p in part} for part in (first.train, first.select, first.report)]
    assert [len(part) for part in names] == [8, 5, 4] and not names[1] & names[2]


def test_prefixes_are_kept_and_found_again(model: LanguageModel, tmp_path: Path) -> None:
    file, documents = tmp_path / "kept.safetensors", score_documents([person(0), person(1)])
    first = cached(model, documents, 64, file)
    again = cached(model, documents, 64, file)
    assert all(torch.equal(a[0].hidden, b[0].hidden) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["core", "lora"])
def test_pooled_training_learns_what_it_reads(model: LanguageModel, people: list[list[Cached]], kind: str) -> None:
    before, _ = person_nats(model, people)
    own = ("q_proj", "v_proj")
    parameters = core_parameters(model) if kind == "core" else lora_parameters(model, 4, own, 0)
    settings = PooledTraining(tokens=2500, batch=2, learning_rate=0.01)
    read = list(train_pooled(model, parameters, [own[0] for own in people], settings))
    after, _ = person_nats(model, people)
    assert read[-1] >= 2500 and relative_gain(before, after) > 0
    low, high = bootstrap(before, after)
    assert low <= relative_gain(before, after) <= high


def test_with_participations_everybody_is_invited_as_often_as_is_said() -> None:
    run = recipe(people=40, cohort=10, rounds=8, participations=2, dropout=0.1)
    asked = [run.asked(number) for number in range(8)]
    assert [part for _, part in asked] == [0] * 4 + [1] * 4
    assert {len(who) for who, _ in asked} == {9}
    for half in (asked[:4], asked[4:]):
        together = np.concatenate([who for who, _ in half])
        assert len(set(together.tolist())) == len(together) == 36
    assert [w.tolist() for w, _ in asked] == [run.asked(number)[0].tolist() for number in range(8)]
    whole = recipe(people=40, cohort=10, rounds=8, participations=2)
    assert sorted(np.concatenate([whole.asked(n)[0] for n in range(4)]).tolist()) == list(range(40))


def test_gain_by_thirds_is_that_of_the_people_in_them() -> None:
    base, feature = np.full(9, 100.0), np.array([5.0, 1, 9, 2, 8, 3, 7, 4, 6])
    after = base * (1 - feature / 100)
    rows = by_thirds(feature, base, after)
    assert [round(gain, 4) for gain, _, _ in rows] == [0.02, 0.05, 0.08]
    assert all(low <= gain <= high for gain, low, high in rows)
    someone = Person("p", (Document("a", (Span("One two. Three!", own=True),), "history", 0),))
    found = features([someone])
    assert found["words written"].tolist() == [3] and found["words a sentence"].tolist() == [1.5]
    with pytest.raises(DataError, match="old-run"):
        table({"old-run": {"by_person": [0.1]}}, [someone])


def test_a_recipe_with_an_unknown_key_or_too_large_a_cohort_is_refused() -> None:
    with pytest.raises(ConfigError):
        recipe(lengthh=1)
    with pytest.raises(ConfigError):
        recipe(cohort=7)


def test_a_plot_holds_every_curve() -> None:
    drawn = svg({"a < b": [0.0, 1.0, 2.0], "c": [0.0, -0.5]}, "title")
    assert drawn.count("<polyline") == 2 and "a &lt; b" in drawn
