"""Baselines: which average is exact, what stays with a person, weights put back bit for bit, all in one card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.model import LanguageModel
from privacy.errors import ConfigError
from simulation.baselines.factors import METHODS, NAMES, Factors, Shared, fresh, mean_product, named, shapes_of
from simulation.baselines.whole import FULL_LAYERS, put_back, top_matrices, tune
from simulation.progress import Progress
from simulation.scorecard.arms import BASELINES
from simulation.scorecard.evaluate import questions, scorecard
from simulation.scorecard.lent import CardSettings

SHAPES = {"q": (6, 5), "v": (4, 7)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def people(start: Factors, number: int = 4, frozen: bool = False) -> list[Factors]:
    found = []
    for i in range(number):
        r = rng(i + 1)
        found.append(
            {
                m: (a if frozen else a + r.normal(size=a.shape), b + r.normal(size=b.shape))
                for m, (a, b) in start.items()
            }
        )
    return found


def added(shared: Shared, module: str) -> np.ndarray:
    a, b = shared.factors[module]
    return b @ a + shared.dense.get(module, np.zeros((b.shape[0], a.shape[1])))


@pytest.mark.parametrize(("name", "exact"), [("fedit", False), ("ffa", True), ("flora", True), ("fedex", True)])
def test_which_methods_average_exactly(name: str, exact: bool) -> None:
    """The mean of all B_i A_i is in the weights to rounding, or it is not; also where weights were added before."""
    method = METHODS[name]
    start = Shared(fresh(SHAPES, 2, rng()), {m: rng(9).normal(size=shape) for m, shape in SHAPES.items()})
    some = people(start.factors, frozen=method.freezes_a)
    found = method.combine(start, some, rng(3))
    for module in SHAPES:
        wanted = mean_product(some, module) + start.dense[module]
        error = float(np.abs(added(found, module) - wanted).max() / np.abs(wanted).max())
        assert (error < 1e-12) if exact else (error > 0.1)


def test_flora_begins_anew_and_fedsa_leaves_b_alone() -> None:
    start = Shared(fresh(SHAPES, 2, rng()))
    some = people(start.factors)
    again = METHODS["flora"].combine(start, some, rng(3))
    assert all((b == 0).all() and not np.array_equal(a, start.factors[m][0]) for m, (a, b) in again.factors.items())
    kept = METHODS["fedsa"].combine(start, some, rng(3))
    for module, (a, b) in kept.factors.items():
        assert np.allclose(a, np.mean([p[module][0] for p in some], axis=0)) and (b == 0).all()
    assert shapes_of(start.factors) == SHAPES


def test_names_are_known() -> None:
    assert set(BASELINES) == set(NAMES)
    assert named(["oppu", "fedit"]) == ("fedit", "oppu")
    with pytest.raises(ConfigError, match="unknown baseline fedsomething"):
        named(["fedsomething"])


def test_weights_are_fully_tuned_and_put_back(tiny_model_dir: Path) -> None:
    """Full fine-tuning lowers the loss on what it learns, in the top layers alone; after it nothing is left."""
    model = LanguageModel.load(tiny_model_dir, top_layers=4)
    text = "the heron stands at the mill and waits " * 3
    documents = [model.prefix(model.encode_text(text, [(0, len(text))], "d", 96))] * 6
    before = {name: p.clone() for name, p in model.net.named_parameters()}

    def loss() -> float:
        return float(model.document_nats(documents[:1])[0].sum())

    first = loss()
    weights = top_matrices(model, FULL_LAYERS)
    assert len(weights) == 7 * FULL_LAYERS, "every matrix of two layers: four of attention, three of the network"
    with put_back(weights):
        tune(model, weights, documents, torch.Generator().manual_seed(0), rate=2e-3)
        assert loss() < first - 1
        changed = {name for name, p in model.net.named_parameters() if not torch.equal(p, before[name])}
        assert len(changed) == len(weights) and all(".4." in name or ".5." in name for name in changed)
    assert loss() == first and all(torch.equal(p, before[name]) for name, p in model.net.named_parameters())


@pytest.mark.slow
def test_all_baselines_stand_in_one_card(run: Any, strangers: Path, hosts_here: Any, tmp_path: Path) -> None:
    """Every method scores the card's own tokens; after all of them the base's weights are what they were."""
    folder = tmp_path / "run"
    run(folder, "rounds=1", "compare_without_noise=false")
    settings = CardSettings(
        own_tokens=40,
        test_documents=1,
        document_tokens=48,
        tuning_documents=0,
        baseline_people=2,
        baseline_rounds=2,
        encoder="hashed",
    )
    kept: list[Any] = []

    def open_hosts(given: Any) -> Any:
        kept.append(hosts_here(given))
        kept.append({n: p.clone() for n, p in kept[0].works[0].model.net.named_parameters() if "base_layer" in n})
        return kept[0]

    arms = ["base", "global", *NAMES]
    asked = questions([folder], [str(strangers)])
    report = scorecard(asked, arms, settings, Progress(quiet=True), people=2, open_hosts=open_hosts)
    rows = {row["arm"]: row for row in report["table"]["rows"]}
    assert set(rows) == set(arms) and all(row["people"] == 2 for row in rows.values())
    values = [tuple(row["values"].values()) for name, row in rows.items() if name in NAMES]
    assert len(set(values)) == len(NAMES), "each method does something of its own"
    pooled = [r for _, method, arguments, r in kept[0].log if method == "part" and arguments[0] == "pooled"]
    assert len(pooled) == 1 and all((b != 0).any() for _, b in pooled[0].values()), "trained once, on all text together"
    weights = dict(kept[0].works[0].model.net.named_parameters())
    assert kept[1] and all(bool((weights[name] == before).all()) for name, before in kept[1].items())
