"""The scorecard end to end on the tiny model, its statistics against values known from outside, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.documents import Document, Span
from client.encoder import HashedEncoder
from privacy.errors import ConfigError, DataError
from simulation.progress import Progress
from simulation.scorecard import statistics
from simulation.scorecard.arms import ARMS, BY_NAME, DEFAULT, arms_named
from simulation.scorecard.evaluate import CardReport, adversaries_of, questions, scorecard
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.memories import Memories, style_in_words
from simulation.scorecard.merge import merged, read_card
from simulation.scorecard.output import card_html, card_markdown, write_card
from simulation.scorecard.person import PersonCard, split_history
from simulation.scorecard.run import TaskCards
from simulation.scorecard.table import person_values, table_of

TINY = CardSettings(own_tokens=120, test_documents=2, document_tokens=64, cold_start=True, encoder="hashed")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def history(*texts: str) -> list[Document]:
    return [Document(f"d{i}", (Span(text, own=True),), "history", i) for i, text in enumerate(texts)]


# -- statistics -------------------------------------------------------------------------------------------------------


def test_holm_adjusts_as_published() -> None:
    """The worked example of Aickin, Gensler 1996 (American Journal of Public Health 86), p 0.01, 0.02, 0.03, 0.04."""
    assert statistics.holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert statistics.holm([0.04, 0.005, 0.03, 0.01]) == pytest.approx([0.06, 0.02, 0.06, 0.03])
    assert statistics.holm([]) == []


def test_the_bootstrap_p_agrees_with_the_t_test() -> None:
    from scipy import stats

    values = rng(3).normal(0.02, 0.05, 60)
    found = statistics.told(values, rng())
    assert found.p == pytest.approx(float(stats.ttest_1samp(values, 0).pvalue), abs=0.01)
    assert found.low is not None and found.high is not None and found.low < found.mean < found.high


def test_a_value_of_everybody_is_counted() -> None:
    values = np.array([-0.05, -0.01, 0.0, 0.01, 0.02, 0.02, 0.02, 0.02, 0.02, 0.03, 0.03, 0.04])
    found = statistics.told(values, rng())
    assert (found.people, found.improved, found.worse, found.notably_worse) == (12, 9 / 12, 2 / 12, 1 / 12)
    assert found.worst_decile == pytest.approx(-0.03)
    assert found.median == pytest.approx(0.02)


def test_few_people_show_nothing() -> None:
    certain = statistics.told([0.1] * 7, rng())
    assert statistics.verdict(certain, certain.p) == statistics.NOT_SHOWN
    many = statistics.told([0.1] * 8, rng())
    assert statistics.verdict(many, many.p) == statistics.SHOWN
    assert statistics.verdict(many, 0.06) == statistics.NOT_SHOWN
    worse = statistics.told([-0.1] * 8, rng())
    assert statistics.verdict(worse, worse.p) == statistics.SHOWN_WORSE


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_what_is_no_value_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError):
        statistics.told(values, rng())


@pytest.mark.statistical
def test_nothing_is_shown_where_there_is_nothing() -> None:
    """Twenty people whose values have mean zero: at a level of 5 % no more than 9 % of 400 cards say otherwise."""
    wrong = 0
    for seed in range(400):
        found = statistics.told(rng(seed).normal(0, 0.05, 20), rng(seed + 1), resamples=2000)
        wrong += statistics.verdict(found, found.p) != statistics.NOT_SHOWN
    assert wrong <= 36


# -- values and table -------------------------------------------------------------------------------------------------


def card(**arms: tuple[float, int]) -> PersonCard:
    rows = {name: [("d", nats, tokens)] for name, (nats, tokens) in arms.items()}
    return PersonCard(rows, text_bytes={"d": 40})


def test_a_value_is_the_share_saved_and_the_mean_over_seeds() -> None:
    first = {"a": card(**{"global": (10.0, 5), "own": (9.0, 5)})}
    second = {"a": card(own=(8.0, 5))}
    assert person_values([first, second], "own", "global") == {"a": pytest.approx([0.1, 0.2])}


def test_arms_on_different_tokens_are_refused() -> None:
    with pytest.raises(DataError):
        person_values([{"a": card(**{"global": (10.0, 5), "own": (9.0, 4)})}], "own", "global")


def test_p_values_are_adjusted_over_tasks() -> None:
    tasks = []
    for number in range(2):
        people = {
            f"u{i}": card(**{"base": (11.0, 5), "global": (10.0, 5), "own": (9.0 + i / 100, 5)}) for i in range(10)
        }
        tasks.append(TaskCards(f"t{number}", "file", cards=[people]))
    table = table_of(tasks, [0], rng())
    own = [row for row in table["rows"] if row["arm"] == "own"]
    assert [row["p_holm"] for row in own] == pytest.approx([2 * own[0]["p"]] * 2)
    assert own[0]["said"] == statistics.SHOWN
    assert own[0]["bits_per_byte"] == pytest.approx(own[0]["bits_per_token"] * 5 / 40)
    assert own[0]["perplexity"] == pytest.approx(2 ** own[0]["bits_per_token"])


def one_task(name: str) -> CardReport:
    people = {f"u{i}": card(**{"base": (11.0, 5), "global": (10.0, 5), "own": (9.0 + i / 9, 5)}) for i in range(10)}
    table = table_of([TaskCards(name, "file", cards=[people])], [0], rng())
    return {
        "table": table,
        "measures": [],
        "groups": [],
        "gaps": [],
        "responsiveness": {},
        "bias": {"questions": 0, "rows": [], "gaps": []},
        "releases": [],
        "seconds": 1.0,
        "settings": {},
    }


def test_finished_cards_are_put_side_by_side_and_adjusted_anew(tmp_path: Path) -> None:
    cards = [one_task("a"), one_task("b")]
    for name, report in zip("ab", cards, strict=True):
        write_card(tmp_path / name, report)
    both = merged([read_card(tmp_path / name) for name in "ab"])
    own = [row for row in both["table"]["rows"] if row["arm"] == "own"]
    assert [row["p_holm"] for row in own] == pytest.approx([2 * row["p"] for row in own])
    assert [row["values"] for row in own] == [cards[0]["table"]["rows"][2]["values"]] * 2
    assert both["seconds"] == 2.0 and any(note.startswith("b, own over global") for note in both["table"]["notes"])
    with pytest.raises(ConfigError, match="two scorecards have the task a"):
        merged([cards[0], cards[0]])
    with pytest.raises(ConfigError, match="holds no scorecard"):
        read_card(tmp_path)


# -- memories and arms ------------------------------------------------------------------------------------------------


def test_memories_are_found_by_context_and_shown_by_own_words() -> None:
    spans = (Span("an article on rivers and boats\n", own=False), Span("Down the river\n", own=True))
    other = (Span("an article on winter bread\n", own=False), Span("Cold loaves\n", own=True))
    memories = Memories([Document("a", spans, "history", 0), Document("b", other, "history", 1)], HashedEncoder())
    for methods in (("bm25",), ("dense",), ("bm25", "tfidf", "dense", "recency")):
        assert [p.text for p in memories.search("boats on rivers", methods, 1)] == ["Down the river"]
    assert [p.text for p in memories.search("nothing known", ("bm25",), 5)] == ["Cold loaves", "Down the river"]
    assert Memories([], HashedEncoder()).search("boats", ("bm25", "dense"), 4) == []


def test_style_is_told_in_words() -> None:
    assert "more exclamation marks" in style_in_words(["Yes! No! Come! Go! Really!"] * 3)
    assert style_in_words([]) == ""


def test_nothing_tuned_is_learned_from() -> None:
    documents = history(*"abcdefghijkl")
    learn, tuning = split_history(documents, 6)
    assert (*learn, *tuning) == tuple(documents) and len(tuning) == 4
    assert len(split_history(documents, 2)[1]) == 2
    assert split_history(documents[:3], 6) == (tuple(documents[:3]), ())


def test_arms_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(ARMS)
    with pytest.raises(ConfigError, match="unknown arm nonsense; known: base, global"):
        arms_named(["nonsense"])


def test_runs_and_people_are_paired() -> None:
    a, b = Path("a"), Path("b")
    assert [(q.run, q.people) for q in questions([a, b], [])] == [(a, None), (b, None)]
    assert [(q.run, q.people) for q in questions([a], ["x", "y"])] == [(a, "x"), (a, "y")]
    assert [(q.run, q.people) for q in questions([a, b], ["x", "y"])] == [(a, "x"), (b, "y")]
    assert [(q.run, q.people) for q in questions([a], ["own", "y"])] == [(a, None), (a, "y")]
    with pytest.raises(ConfigError, match="2 runs and 3 sources"):
        questions([a, b], ["x", "y", "z"])


# -- the whole card ---------------------------------------------------------------------------------------------------


def test_all_arms_make_one_card(run: Any, strangers: Path, hosts_here: Any, tmp_path: Path) -> None:
    """Every arm scores the same tokens of the same people; a second seed trains anew and changes nothing else."""
    folder = tmp_path / "run"
    run(folder, "rounds=1", "compare_without_noise=false")
    asked = questions([folder], [str(strangers)])
    report = scorecard(asked, DEFAULT, TINY, Progress(quiet=True), people=2, seeds=2, open_hosts=hosts_here)
    rows = {row["arm"]: row for row in report["table"]["rows"]}
    assert set(DEFAULT) - set(rows) == {"persona"}, "all arms but the one whose core the release lacks"
    assert all(row["people"] == 2 and row["said"] == statistics.NOT_SHOWN for row in rows.values())
    assert (rows["own"]["seeds"], rows["bm25@4"]["seeds"], rows["base"]["mean"]) == (2, 1, 0.0)
    assert rows["own"]["values"] != rows["wrong_person"]["values"]
    assert rows["hybrid@4"]["values"] != rows["wrong_memories"]["values"]
    assert rows["own"]["seed_deviation"] != 0
    cold = {row["items"]: row["mean"] for row in report["table"]["cold"]}
    assert set(cold) == {0, 1, 2, 4} and cold[0] == 0.0, "no text is global itself; nobody here has eight"
    assert len(set(cold.values())) == 4
    assert not list(folder.rglob("*u11x*")), "nobody scored leaves anything in the run"


def test_epsilon_is_that_of_the_signed_claim() -> None:
    claim = {"epsilon": {"1e-06": "7.5"}, "epsilon_server": {"1e-06": "300.1"}, "sybil_floor_epsilon": None}
    assert adversaries_of(claim, 1e-6) == {"released": 7.5, "server": 300.1, "sybils": None}
    assert set(adversaries_of(claim, 1e-5).values()) == set(adversaries_of({}, 1e-6).values()) == {None}


def test_the_page_holds_what_the_json_holds(tmp_path: Path) -> None:
    report = one_task("<b>task</b>")
    table = report["table"]
    report["releases"].append(
        {
            "task": "t",
            "release": "0" * 64,
            "not_private": ["<i>why</i>"],
            "privacy": {},
            "model": "m",
            "people_in_training": 0,
            "delta": 1e-6,
            "adversaries": {},
            "cost": {},
        }
    )
    page = card_html(report)
    assert "<b>task" not in page and "<i>why" not in page and "NOT PRIVATE" in page
    for row in table["rows"]:
        if row["arm"] != "base":
            assert f'value="{row["mean"]!r}"' in page and f'value="{row["worst_decile"]!r}"' in page
    assert "| own | global | 5.00 |" in card_markdown(report)
    assert "Bits per token from one technique to the next: base " in page
    write_card(tmp_path / "card", report)
    assert json.loads((tmp_path / "card" / "report.json").read_text())["table"]["rows"][0]["arm"] == "base"
