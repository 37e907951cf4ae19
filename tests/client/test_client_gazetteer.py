"""Names and places by lists: what counts alone, what counts beside another name, what never does."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.gazetteer import Gazetteer, load_gazetteer
from client.scrub_engine import LANGUAGE, load_engine

LISTS = Gazetteer(
    given=frozenset({"jennifer", "will", "grace", "paris", "olga", "sandy"}),
    surnames=frozenset({"smith", "brown", "torres", "krylova"}),
    places=frozenset({"paris", "bergen", "reading", "new york", "smallville"}),
    big=frozenset({"paris", "new york"}),
    words=frozenset({"will", "the", "reading", "we", "met", "in", "was", "and", "yesterday", "brown", "at", "with"}),
    nouns=frozenset({"grace", "ferry", "report", "company", "sandy"}),
)


def people(text: str) -> list[str]:
    return [text[start:end] for start, end in LISTS.people(text)]


def places(text: str) -> list[str]:
    return [text[start:end] for start, end in LISTS.found_places(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("We met Jennifer at the ferry.", ["Jennifer"]),
        ("We met Jennifer's company.", ["Jennifer"]),
        ("Will was in.", []),
        ("We met Will Smith and Grace Brown.", ["Will Smith", "Grace Brown"]),
        ("We met Jennifer Q. Aldebrandt yesterday.", ["Jennifer Q. Aldebrandt"]),
        ("We met J. Torres yesterday.", ["Torres"]),
        ("We met Xanthe Quillfeather at the ferry.", ["Xanthe Quillfeather"]),
        ("The Report was in the Ferry Company.", []),
        ("We met in Paris.", []),
        ("we met olga krylova yesterday", ["olga krylova", "olga"]),
        ("we met jennifer and grace and will.", ["jennifer"]),
        ("We met jennifer.", []),
        ("a@Jennifer.org #Jennifer /Jennifer", []),
        ("Der Zug nach Grünau fährt heute nicht, sagt der Herr Xaver Quill.", []),
    ],
)
def test_what_reads_as_a_name(text: str, found: list[str]) -> None:
    """The last one is no English: there a strange capitalised word is most often a noun."""
    assert people(text) == found


def test_what_reads_as_a_place() -> None:
    assert places("We met in Paris, in New York and in Bergen.") == ["Paris", "New York", "Bergen"]
    assert places("Reading was in.") == [], "a place that is a word is no place"


def test_a_name_that_is_english_words_alone_is_none() -> None:
    assert LISTS.is_no_name("Ferry Company") and not LISTS.is_no_name("Ferry Smith") and not LISTS.is_no_name("Xyzzy")


def test_the_lists_hold_the_world(tmp_path: Path) -> None:
    lists = load_gazetteer(Path(load_engine().nlp_engine.nlp[LANGUAGE].path))  # type: ignore[attr-defined]
    assert {"jennifer", "olga", "mehmet", "ingrid", "priya"} <= lists.given and len(lists.given) > 15_000
    assert {"smith", "nowak", "andersson"} <= lists.surnames and {"bergen", "goiânia", "norway"} <= lists.places
    assert {"monday", "will", "run"} <= lists.words and "jennifer" not in lists.words
