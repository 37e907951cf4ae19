"""People: the split by conversation and date, the loaders, and what broken input does."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.documents import Document, Person, Span, own_words
from client.records import spans_of
from privacy.errors import DataError
from simulation.datasets import chitchat, jsonl
from simulation.population import Population, load_people, refuse_shared_conversations


@pytest.fixture(scope="module")
def volunteers() -> Population:
    return load_people("chitchat", None)


def message(sender: str, minute: int, text: str) -> dict[str, str]:
    return {"sender": sender, "timestamp": f"2018-05-02T19:{minute:02d}:00Z", "text": text}


def talk(day: int, *parts: tuple[str, str]) -> chitchat.Conversation:
    messages = tuple(
        chitchat.Message(who, f"2018-05-{day:02d}T10:00:{n:02d}Z", text) for n, (who, text) in enumerate(parts)
    )
    return chitchat.Conversation(f"talk{day}", messages)


def write(path: Path, *lines: dict[str, Any] | bytes) -> str:
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(data) + b"\n")
    return str(path)


# --- the volunteers' conversations -----------------------------------------------------------------------------------


def test_no_test_conversation_is_in_any_training_part(volunteers: Population) -> None:
    splits: dict[str, set[str]] = {}
    for person in volunteers.people:
        for document in person.documents:
            splits.setdefault(document.group, set()).add(document.split)
    assert all(len(parts) == 1 for parts in splits.values())
    assert Counter(part for parts in splits.values() for part in parts)["test"] > 900


def test_every_conversation_is_seen_by_its_two_people_and_own_words_are_nobody_elses(volunteers: Population) -> None:
    seen: dict[str, list[Document]] = {}
    for person in volunteers.people:
        for document in person.documents:
            seen.setdefault(document.group, []).append(document)
    assert {len(views) for views in seen.values()} == {2}
    for first, second in seen.values():
        context = "".join(span.text for span in first.spans if not span.own).replace("Me: ", "")
        assert context.replace("You: ", "").strip() == second.own_text.replace("You: ", "").replace("Me: ", "").strip()


def test_enough_people_have_history_and_test(volunteers: Population) -> None:
    counts = volunteers.counts
    assert counts["people_with_test_and_512_history_words"] >= 150
    assert counts["test_documents_repeating_history"] < 0.05 * counts["test_documents"]
    assert counts["history_test_pairs_reversed"] < 0.07 * counts["history_test_pairs"]
    regular = [person for person in volunteers.people if len(person.documents) >= 4]
    assert sum(bool(person.history and person.test) for person in regular) > 0.85 * len(regular)


def test_outputs_name_nobody_and_the_order_is_by_history(volunteers: Population) -> None:
    assert [person.user for person in volunteers.people[:2]] == ["chit0001", "chit0002"]
    raw = json.loads(chitchat.find_file().read_bytes())
    senders = {m["sender"] for body in raw.values() for turn in body["messages"] for m in turn}
    shown = {person.user for person in volunteers.people}
    shown |= {part for person in volunteers.people for d in person.documents for part in (d.id, d.group)}
    assert not shown & (senders | set(raw))
    words = [own_words(person.history) for person in volunteers.people if len(person.test) >= 2]
    assert words == sorted(words, reverse=True)


def test_fewer_people_are_the_first_ones(volunteers: Population) -> None:
    few = load_people("chitchat", 5)
    assert few.people == volunteers.people[:5]
    assert few.sha256 == volunteers.sha256


def test_rendering_puts_labels_and_partner_outside_the_targets() -> None:
    spans = chitchat.render(talk(1, ("anna", "how are you"), ("bert", "fine"), ("anna", "good")), "anna")
    assert "".join(span.text for span in spans) == "Me: how are you\nYou: fine\nMe: good\n"
    assert [span.text for span in spans if span.target] == ["how are you\n", "good\n"]


def test_the_latest_quarter_by_mean_position_is_held_out() -> None:
    pair = [talk(day, ("anna", "x"), ("bert", "y")) for day in range(1, 9)]
    assert chitchat.held_out(pair) == {"talk7", "talk8"}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda p: p[0] != p[1]), min_size=4, max_size=28)
)
def test_a_quarter_of_all_conversations_is_held_out(pairs: list[tuple[int, int]]) -> None:
    talks = [talk(day, (f"p{a}", "x"), (f"p{b}", "y")) for day, (a, b) in enumerate(pairs, 1)]
    assert len(chitchat.held_out(talks)) == len(pairs) // 4


def test_unanswered_and_broken_conversations_are_left_out(tmp_path: Path) -> None:
    raw = {
        "one": {"messages": [[message("anna", 1, "hello?")]]},
        "two": {"messages": [[message("anna", 2, "hello")], [message("bert", 3, "hi  there\n you")]]},
        "bad": {"messages": [[{"sender": "anna"}]]},
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(raw))
    loaded = chitchat.load(path, min_test=0)
    assert loaded.counts["conversations"] == 1
    assert loaded.counts["one_sided_conversations_left_out"] == 1
    assert loaded.warnings == ("dataset.json: conversation 3 is not a list of turns of messages; left out",)
    assert "hi there you\n" in {span.text for person in loaded.people for d in person.documents for span in d.spans}
    with pytest.raises(DataError, match="conversation 3"):
        chitchat.load(path, min_test=0, strict=True)


@pytest.mark.parametrize("data", [b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_data_file_that_is_not_one_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"dataset\.json"):
        chitchat.load(path, min_test=0)


# --- JSON lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text", "targets"),
    [
        ({"task": "next_turn", "turns": ["one", "two"]}, "one\ntwo\n", ["one\n", "two\n"]),
        ({"turns": [["me", "one"], ["other", "two"]]}, "Me: one\nYou: two\n", ["one\n"]),
        ({"task": "headline", "input": "long post", "output": "short"}, "long post\nshort\n", ["short\n"]),
        ({"task": "comment", "text": "well said"}, "well said\n", ["well said\n"]),
        ({"task": "rating", "title": "good", "text": "works", "label": 5}, "good\nworks\n", ["good\n", "works\n"]),
        ({"task": "never heard of", "output": "mine"}, "mine\n", ["mine\n"]),
    ],
)
def test_columns_decide_what_is_own(fields: dict[str, Any], text: str, targets: list[str]) -> None:
    spans = spans_of(fields)
    assert "".join(span.text for span in spans) == text
    assert [span.text for span in spans if span.target] == targets


def test_split_and_order_come_from_the_file(tmp_path: Path) -> None:
    rows = [
        {"user": "u1", "i": i, "split": split, "text": f"t{i}"}
        for i, split in ((3, "test"), (1, "history"), (2, "test"))
    ]
    (person,) = load_people(write(tmp_path / "p.jsonl", *rows), None).people
    assert [d.own_text for d in person.history] == ["t1\n"]
    assert [d.own_text for d in person.test] == ["t2\n", "t3\n"]


@pytest.mark.parametrize(("records", "held_out"), [(1, 0), (2, 1), (4, 1), (8, 2), (10, 2)])
def test_without_a_split_the_last_quarter_is_test(tmp_path: Path, records: int, held_out: int) -> None:
    rows = [{"user": "u1", "text": f"t{n}"} for n in range(records)]
    (person,) = load_people(write(tmp_path / "p.jsonl", *rows), None).people
    assert [d.own_text for d in person.test] == [f"t{n}\n" for n in range(records - held_out, records)]


BROKEN: list[tuple[bytes, str]] = [
    (b'{"user": "u9", "text": "secret word"', "not JSON at column"),
    (b'{"user": "u9", "text": "secret word \xff"}', "not valid UTF-8"),
    (b'{"user": "u9", "text": "secret word \\ud800"}', "not valid UTF-8"),
    (b"[" * 50_000, "not JSON"),
    (b'["secret word"]', "not a JSON object"),
    (b'{"text": "secret word"}', "no user"),
    (b'{"user": "", "text": "secret word"}', "no user"),
    (b'{"user": 7, "text": "secret word"}', "user is not text"),
    (b'{"user": "u9", "text": ["secret word"]}', "text is not text"),
    (b'{"user": "u9", "turns": "secret word"}', "turns is not a list"),
    (b'{"user": "u9", "turns": [1]}', "turns holds something"),
    (b'{"user": "u9", "turns": []}', "no own text"),
    (b'{"user": "u9", "input": "secret word"}', "no own text"),
    (b'{"user": "u9", "text": "  "}', "no own text"),
    (b'{"user": "u9", "text": "secret word", "split": "train"}', "split is neither"),
    (b'{"user": "u9", "text": "secret word", "i": "1"}', "i is not a whole number"),
    (b'{"user": "u9", "text": "secret word", "i": true}', "i is not a whole number"),
    (b'{"user": "u9", "text": "' + b"x" * jsonl.MAX_LINE_BYTES + b'"}', "longer than"),
]


@pytest.mark.parametrize(("line", "fault"), BROKEN)
def test_a_broken_line_is_named_by_number_and_stops_nothing_else(tmp_path: Path, line: bytes, fault: str) -> None:
    good = [{"user": "u1", "text": f"fine {n}"} for n in range(2)]
    source = write(tmp_path / "p.jsonl", good[0], line, good[1])
    population = load_people(source, None)
    assert [len(person.documents) for person in population.people] == [2]
    (warning,) = population.warnings
    assert warning.startswith("p.jsonl:2: ")
    assert fault in warning
    assert "secret" not in warning
    with pytest.raises(DataError, match=r"p\.jsonl:2: ") as caught:
        load_people(source, None, strict=True)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_of_nothing_but_faults_says_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no people; the first fault: p\.jsonl:1: not JSON"):
        load_people(write(tmp_path / "p.jsonl", b"nonsense"), None)
    with pytest.raises(DataError, match="cannot be read"):
        load_people(str(tmp_path / "missing.jsonl"), None)
    with pytest.raises(DataError, match="at least 1"):
        load_people(write(tmp_path / "q.jsonl", {"user": "u1", "text": "a"}), 0)


def test_many_faults_are_counted_and_not_all_listed(tmp_path: Path) -> None:
    lines = [b"nonsense"] * (jsonl.MAX_WARNINGS + 50)
    population = load_people(write(tmp_path / "p.jsonl", *lines, {"user": "u1", "text": "a"}), None)
    assert population.counts["broken_lines"] == jsonl.MAX_WARNINGS + 50
    assert len(population.warnings) == jsonl.MAX_WARNINGS + 1
    assert population.warnings[-1] == "p.jsonl: 50 more broken lines"


def test_a_byte_order_mark_and_blank_lines_are_no_fault(tmp_path: Path) -> None:
    source = write(
        tmp_path / "p.jsonl", b'\xef\xbb\xbf{"user": "u1", "text": "a"}', b"", b"  ", {"user": "u1", "text": "b"}
    )
    population = load_people(source, None)
    assert population.warnings == ()
    assert len(population.people[0].documents) == 2


@pytest.mark.parametrize(
    "user", ["../../etc/passwd", "jane@corp.example", "a b", "", "x" * 65, "José", ".hidden", "a/b"]
)
def test_a_name_that_is_an_address_or_a_path_becomes_a_label(user: str) -> None:
    name = jsonl.user_name(user)
    assert name == jsonl.user_name(user) != user
    assert jsonl.SAFE_USER.fullmatch(name)


def test_a_shared_conversation_is_test_for_all_if_it_is_test_for_one(tmp_path: Path) -> None:
    rows = [
        {"user": "u1", "text": "a", "split": "history", "group": "talk"},
        {"user": "u2", "text": "b", "split": "test", "group": "talk"},
        {"user": "u2", "text": "c", "split": "history"},
    ]
    population = load_people(write(tmp_path / "p.jsonl", *rows), None)
    assert {d.split for person in population.people for d in person.documents if d.group == "talk"} == {"test"}
    assert population.counts["documents_moved_to_test_with_their_group"] == 1


def test_a_conversation_on_both_sides_is_refused() -> None:
    span = (Span("a", True),)
    people = [
        Person("u1", (Document("d1", span, "history", 0, "talk"),)),
        Person("u2", (Document("d2", span, "test", 0, "talk"),)),
    ]
    with pytest.raises(DataError, match="1 conversations"):
        refuse_shared_conversations(people)
    refuse_shared_conversations(people[:1])


def test_repeated_test_texts_are_counted_over_all_people(tmp_path: Path) -> None:
    rows = [
        {"user": "u1", "text": "Same  thing", "split": "history"},
        {"user": "u2", "text": "same thing", "split": "test"},
        {"user": "u2", "text": "another", "split": "test"},
    ]
    counts = load_people(write(tmp_path / "p.jsonl", *rows), None).counts
    assert (counts["test_documents"], counts["test_documents_repeating_history"]) == (2, 1)


def test_people_with_enough_test_come_first_then_those_with_more_history(tmp_path: Path) -> None:
    def rows(user: str, words: int, tests: int) -> list[dict[str, Any]]:
        history = [{"user": user, "text": "w " * words, "split": "history"}]
        return history + [{"user": user, "text": "t", "split": "test"} for _ in range(tests)]

    lines = rows("much", 50, 1) + rows("little", 5, 2) + rows("more", 9, 2)
    people = load_people(write(tmp_path / "p.jsonl", *lines), None).people
    assert [person.user for person in people] == ["more", "little", "much"]
