"""Every loader on small files in the layout that its data set's documentation gives, and on broken ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from client.documents import Person
from client.records import BrokenLine
from privacy.errors import DataError
from simulation.datasets import catalogue, columns, json_stream, lamp
from simulation.population import Population, load_people

HEADER_BOOKS = '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher"\n'


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".").replace("_s_", "-")).write_text(text)
    return folder


def people(source: str, folder: Path, **more: Any) -> Population:
    return load_people(f"{source}:{folder}", None, **more)


def texts(person: Person) -> list[tuple[str, str, str]]:
    """Return (split, everything before the own words, own words) of each document in order of time."""
    return [
        (d.split, d.text.removesuffix(d.own_text).strip(), d.own_text.strip()) for d in (*person.history, *person.test)
    ]


def json_lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# -- maps of columns --------------------------------------------------------------------------------------------------


def movielens(folder: Path) -> None:
    write(
        folder,
        ratings__dat="1::10::5::200\n1::11::3::100\n2::10::4::300\n",
        movies__dat="10::A Film (1999)::Comedy|Drama\n11::Another: Part::Two::Horror\n",
    )


def amazon(folder: Path) -> None:
    rows = [{"user_id": "u", "title": f"t{i}", "text": "fine", "rating": 4.0, "timestamp": 1000 * i} for i in (2, 1)]
    write(folder, reviews__jsonl=json_lines(*rows))


def yelp(folder: Path) -> None:
    review = {"user_id": "u", "business_id": "b", "stars": 5, "text": "Great soup", "date": "2020-01-02 03:04:05"}
    business = {"business_id": "b", "name": "Soups", "categories": None, "stars": 1}
    (folder / "yelp_academic_dataset_review.json").write_text(json_lines(review))
    (folder / "yelp_academic_dataset_business.json").write_text(json_lines(business))


def bookcrossing(folder: Path) -> None:
    (folder / "BX-Book-Ratings.csv").write_text('"User-ID";"ISBN";"Book-Rating"\n"7";"0195";"8"\n"7";"none";"0"\n')
    (folder / "BX-Books.csv").write_text(HEADER_BOOKS + '"0195";"A Book; in parts";"A. Writer";"2002";"House"\n')


def tripadvisor(folder: Path) -> None:
    row = {"author": "u", "date": "2015-03-04T00:00:00", "rating": 4.0, "title": "Nice", "text": "Clean room"}
    (folder / "HotelRec.txt").write_text(json_lines(row))


def mind(folder: Path) -> None:
    write(
        folder,
        behaviors__tsv="1\tU1\t11/15/2019 8:55:22 AM\tN1 N2\tN3-1 N4-0\n2\tU2\t11/15/2019 9:00:00 PM\t\tN1-0\n",
        news__tsv='N1\tsport\tgolf\tA "putt\tabstract\turl\t[]\t[]\nN2\tnews\tlocal\tRain\tabstract\turl\t[]\t[]\n',
    )


def recipes(folder: Path) -> None:
    write(
        folder,
        RAW_interactions__csv='user_id,recipe_id,date,rating,review\n5,9,2003-02-17,4,"Tasty,\nmade twice"\n',
        RAW_recipes__csv="name,id,minutes,contributor_id,submitted,tags,nutrition,n_steps,steps,description,"
        "ingredients,n_ingredients\nstew,9,10,1,2002-01-01,\"['a']\",[],1,[],d,[],1\n",
    )


def opinionqa(folder: Path) -> None:
    write(
        folder,
        responses__csv="QKEY,AGE,WEIGHT,SAFE_W26,HAPPY_W26\n100,30-49,1.0,Very safe,\n101,65+,0.5,Not safe,Yes\n",
        info__csv="key,question,option_mapping,option_ordinal,references\nSAFE_W26,How safe?,{},[],[]\n"
        "HAPPY_W26,Happy?,{},[],[]\n",
    )


def reviews(folder: Path) -> None:
    rows = [{"user": "u", "title": "t", "text": f"x{i}", "label": i, "i": i, "split": "history"} for i in (1, 2)]
    write(folder, reviews__jsonl=json_lines(*rows, {**rows[0], "i": 3, "split": "test"}))


def first(population: Population) -> list[tuple[str, str, str]]:
    return texts(population.people[0])


EXPECTED: dict[str, tuple[Any, list[tuple[str, str, str]], int]] = {
    "movielens": (
        movielens,
        [("history", "A Film (1999) (Comedy|Drama)", "5")],
        1,
    ),
    "amazon": (amazon, [("history", "t1. fine", "4.0"), ("test", "t2. fine", "4.0")], 0),
    "yelp": (yelp, [("history", "Soups (). Great soup", "5")], 0),
    "bookcrossing": (bookcrossing, [("history", "A Book; in parts by A. Writer", "8")], 1),
    "tripadvisor": (tripadvisor, [("history", "Nice. Clean room", "4.0")], 0),
    "mind": (mind, [("history", "sport", 'A "putt'), ("test", "news", "Rain")], 0),
    "recipes": (recipes, [("history", "stew. Tasty,\nmade twice", "4")], 0),
    "reviews": (reviews, [("history", "t. x1", "1"), ("history", "t. x2", "2"), ("test", "t. x1", "1")], 0),
    "opinionqa": (opinionqa, [("history", "How safe?", "Very safe")], 0),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_map_reads_its_documented_layout(name: str, tmp_path: Path) -> None:
    make, expected, broken = EXPECTED[name]
    make(tmp_path)
    found = people(name, tmp_path)
    assert first(found) == expected
    assert found.counts["broken_lines"] == broken
    assert len(found.sha256) == 64


def test_every_map_has_a_test_and_says_on_what_it_ran() -> None:
    sets = catalogue.catalogue()
    assert {path.stem for path in columns.MAPS.glob("*.toml")} == set(EXPECTED)
    for each in sets.values():
        assert each.marked in (columns.FROM_DOCUMENTATION, columns.RUN_ON_FILES)
        assert set(each.flags) == set(columns.FLAGS) and each.licence and each.where


@pytest.mark.parametrize("name", sorted(catalogue.catalogue()))
def test_a_missing_file_is_named_with_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in the folder; get it from "):
        people(name, tmp_path)


def test_an_unknown_set_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set 'nonsense'; there is amazon"):
        load_people("nonsense:folder", None)
    with pytest.raises(DataError, match="amazon: gone is no folder"):
        people("amazon", tmp_path / "gone")


def test_a_map_of_ones_own_is_a_file(tmp_path: Path) -> None:
    own = (columns.MAPS / "amazon.toml").read_text().replace("reviews.jsonl", "mine.jsonl")
    (tmp_path / "mine.toml").write_text(own)
    amazon(tmp_path)
    (tmp_path / "reviews.jsonl").rename(tmp_path / "mine.jsonl")
    found = people(str(tmp_path / "mine.toml"), tmp_path)
    assert len(found.people) == 1
    (tmp_path / "mine.toml").write_text(own.replace("[flags]", "[other]"))
    with pytest.raises(DataError, match=r"mine.toml: is no column map \('flags'\)"):
        people(str(tmp_path / "mine.toml"), tmp_path)


def test_inactive_people_stay(tmp_path: Path) -> None:
    """Who rated once has no test document and stays all the same; nothing is left out unasked."""
    movielens(tmp_path)
    (tmp_path / "ratings.dat").write_text("".join(f"{u}::10::5::{t}\n" for u, n in ((1, 9), (2, 1)) for t in range(n)))
    found = people("movielens", tmp_path)
    assert [(p.user, len(p.history), len(p.test)) for p in found.people] == [("1", 7, 2), ("2", 1, 0)]


# -- LaMP, LongLaMP, PRISM, ConvAI2 -----------------------------------------------------------------------------------

PROFILES: dict[int, tuple[dict[str, Any], tuple[str, str]]] = {
    1: ({"title": "On maps", "abstract": "We map."}, ("", "On maps\nWe map.")),
    2: ({"tag": "comedy", "description": "A film"}, ("A film", "comedy")),
    3: ({"text": "Works well", "score": "4"}, ("Works well", "4")),
    4: ({"text": "An article", "title": "A headline"}, ("An article", "A headline")),
    5: ({"abstract": "We map.", "title": "On maps"}, ("We map.", "On maps")),
    6: ({"text": "Dear all", "title": "Lunch"}, ("Dear all", "Lunch")),
    7: ({"text": "a tweet"}, ("", "a tweet")),
}


@pytest.mark.parametrize("task", sorted(lamp.LAMP))
def test_lamp_reads_its_documented_layout(task: int, tmp_path: Path) -> None:
    entry, (before, own) = PROFILES[task]
    questions = [{"id": "11", "input": "Do it", "profile": [{"id": "p0", **entry}]}, {"id": "12"}]
    (tmp_path / "dev_questions.json").write_text(json.dumps(questions))
    golds = {"task": f"LaMP_{task}", "golds": [{"id": "11", "output": "done"}]}
    (tmp_path / "dev_outputs.json").write_text(json.dumps(golds))
    found = people(f"lamp-{task}", tmp_path)
    assert first(found) == [("history", before, own), ("test", "Do it", "done")]
    assert found.people[0].user == f"lamp{task}-11" and found.counts["broken_lines"] == 1


@pytest.mark.parametrize(
    ("kind", "entry", "expected"),
    [
        ("email", {"subject": "Lunch", "text": "Come at one"}, ("Lunch", "Come at one")),
        ("abstract", {"title": "On maps", "abstract": "We map."}, ("On maps", "We map.")),
        ("review", {"overall": 5, "summary": "Good", "reviewText": "I like it"}, ("5\nGood", "I like it")),
        ("topic", {"summary": "A story", "content": "Once"}, ("A story", "Once")),
    ],
)
def test_longlamp_reads_its_documented_layout(
    kind: str, entry: dict[str, Any], expected: tuple[str, str], tmp_path: Path
) -> None:
    row = {"author": "ann", "input": "Write", "output": "Written", "profile": [entry]}
    (tmp_path / "test.jsonl").write_text(json_lines(row, {**row, "output": "Again"}))
    found = people(f"longlamp-{kind}", tmp_path)
    assert first(found) == [("history", *expected), ("test", "Write", "Written"), ("test", "Write", "Again")]


def test_prism_keeps_what_the_person_wrote_and_the_chosen_answer(tmp_path: Path) -> None:
    history = [
        {"turn": 0, "role": "user", "content": "Hello"},
        {"turn": 0, "role": "model", "content": "Hi", "if_chosen": True},
        {"turn": 0, "role": "model", "content": "Go away", "if_chosen": False},
        {"turn": 1, "role": "user", "content": "Thanks"},
    ]
    row = {"user_id": "user3", "conversation_id": "c1", "conversation_history": history}
    (tmp_path / "conversations.jsonl").write_text(json_lines(row, {"user_id": "user4"}))
    found = people("prism", tmp_path)
    (document,) = found.people[0].documents
    assert document.text == "Me: Hello\nYou: Hi\nMe: Thanks\n" and document.own_text == "Hello\nThanks\n"
    assert found.counts["broken_lines"] == 1


def test_convai2_takes_a_persona_for_a_person(tmp_path: Path) -> None:
    persona = "1 your persona: i like tea.\n2 your persona: i am old.\n"
    dialogue = "3 hello there\thi , how are you ?\t\thi , how are you ?|no\n4 fine\tgood\t\tgood|bad\n"
    other = "1 your persona: i ski.\n2 hey\tho\t\tho\n"
    (tmp_path / "valid_self_original.txt").write_text(persona + dialogue + other + persona + dialogue)
    found = people("convai2", tmp_path)
    assert sorted(len(p.documents) for p in found.people) == [1, 2]
    assert found.people[0].history[0].text.startswith("You: hello there\nMe: hi , how are you ?\n")


# -- streaming --------------------------------------------------------------------------------------------------------


def test_an_array_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that lie across blocks are whole, and the digest is that of the file, whatever the block."""
    values = [{"a": "x" * n, "é": [1, {"b": None}]} for n in range(40)] + [3, 12345, "]", "end"]
    path = tmp_path / "array.json"
    path.write_text("\n [" + " ,\n".join(json.dumps(v, ensure_ascii=False) for v in values) + "]\n\n")
    for block in (7, 64, 1 << 20):
        monkeypatch.setattr(json_stream, "BLOCK", block)
        digest = hashlib.sha256()
        assert [value for _, value in json_stream.elements(path, digest)] == values
        assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_array_that_breaks_off_and_a_broken_line_are_told(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text('[{"a": 1}, {"b": ')
    with pytest.raises(DataError, match="breaks off after element 1"):
        list(json_stream.elements(path, hashlib.sha256()))
    path.write_text('{"a": 1}\n{broken\n')
    found = list(json_stream.elements(path, hashlib.sha256()))
    assert found[0] == (1, {"a": 1}) and isinstance(found[1][1], BrokenLine)


def test_the_first_broken_record_stops_a_strict_load(tmp_path: Path) -> None:
    movielens(tmp_path)
    with pytest.raises(DataError, match="movielens:2: "):
        people("movielens", tmp_path, strict=True)
