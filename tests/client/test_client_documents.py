"""Spans and documents: what is a target, and where it lies in the text."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from client.documents import Document, Person, Span, latest, own_words, shortened, without_empty_spans

spans = st.lists(st.builds(Span, text=st.text(alphabet="ab \n", max_size=5), own=st.booleans(), loss=st.booleans()))


def document(*parts: Span, name: str = "d", split: str = "history", order: int = 0, group: str = "") -> Document:
    assert split in ("history", "test")
    return Document(name, tuple(parts), "test" if split == "test" else "history", order, group)


def test_targets_are_own_words_that_carry_loss() -> None:
    chat = document(
        Span("Me: ", own=False),
        Span("ask ", own=True),
        Span("<PERSON_1>", own=True, loss=False),
        Span(" today\n", own=True),
        Span("You: never mine\n", own=False),
    )
    assert chat.text == "Me: ask <PERSON_1> today\nYou: never mine\n"
    assert chat.own_text == "ask  today\n"
    assert chat.own_words == 2
    assert [chat.text[a:b] for a, b in chat.target_ranges()] == ["ask ", " today\n"]


@given(spans)
def test_ranges_are_disjoint_ordered_and_hold_exactly_the_targets(parts: list[Span]) -> None:
    d = document(*parts)
    ranges = list(d.target_ranges())
    assert "".join(d.text[a:b] for a, b in ranges) == d.own_text
    assert all(a < b for a, b in ranges)
    assert all(before[1] < after[0] for before, after in pairwise(ranges))


@given(spans)
def test_joining_spans_changes_neither_text_nor_targets(parts: list[Span]) -> None:
    joined = document(*without_empty_spans(parts))
    assert joined.text == document(*parts).text
    assert list(joined.target_ranges()) == list(document(*parts).target_ranges())
    assert all(span.text for span in joined.spans)


def test_a_person_hands_out_parts_in_time_order() -> None:
    late, early = document(Span("b c", True), name="late", order=9), document(Span("a", True), name="early", order=2)
    held_out = document(Span("x y z", True), name="held out", split="test", order=5)
    person = Person("u1", (late, held_out, early))
    assert [d.id for d in person.history] == ["early", "late"]
    assert [d.id for d in person.test] == ["held out"]
    assert own_words(person.history) == 3


def test_a_document_is_its_own_group_unless_it_shares_one() -> None:
    assert document(name="d7").group == "d7"
    assert document(name="d7", group="talk").group == "talk"


def test_the_latest_documents_hold_enough_own_words() -> None:
    documents = [document(Span("a b c", True), Span("not mine", False), name=str(n), order=n) for n in (2, 0, 1)]
    assert [d.id for d in latest(documents, 4)] == ["1", "2"]
    assert [d.id for d in latest(documents, 3)] == ["2"]
    assert latest(documents, 0) == ()
    assert [d.id for d in latest(documents, 100)] == ["0", "1", "2"]


@given(spans, st.integers(0, 30))
def test_a_shortened_document_is_a_prefix_with_the_same_targets(parts: list[Span], characters: int) -> None:
    whole, cut = document(*parts), shortened(document(*parts), characters)
    assert cut.text == whole.text[:characters]
    masks = [[span.target for span in d.spans for _ in span.text] for d in (whole, cut)]
    assert masks[1] == masks[0][:characters]
