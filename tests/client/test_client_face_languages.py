"""The page's words: every one translated, with the same parts, and the page served in the reader's language."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

import client.face
from client.device_cli import FLASH
from client.face.languages import ENGLISH, LOCALE, languages, preferred, translation, words
from client.face.page import SCREENS
from client.spoken import language_of, spoken
from tests.face_served import Face, served

FOLDER = Path(client.face.__file__).parent
PARTS = re.compile(r"\{\w+\}")


def said() -> set[str]:
    """Return what templates and scripts say through `_`, and commands through `spoken`."""
    rows = list(extract_from_dir(FOLDER, [("**.html", "jinja2"), ("**.js", "javascript")], keywords={"_": None}))
    commands = list(extract_from_dir(FOLDER.parent, [("*_cli.py", "python")], keywords={"spoken": None}))
    assert len(commands) > 10
    return {str(row[2]) for row in (*rows, *commands)} | set(SCREENS.values()) | {FLASH}


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Face]:
    with served(tmp_path_factory.mktemp("languages"), tiny_model_dir) as made:
        yield made


@pytest.mark.parametrize("language", [name for name in languages() if name != ENGLISH])
def test_every_word_is_translated_with_the_same_parts_and_none_is_left_over(language: str) -> None:
    found = words(language)
    assert set(found) == said() and len(found) > 100
    for english, other in found.items():
        assert sorted(PARTS.findall(english)) == sorted(PARTS.findall(other)), english
        assert not re.search(r"[<>]", other) and translation(language).gettext(english) == other


@pytest.mark.parametrize("language", [name for name in languages() if name != ENGLISH])
def test_a_catalogue_is_whole(language: str) -> None:
    """What msgfmt --check looks at: nothing fuzzy, nothing obsolete, nothing empty, a charset, parts that fit."""
    with (LOCALE / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    assert not catalog.obsolete and catalog.charset == "utf-8" and str(catalog.locale) == language
    assert [message.id for message, _ in catalog.check()] == []
    for message in catalog:
        assert not message.fuzzy or not message.id, message.id
        assert not message.id or message.string, message.id
        assert not message.id or str(message.string)[:1].isspace() == str(message.id)[:1].isspace(), message.id


@pytest.mark.parametrize(
    "environment, wanted",
    [({}, "en"), ({"LANG": "de_DE.UTF-8"}, "de"), ({"LANG": "C.UTF-8"}, "en"), ({"LC_ALL": "C", "LANG": "de"}, "en"),
     ({"LANGUAGE": "de:en", "LANG": "en_US.UTF-8"}, "de"), ({"LANG": "xx"}, "xx")],
)  # fmt: skip
def test_commands_read_the_language_as_gettext_does(environment: dict[str, str], wanted: str) -> None:
    assert language_of(environment) == wanted


def test_a_commands_line_comes_in_german_and_else_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert spoken("skipped {count}: {reason}", count=2, reason="x") == "skipped 2: x"
    monkeypatch.setenv("LANG", "de_AT.UTF-8")
    assert spoken("skipped {count}: {reason}", count=2, reason="x") == "ausgelassen 2: x"
    monkeypatch.setenv("LANG", "xx_XX.UTF-8")
    assert spoken("skipped {count}: {reason}", count=2, reason="x") == "skipped 2: x"


@pytest.mark.parametrize("name", [path.name for path in (FOLDER / "templates").glob("*.html")])
def test_no_template_says_a_word_outside_gettext(name: str) -> None:
    text = (FOLDER / "templates" / name).read_text()
    bare = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|<[^>]*>", " ", text, flags=re.DOTALL).replace("confide", " ")
    assert not re.search(r"[A-Za-z]{2,}", bare), bare.split()
    for value in re.findall(r'(?:aria-label|placeholder|title|alt)="([^"]*)"', text):
        assert value.startswith("{{"), value


@pytest.mark.parametrize(
    "header, wanted",
    [("", "en"), ("de", "de"), ("de-AT,en;q=0.5", "de"), ("fr,de;q=0.2", "de"), ("en,de", "en"), ("de;q=0", "en"),
     ("en;q=0.3,de;q=0.9", "de"), ("x" * 5000, "en"), ("de;q=x", "en"), (";;,,=", "en")],
)  # fmt: skip
def test_the_readers_language_is_the_first_that_there_is(header: str, wanted: str) -> None:
    assert preferred(header) == wanted


def test_the_page_comes_in_german_where_that_is_read(face: Face) -> None:
    page = face.request("GET", "/", token="", Accept_Language="de-DE,de;q=0.9")[2].decode()
    assert '<html lang="de">' in page and "Weiterschreiben" in page and "Nothing on this page" not in page
    script = json.loads(face.request("GET", "/words.json", token="", Accept_Language="de")[2])
    assert script["Accept"] == "Übernehmen"
    assert '<html lang="en">' in face.request("GET", "/", token="")[2].decode()
    assert json.loads(face.request("GET", "/words.json", token="")[2]) == {}
