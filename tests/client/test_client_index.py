"""The personal index: scores against another library's, equal after any coming and going, newest among equals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client import vault_key
from client.documents import Span
from client.encoder import HashedEncoder
from client.importers import add
from client.lexical import Lexicon, words
from client.library import Kept, passages
from client.retrieve import BM25, BY_KEYWORDS, DENSE, EXPANDED, IDENTITY, METHODS, RECENCY, TFIDF, PersonalIndex
from client.vault import Vault
from client.vault_key import Opener

TEXTS = (
    "The ferry to the island leaves at dawn.",
    "My sister keeps bees, and the bees keep her.",
    "The train was late; the ferry was not.",
    "Bees, bees, bees and honey for the island.",
    "Accounts for the year, the boring part.",
    "I lost my keys on the ferry, then found them at the train.",
)
TEXT = st.lists(st.sampled_from(("ferry", "bee", "train", "honey", "key")), min_size=1, max_size=8).map(" ".join)


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    with Vault.create(tmp_path / "home", Opener(passphrase="x")) as made:
        folder = tmp_path / "notes"
        folder.mkdir()
        for i, text in enumerate(TEXTS):
            (folder / f"{i}.txt").write_text(text)
        add(made, folder)
        yield made


def shown(index: PersonalIndex, query: str, k: int = 3, **how: object) -> list[str]:
    return [hit.passage.text for hit in index.search(query, k, **how)]  # type: ignore[arg-type]


def filled(texts: list[str]) -> Lexicon:
    lexicon = Lexicon()
    for text in texts:
        lexicon.add(text)
    return lexicon


def test_bm25_is_that_of_another_library() -> None:
    peer = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    peer.index([words(text) for text in TEXTS], show_progress=False)
    ours = filled(list(TEXTS))
    for query in ("ferry dawn", "bees honey island", "train keys", "year"):
        known = [word for word in words(query) if word in peer.vocab_dict]
        # Lucene leaves out the constant k1 + 1 = 2.2: the order is the same.
        assert np.allclose(ours.bm25(query) / 2.2, peer.get_scores(known), atol=1e-5), query


def test_tfidf_is_the_cosine_of_the_formula() -> None:
    ours, n = filled(list(TEXTS)), len(TEXTS)
    terms = sorted({word for text in TEXTS for word in words(text)})
    frequency = {term: sum(term in words(text) for text in TEXTS) for term in terms}

    def vector(text: str) -> np.ndarray:
        counts = [words(text).count(term) for term in terms]
        return np.array(
            [
                (1 + np.log(c)) * np.log((n + 1) / (frequency[t] + 0.5)) if c else 0
                for c, t in zip(counts, terms, strict=True)
            ]
        )

    query = "bees on the ferry"
    wanted = [
        vector(query) @ vector(text) / np.linalg.norm(vector(query)) / np.linalg.norm(vector(text)) for text in TEXTS
    ]
    assert np.allclose(ours.tfidf(query), wanted)


@given(st.lists(TEXT, min_size=1, max_size=8), st.sets(st.integers(0, 7)), TEXT)
@settings(max_examples=60, deadline=None)
def test_what_came_and_went_leaves_no_trace_in_a_score(texts: list[str], gone: set[int], query: str) -> None:
    moved = filled(texts)
    moved.bm25(query), moved.tfidf(query)
    left = [i for i in range(len(texts)) if i not in gone]
    for i in set(range(len(texts))) - set(left):
        moved.drop(i)
    fresh = filled([texts[i] for i in left])
    for score in (Lexicon.bm25, Lexicon.tfidf):
        assert np.allclose(score(moved, query)[left], score(fresh, query))
        assert not score(moved, query)[sorted(gone & set(range(len(texts))))].any()


@pytest.mark.parametrize("methods", [(BM25,), (TFIDF,), (DENSE,), METHODS, (BM25, RECENCY)])
def test_every_method_finds_what_a_query_names(vault: Vault, methods: tuple[str, ...]) -> None:
    index = PersonalIndex(vault, HashedEncoder(256))
    assert shown(index, "honey", 1, methods=methods) == [TEXTS[3]]
    assert index.search("honey", 0) == []


def test_the_newer_comes_first_among_equals(vault: Vault) -> None:
    with vault.change() as rows:
        for key, written in (("0.txt", 100), ("2.txt", 300), ("5.txt", 200)):
            rows.execute("UPDATE document SET written = ? WHERE key = ?", (written, key))
        rows.execute("UPDATE document SET spans = '[[\"The ferry.\", 1, 1]]' WHERE key IN ('0.txt', '2.txt', '5.txt')")
    index = PersonalIndex(vault)
    assert [hit.passage.written for hit in index.search("ferry", 3)] == [300, 200, 100]


def test_queries_are_made_three_ways(vault: Vault) -> None:
    index = PersonalIndex(vault)
    question = "When does the ferry to that unknownword island leave?"
    assert index.query(question, IDENTITY) == question
    assert index.query(question, BY_KEYWORDS).split() == ["island", "ferry"]
    assert index.query("zebra", BY_KEYWORDS) == "zebra"
    expanded = index.query("dawn", EXPANDED).split()
    assert expanded[0] == "dawn" and {"ferry", "island", "leaves"} <= set(expanded)


def test_embeddings_are_made_once_and_kept_in_the_vault(vault: Vault) -> None:
    class Counting(HashedEncoder):
        texts = 0

        def encode(self, texts):  # type: ignore[no-untyped-def]
            Counting.texts += len(texts)
            return super().encode(texts)

    PersonalIndex(vault, Counting(64))
    assert Counting.texts == len(TEXTS) == vault.one("SELECT count(*) FROM vector")
    index = PersonalIndex(vault, Counting(64))
    index.refresh()
    assert Counting.texts == len(TEXTS)


def test_a_source_that_is_switched_off_is_not_found_until_it_is_on_again(vault: Vault) -> None:
    index = PersonalIndex(vault, HashedEncoder(64))
    for granted, number in ((0, 0), (1, len(TEXTS))):
        with vault.change() as rows:
            rows.execute("UPDATE consent SET granted = ? WHERE purpose = 'own'", (granted,))
        index.refresh()
        assert len(index) == number and bool(shown(index, "ferry")) == bool(granted)


def test_new_documents_are_found_and_a_changed_one_in_its_new_words(vault: Vault, tmp_path: Path) -> None:
    index = PersonalIndex(vault, HashedEncoder(64))
    (tmp_path / "notes" / "new.txt").write_text("A zeppelin came by.")
    (tmp_path / "notes" / "0.txt").write_text("The ferry is cancelled.")
    add(vault, tmp_path / "notes")
    index.refresh()
    assert shown(index, "zeppelin", 1) == ["A zeppelin came by."]
    assert TEXTS[0] not in shown(index, "ferry", 9) and "The ferry is cancelled." in shown(index, "ferry", 9)
    assert shown(index, "ferry island dawn", 9) == shown(
        PersonalIndex(vault, HashedEncoder(64)), "ferry island dawn", 9
    )


def test_types_have_retrievers_of_their_own_and_can_be_chosen(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("title,rating,timestamp\nThe Ferry,4.5,10\nBees,2,20\n")
    add(vault, tmp_path / "ratings.csv")
    index = PersonalIndex(vault)
    assert shown(index, "ferry", 1, types=("rating",)) == ["Rated 4.5: The Ferry"]
    assert "Rated 4.5: The Ferry" in shown(index, "ferry", 6) and "Rated 4.5: The Ferry" not in shown(
        index, "ferry", 6, types=("note",)
    )


def test_long_documents_are_cut_at_lines_and_lose_no_word() -> None:
    text = "\n".join(f"line {i} " + "word " * 40 for i in range(30)) + " ".join(str(i) for i in range(500))
    kept = Kept(1, 1, "note", "t", None, (Span("From: b\n", own=False), Span(text, own=True)), held_back=False)
    found = passages(kept)
    assert max(len(p.text.split()) for p in found) <= 180 and len(found) > 9
    assert " ".join(p.text for p in found).split() == f"From: b\n{text}".split()
    assert [p.part for p in found] == list(range(len(found)))
