"""Retrieval finds a person's own words, and the newest where nothing matches."""

from __future__ import annotations

from client.documents import Document, Span
from client.lexical import words
from client.retrieve import TextIndex


def document(number: int, own: str, partner: str = "") -> Document:
    spans = (Span(partner, own=False), Span(own, own=True))
    return Document(f"d{number}", spans, "history", number)


MEMORIES = [
    document(0, "The lighthouse keeper painted his boat."),
    document(1, "I bought a boat, a boat and a boat."),
    document(2, "Nothing much happened at the office."),
]


def test_the_best_comes_last_next_to_what_follows() -> None:
    found = TextIndex(MEMORIES).search("Which boat did you buy?", 2)
    assert found == ["The lighthouse keeper painted his boat.", "I bought a boat, a boat and a boat."]


def test_case_and_common_words_do_not_matter() -> None:
    assert words("The BOAT, and you!") == ["boat"]
    assert TextIndex(MEMORIES).search("THE LIGHTHOUSE of that", 1) == ["The lighthouse keeper painted his boat."]


def test_without_a_match_the_newest_are_found() -> None:
    for query in ("zebra", "", "the of and", "!?"):
        assert TextIndex(MEMORIES).search(query, 2) == [MEMORIES[1].own_text, MEMORIES[2].own_text], query


def test_equals_go_to_the_newer() -> None:
    twins = [document(n, f"Tea at {name}.") for n, name in enumerate(("noon", "dawn", "dusk"))]
    assert TextIndex(twins).search("tea", 1) == ["Tea at dusk."]


def test_only_own_words_are_indexed_and_shown() -> None:
    index = TextIndex([document(0, "I like plums.", partner="Do you like quinces? "), *MEMORIES])
    assert "plums" in index.search("plums", 1)[0]
    assert index.search("quinces", 1) == [MEMORIES[-1].own_text], "a partner's word finds nothing"
    assert not any("quinces" in text for text in index.search("plums quinces", 9))


def test_no_more_than_there_is_and_no_less_than_none() -> None:
    index = TextIndex(MEMORIES)
    assert len(index.search("boat", 99)) == 3 and index.search("boat", 0) == [] == index.search("boat", -1)
    assert TextIndex([]).search("boat", 3) == []
    assert TextIndex([document(0, "  "), document(1, "", partner="boat")]).search("boat", 3) == []


def test_documents_of_common_words_alone_are_kept() -> None:
    assert TextIndex([document(0, "so it is")]).search("it", 1) == ["so it is"]
    assert TextIndex([document(0, "so it is"), MEMORIES[0]]).search("boat", 1) == [MEMORIES[0].own_text]
