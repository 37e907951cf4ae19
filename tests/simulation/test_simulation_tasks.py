"""Tasks told otherwise than in bits: rankings, searches, choices, coding style, and the data that they are asked of."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.documents import Document, Person, Span
from client.encoder import HashedEncoder
from privacy.errors import ConfigError, DataError
from simulation.measures.coding import alike, coding_style
from simulation.population import load_people
from simulation.progress import Progress
from simulation.scorecard import choice, ranking, searching
from simulation.scorecard.evaluate import questions, scorecard
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.tasks import TASKS, task_named
from simulation.scorecard.without_model import card_without_model

QUIET = Progress(quiet=True)


def mean(values: Any, measure: str, arm: str) -> float:
    return float(np.mean(list(values[measure][arm].values())))


# -- ranking ----------------------------------------------------------------------------------------------------------


def taker(user: str, items: list[str]) -> Person:
    rows = [Document(f"{user}.{i}", (Span(f"{t}\n", own=True),), "history", i) for i, t in enumerate(items)]
    cut = len(rows) - 2
    return Person(
        user, tuple(Document(d.id, d.spans, "test" if i >= cut else "history", i) for i, d in enumerate(rows))
    )


def test_what_always_follows_is_found_by_order_alone() -> None:
    """Everybody walks the same circle of 12 items from a start of their own: the last item says the next."""
    circle = [f"item{i:02d}" for i in range(12)]
    people = [taker(f"u{s:02d}", [circle[(s + i) % 12] for i in range(8)]) for s in range(12)]
    values, _ = ranking.ranking_values(people, HashedEncoder(), 2, 2, QUIET)
    assert mean(values, ranking.HIT_1, ranking.SEQUENTIAL) == 1.0
    assert mean(values, ranking.HIT_1, ranking.POPULARITY) < 0.4
    assert set(values[ranking.NDCG]) == set(ranking.ARMS)


def test_what_is_like_the_own_history_is_found_by_it_and_explained_by_it() -> None:
    rng = random.Random(3)
    kinds = [[f"{word} number{i}" for i in range(30)] for word in ("mountain rope boots", "violin sonata bow")]
    people = [taker(f"u{s:02d}", rng.sample(kinds[s % 2], 8)) for s in range(14)]
    values, chosen = ranking.ranking_values(people, HashedEncoder(), 2, 2, QUIET)
    assert chosen["items"] <= 60 and chosen["weight of similar"] > 0
    assert mean(values, ranking.NDCG, ranking.SIMILAR) > mean(values, ranking.NDCG, ranking.POPULARITY) + 0.1
    assert mean(values, ranking.NDCG, ranking.TOGETHER) > mean(values, ranking.NDCG, ranking.WRONG) + 0.05
    own = people[0].history
    told = ranking.explained_items(own, own[2].own_text.strip(), HashedEncoder())
    assert told[0] == own[2].id and len(told) == 3


def test_the_place_of_a_candidate_says_nothing() -> None:
    """A ranker that scores all alike hits at 10 as often as chance among 100: 300 questions, between 5 and 15 %."""
    hits = 0
    for asked in range(300):
        some = ranking._candidates(500, asked, (7, 9), f"u{asked}")
        assert len(some) == len(set(some)) == 100 and asked in some and (asked in (7, 9) or not {7, 9} & set(some))
        hits += asked in some[:10]
    assert 15 <= hits <= 45
    assert sorted(ranking._candidates(5, 3, (1, 1), "u")) == list(range(5)), "who repeats may repeat"
    assert sorted(ranking._candidates(5, 3, (1, 2), "u")) == [0, 3, 4]


def test_an_item_is_what_was_rated_or_chosen() -> None:
    rated = Document("a", (Span("Film (Drama)\n", own=False), Span("4\n", own=True)), "history", 0)
    taken = Document("b", (Span("news\n", own=False), Span("A headline\n", own=True)), "history", 0)
    assert (ranking.item_of(rated), ranking.item_of(taken)) == ("Film (Drama)", "A headline")
    with pytest.raises(DataError, match="two people"):
        ranking.ranking_values([Person("u", (rated, taken))], HashedEncoder(), 0, 1, QUIET)


# -- search -----------------------------------------------------------------------------------------------------------


def writers() -> list[Person]:
    """Twelve people of two subjects; questions are ambiguous words, which the rest of a text settles by its subject."""
    rng = random.Random(5)
    subjects = (("keel", "mast", "sail", "harbour", "tide"), ("flour", "oven", "yeast", "crust", "dough"))
    people = []
    for number in range(12):
        documents = []
        for i in range(9):
            things = " ".join(rng.choices(subjects[number % 2], k=6))
            question, rest = f"notes about {rng.choice(('rolls', 'knots'))}", f"{things} rolls knots u{number}i{i}"
            spans = (Span(f"{question}\n", own=False), Span(f"{rest}\n", own=True))
            documents.append(Document(f"u{number}.{i}", spans, "test" if i > 6 else "history", i))
        people.append(Person(f"u{number:02d}", tuple(documents)))
    return people


def test_knowing_the_person_finds_more_of_theirs_and_the_echo_grows() -> None:
    values, chosen = searching.search_values(writers(), HashedEncoder(), 2, 2, QUIET)
    assert chosen["weight of the person"] > 0 and chosen["documents"] == 108
    for measure in (searching.NDCG, searching.ECHO):
        assert mean(values, measure, searching.PERSONAL) > mean(values, measure, searching.PLAIN)
        assert mean(values, measure, searching.PERSONAL) > mean(values, measure, searching.WRONG)


def test_cards_without_a_model_have_a_row_for_each_arm(tmp_path: Path) -> None:
    file = tmp_path / "people.jsonl"
    with file.open("w") as stream:
        for person in writers():
            for d in person.documents:
                row = {"user": person.user, "split": d.split, "i": d.order, "input": d.spans[0].text.strip()}
                stream.write(json.dumps({**row, "output": d.own_text.strip()}) + "\n")
    settings = CardSettings(task="search", encoder="hashed", tuning_documents=2)
    card = card_without_model([str(file)], settings, QUIET)
    assert {row["arm"] for row in card["measures"]} == set(searching.ARMS)
    assert {row["against"] for row in card["measures"]} == {searching.PLAIN}
    with pytest.raises(ConfigError, match="a scorecard of ranking needs --people"):
        card_without_model([], CardSettings(task="ranking"), QUIET)


# -- choice -----------------------------------------------------------------------------------------------------------


def labelled(name: str, question: str, label: str, *others: str) -> Document:
    spans = (Span(f"{question}\n", own=False), Span(f"{label}\n", own=True))
    return Document(name, spans, "test", 0, alternatives=others)


def test_the_likeliest_a_token_is_chosen() -> None:
    """By hand: of two questions the cheaper candidate a token is "b", then "c"; the truth is "b" and "a"."""
    documents = [labelled("d0", "first", "b"), labelled("d1", "second", "a")]
    made = choice.candidate_documents(documents, ("a", "b", "c"))
    assert [d.own_text for d in made] == ["a", "b", "c"] * 2 and all(
        d.text.startswith(("first", "second")) for d in made
    )
    rows = [(d.id, n, t) for d, n, t in zip(made, (4.0, 3.0, 9.0, 5.0, 5.0, 8.0), (1, 2, 2, 1, 1, 2), strict=True)]
    chosen = choice.choices(rows, documents, ("a", "b", "c"))
    assert [(c.truth, c.chosen, c.among) for c in chosen] == [("b", "b", 3), ("a", "c", 3)]
    values = choice.choice_values({"u": {"own": chosen}}, labelled=True)
    assert values[choice.ACCURACY]["own"] == {"u": 0.5} and values[choice.F1]["own"]["u"] == pytest.approx(1 / 3)
    assert choice.chance({"u": {"own": chosen}}) == pytest.approx(1 / 3)
    assert choice.choices(rows[:5], documents, ("a", "b", "c")) == chosen[:1], "one with a candidate unread is left out"


def test_what_a_candidate_costs_where_nothing_is_asked_is_taken_off() -> None:
    """By hand: "b" is the cheapest, but cheap before any question; "a" gains most by being asked."""
    document = labelled("d0", "first", "a")
    made = choice.candidate_documents([document], ("a", "b"))
    unasked = choice.unasked_documents(made)
    assert [d.own_text for d in unasked] == ["a", "b"] and all(d.text.startswith("N/A") for d in unasked)
    rows = [(made[0].id, 4.0, 1), (made[1].id, 3.0, 1)]
    alone = [(unasked[0].id, 6.0, 1), (unasked[1].id, 3.5, 1)]
    assert choice.choices(rows, [document], ("a", "b"))[0].chosen == "b"
    assert choice.choices(rows, [document], ("a", "b"), alone)[0].chosen == "a"


def test_the_right_candidate_is_not_told_by_its_place_and_others_come_first() -> None:
    document = labelled("d", "which?", "m", "z", "a")
    assert choice.candidates(document, ("label",)) == ["a", "m", "z"]
    assert choice.candidate_documents([labelled("d", "", "m")], ()) == (), "nothing to choose from"
    people = [Person("u", (Document("x", (Span("q\n", own=False), Span("drama\n", own=True)), "history", 0),))]
    assert choice.labels_of(people) == ("drama",)


def test_a_choice_makes_a_card(run: Any, hosts_here: Any, tmp_path: Path) -> None:
    """With the tiny model, whose choices are chance: everybody has a value in every arm, and chance is said."""
    folder, file = tmp_path / "run", tmp_path / "labels.jsonl"
    run(folder, "rounds=1", "compare_without_noise=false")
    with file.open("w") as stream:
        for user in range(3):
            for i in range(6):
                row = {
                    "user": f"v{user}",
                    "split": "test" if i > 3 else "history",
                    "i": i,
                    "input": f"Which film is it? {i}",
                }
                stream.write(json.dumps({**row, "output": ("drama", "comedy")[(i + user) % 2]}) + "\n")
    settings = CardSettings(task="classification", encoder="hashed", tuning_documents=0, document_tokens=48)
    arms = ["base", "global", "bm25@1"]
    card = scorecard(questions([folder], [str(file)]), arms, settings, QUIET, open_hosts=hosts_here)
    rows = {(row["measure"], row["arm"]): row for row in card["measures"]}
    assert {arm for _, arm in rows} == set(arms) and (choice.F1, "global") in rows
    assert all(row["people"] == 3 and 0 <= row["level"] <= 1 for row in rows.values())
    assert any("a guess is right in 50.0%" in note for note in card["table"]["notes"])


def test_tasks_are_known_by_name() -> None:
    assert {"reply", "headline", "subject", "long text", "rating", "classification", "preference", "ranking"} <= {
        task.name for task in TASKS
    }
    assert task_named("text").name == "next text"
    with pytest.raises(ConfigError, match="unknown task 'poem'"):
        CardSettings(task="poem")


# -- coding and data --------------------------------------------------------------------------------------------------


def test_coding_style_by_hand() -> None:
    """Four lines: two identifiers in snake case, one in camel; one comment of three written lines, one line blank."""
    code = 'my_name = "x"\n\n    otherName = my_name  # why\n\tdone = 1\n'
    found = coding_style(code)
    assert found["snake"] == pytest.approx(2 / 3) and found["camel"] == pytest.approx(1 / 3) and found["capital"] == 0
    assert (found["tab"], found["four"], found["two"]) == (0.5, 0.5, 0.0)
    assert found["comment"] == pytest.approx(1 / 3) and found["blank"] == 0.25 and found["double"] == 1.0
    assert alike(code, code) == 1.0 and alike(code, "") is None
    same, other = alike("a_b = 1\n    x_y = 2\n", "c_d = 3\n    u_v = 4\n"), alike("a_b = 1\n", "aB = 1\n\txY = 2\n")
    assert same is not None and other is not None and same > other


def test_every_author_of_a_repository_is_a_person(tmp_path: Path) -> None:
    place = tmp_path / "code"
    place.mkdir()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(place), *arguments], check=True, capture_output=True)

    git("init", "-q")
    for i in range(8):
        who = ("ann", "bob")[i % 2]
        (place / f"{who}.py").write_text(f"value = {i}\n")
        git("add", "-A")
        git("-c", f"user.name={who}", "-c", f"user.email={who}@x.y", "commit", "-qm", f"Set it to {i}")
    people = load_people(f"git:{place}", None, min_test=1).people
    assert len(people) == 2 and all(len(p.history) == 3 and len(p.test) == 1 for p in people)
    newest = {p.test[0].own_text for p in people}
    assert newest == {"value = 6\n", "value = 7\n"}
    assert all("@" not in p.user and p.test[0].text.startswith("Set it to ") for p in people)
    (place / "empty").mkdir()
    with pytest.raises(DataError):
        load_people(f"git:{tmp_path}", None)


def test_preferences_have_alternatives(tmp_path: Path) -> None:
    rows = [
        {"preference": "I like it old", "question": "What?", "options": ["old", "new", "newest"]},
        {"question": "?"},
    ]
    (tmp_path / "prefeval.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = load_people(f"prefeval:{tmp_path}", None)
    assert len(found.people) == 1 and len(found.warnings) == 1
    assert found.people[0].test[0].alternatives == ("new", "newest")
    turn = {"turn": 0, "role": "model", "if_chosen": True, "content": "good"}
    history = [{"turn": 0, "role": "user", "content": "hello"}, turn, {**turn, "if_chosen": False, "content": "bad"}]
    (tmp_path / "conversations.jsonl").write_text(json.dumps({"user_id": "u1", "conversation_history": history}))
    person = load_people(f"prism-preference:{tmp_path}", None).people[0]
    assert person.documents[0].own_text == "good\n" and person.documents[0].alternatives == ("bad",)
