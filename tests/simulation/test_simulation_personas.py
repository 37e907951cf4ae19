"""A whole campaign of several queries on a tiny model: clustering, training, words, figures, one budget, one audit."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.compose import soup
from privacy.audit.replay import audit_run
from privacy.errors import ConfigError
from privacy.ledger import public_key_of, read_ledger
from privacy.objective import LOSS_UNIT, METRICS
from privacy.policy import open_policy
from privacy.query import Query
from privacy.release import verify_release
from server.campaign import replayed
from server.home import ServerHome
from server.state import first_state
from simulation.public_tables import tables_of
from tests.simulation.conftest import write_people
from tests.simulation.test_simulation_engine import same_bits, tensors_of

SEVERAL = (
    "personas=2",
    "queries.encoder=hashed",
    "queries.clustering=2",
    "queries.words=12",
    "queries.measure=true",
    "queries.retriever_rounds=1",
    "compare_without_noise=false",
)
ORDER = [
    *[("cluster.persona", "centroid-sums", "nearest")] * 2,
    ("train.global", "next-token", "least-loss"),
    ("train.persona", "next-token", "nearest"),
    ("train.retriever", "retriever-distillation", "least-loss"),
    ("describe.persona", "word-counts", "least-loss"),
    ("measure.adapters", "evaluation-metrics", "least-loss"),
]


@pytest.fixture
def whole(run: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    return tmp_path / "run", run(tmp_path / "run", *SEVERAL, "privacy.transport=masked")


def queries(folder: Path) -> list[Query]:
    return [event.query for event in read_ledger(folder / "ledger" / "federation.jsonl").account.charged()]


def test_several_queries_share_one_budget_and_one_audit(whole: tuple[Path, dict[str, Any]], run: Any) -> None:
    folder, report = whole
    asked = queries(folder)
    assert [(q.purpose, q.objective, q.choice) for q in asked] == ORDER
    assert {q.clip_norm for q in asked} == {Fraction("0.05")} and {q.transport for q in asked} == {"masked"}
    assert report["privacy"]["rho_exact"] == "7/2" and report["privacy"]["participations"] == 7
    for ledger in sorted((folder / "ledger" / "devices").glob("*.jsonl")):
        assert read_ledger(ledger).account.spent_rho() == Fraction(7, 2)
    root = public_key_of(folder / "ledger" / "federation.jsonl")
    policy = open_policy((folder / "ledger" / "policy.json").read_bytes(), root)
    assert policy.budget_rho == Fraction(7, 2) and policy.max_participations == 7
    assert policy.objectives == (
        "centroid-sums",
        "evaluation-metrics",
        "next-token",
        "retriever-distillation",
        "word-counts",
    )
    tables = tables_of(run.config(*SEVERAL))
    assert tables is not None and policy.public_sha256 == tables.sha256
    assert audit_run(folder).holds


def test_the_report_tells_of_personas_what_the_sums_gave(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, report = whole
    state = replayed(ServerHome.load(folder).plan, folder / "checkpoints" / "rounds")
    personas = report["personas"]
    np.testing.assert_allclose([row["noisy_count"] for row in personas["rows"]], state.persona_counts)
    assert personas["count_deviation"] == state.count_deviation > 0
    assert len(report["measured"]) == 2 and report["measured"][0]["name"] == "persona-0"
    assert [row["objective"] for row in report["rounds"]] == [objective for _, objective, _ in ORDER]
    assert all(
        row["rho"] == 0.5 and (row["alpha"] is not None) == (row["objective"] == "next-token")
        for row in report["rounds"]
    )
    assert 'id="measured"' in (folder / "report.html").read_text()
    assert json.loads((folder / "report.json").read_text())["measured"] == report["measured"]


def test_the_release_holds_what_was_learned_besides_adapters(run: Any, tmp_path: Path) -> None:
    report = run(tmp_path / "run", *SEVERAL, "privacy.transport=off")
    release = verify_release(tmp_path / "run" / "release", public_key_of(tmp_path / "run/ledger/federation.jsonl"))
    state = replayed(ServerHome.load(tmp_path / "run").plan, tmp_path / "run" / "checkpoints" / "rounds")
    tables = tables_of(run.config(*SEVERAL))
    assert tables is not None and release.learned.public_sha256 == tables.sha256
    np.testing.assert_allclose(release.learned.tables["directions"], tables.directions(16), atol=1e-6)
    np.testing.assert_allclose(release.learned.tables["retriever"].ravel(), state.retriever, atol=1e-6)
    assert state.retriever.any()
    assert set(release.learned.personas) == {name for name in release.adapters if name.startswith("persona-")}
    assert len(release.learned.tables.get("centroids", ())) == len(release.learned.personas)
    assert report["retriever"]["questions"] > 0 and 0 <= report["retriever"]["ndcg_frozen"] <= 1
    assert 'id="retriever"' in (tmp_path / "run" / "report.html").read_text()


def test_without_noise_what_is_read_back_is_the_truth(run: Any, tmp_path: Path) -> None:
    """Transport off: counts are whole, the count of each word is that of the people who use it."""
    hosts: list[Any] = []
    report = run(tmp_path / "run", *SEVERAL, "privacy.transport=off", "queries.centred=0", hosts=hosts)
    state = replayed(ServerHome.load(tmp_path / "run").plan, tmp_path / "run" / "checkpoints" / "rounds")
    learner = hosts[0].works[0].learner
    marks = np.sum(
        [learner._tables().word_marks([d.own_text for d in learner.documents[u]]) for u in learner.documents], 0
    )
    np.testing.assert_allclose(state.words.sum(axis=0), marks, atol=1e-3)
    assert marks.any() and state.words.shape == (2, 12)
    np.testing.assert_allclose(state.word_counts.sum(), 18, atol=1e-3)
    shared = sum(row["noisy_count"] * row["bits_global"] for row in report["measured"]) / 18
    chosen = sum(row["noisy_count"] * row["bits_chosen"] for row in report["measured"]) / 18
    assert 0 < shared < 12 and chosen <= shared + 1e-6
    for row in report["measured"]:
        if row["noisy_count"] > 0.5:
            assert sum(row["gains"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 <= report["personas"]["without_persona"] <= 18


def test_a_replayed_run_of_several_queries_gives_the_same_release(run: Any, tmp_path: Path) -> None:
    for name in ("one", "again"):
        run(tmp_path / name, *SEVERAL, "privacy.transport=ideal", replay=True)
    assert same_bits(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "again"))


def test_descriptions_are_empty_where_no_words_were_asked_for(run: Any, tmp_path: Path) -> None:
    report = run(tmp_path / "run", "personas=2", "queries.objective=reply-only", "compare_without_noise=false")
    assert all("description" not in row for row in report["personas"]["rows"]) and "measured" not in report
    assert queries(tmp_path / "run")[1].objective == "reply-only"


@pytest.mark.parametrize("settings", [("queries.words=12",), ("queries.clustering=1",)])
def test_what_needs_personas_is_refused_without_them(run: Any, tmp_path: Path, settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="personas"):
        run(tmp_path / "run", "queries.encoder=hashed", *settings)
    with pytest.raises(ConfigError, match="knows"):
        run(tmp_path / "other", "personas=2", "queries.encoder=hashed", "queries.words=5000")


def declared_people(path: Path) -> Path:
    """Return eighteen people, twelve of whom count themselves to one of two personas."""
    rows = [json.loads(line) for line in write_people(path, 18, 7).read_text().splitlines()]
    users = sorted({row["user"] for row in rows})
    named = {user: ("nurse", "teacher", "")[place % 3] for place, user in enumerate(users)}
    path.write_text("".join(json.dumps({**row, "persona": named[row["user"]]}) + "\n" for row in rows))
    return path


def test_declared_personas_are_what_their_owners_say(run: Any, tmp_path: Path) -> None:
    """Six nurses, six teachers; six who named nothing answer zeros like everybody else and are counted nowhere."""
    people = declared_people(tmp_path / "people.jsonl")
    setting = 'queries.declared="nurse: cares for people; teacher: gives lessons"'
    more = ("personas=2", "queries.persona_choice=declared", setting, f'people="{people}"')
    report = run(tmp_path / "run", *more, "privacy.transport=off", "compare_without_noise=false")
    rows = report["personas"]["rows"]
    np.testing.assert_allclose([row["noisy_count"] for row in rows], [6, 6], atol=1e-3)
    assert [row["description"] for row in rows] == ["nurse: cares for people", "teacher: gives lessons"]
    with pytest.raises(ConfigError, match="declared"):
        run(tmp_path / "other", "personas=3", *more[1:], "privacy.transport=off")


def test_the_released_round_is_chosen_by_private_figures(run: Any, tmp_path: Path) -> None:
    more = ("queries.choose_round=true", "compare_without_noise=false", "rounds=3", "server.learning_rate=40")
    run(tmp_path / "run", *more, "privacy.transport=off")
    asked = [query.purpose for query in queries(tmp_path / "run")]
    assert asked == ["train.global", "measure.adapters"] * 3
    home = ServerHome.load(tmp_path / "run")
    state = replayed(home.plan, tmp_path / "run" / "checkpoints" / "rounds")
    assert state.best is not None
    release = verify_release(tmp_path / "run" / "release", public_key_of(tmp_path / "run/ledger/federation.jsonl"))
    released = release.basis.layout.flatten(release.adapters["global"])
    np.testing.assert_allclose(released, state.best.core, atol=1e-6)
    last = LOSS_UNIT * state.figures[0, METRICS.index("loss_chosen")]
    assert state.best.loss <= last
    if state.best.round < 5:
        assert not np.allclose(released, state.core), "steps of 40 overshoot, and an earlier round is released"


def test_preferences_are_trained_apart_and_merged_by_whoever_wants_them(run: Any, tmp_path: Path) -> None:
    """A soup: two cores, each trained on its own people's words over the model's, added in any proportion."""
    people = declared_people(tmp_path / "people.jsonl")
    more = (
        "personas=2",
        "queries.objective=preference-pairs",
        "queries.persona_choice=declared",
        'queries.declared="short: says little; long: says all"',
        f'people="{people}"',
        "privacy.transport=off",
        "compare_without_noise=false",
    )
    people.write_text(people.read_text().replace('"nurse"', '"short"').replace('"teacher"', '"long"'))
    run(tmp_path / "run", *more)
    home = ServerHome.load(tmp_path / "run")
    state = replayed(home.plan, tmp_path / "run" / "checkpoints" / "rounds")
    layout = home.basis.layout
    adapters = {f"persona-{k}": layout.unflatten(state.personas[k]) for k in range(2)}
    adapters["global"] = layout.unflatten(state.core)
    wanted = soup({"persona-0": 3.0, "persona-1": 1.0})
    merged = layout.flatten(wanted.cores(adapters))
    np.testing.assert_allclose(merged, state.core + state.personas.T @ [0.75, 0.25], atol=1e-6)
    first = first_state(home.plan).personas
    assert all(np.linalg.norm(moved) > 1e-3 for moved in state.personas - first), "both learned from their own people"
