"""Every command that a document shows exists, with its options; those that can be run here are run."""

from __future__ import annotations

import re

import pytest

from tests.documents import ROOT, blocks, commands, fault, module_exists, setting_keys

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("privacy/*.md")])
FILES = (".json", ".key", ".md", ".py", ".log")
NAMED = {path.relative_to(ROOT).as_posix(): path for path in PAGES if path.name not in ("DECISIONS.md",)}


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "confide nothing",
        "confide model nothing",
        "confide model get|nothing",
        "confide model get --no",
        "confide device init | nothing | ask",
        "confide device ask | forget --nothing",
        "confide plan --people many --epsilon 2",
        "confide plan --epsilon 2",
        "confide server admit fed",
        "confide simulate --set roundz=2 --out run",
        "confide simulate --set rounds=two --out run",
        "confide simulate --grid roundz=2,4 --out runs",
        'confide device ask "no end',
        "python -m simulation.nothing",
        "deploy/local/nothing --folder run",
    ],
)
def test_the_search_for_what_does_not_exist_finds_it(line: str) -> None:
    assert fault(line, exact=True)


@pytest.mark.parametrize(
    "line",
    [
        "make test",
        "make demo | test | check",
        "confide model get x [--json]",
        "confide model get|list --json",
        "confide --help",
        "ls nothing",
        'confide device init | add PATH | ask "…"',
        "confide plan --people 500 --epsilon 2",
        "confide simulate [CONFIG.toml] [--set key=value …] --out RUN",
        "confide simulate --set rounds=2 --set privacy.epsilon=8 --out run",
        "python -m http.server",
        "deploy/local/up --folder run",
    ],
)
def test_the_search_passes_what_exists(line: str) -> None:
    assert not fault(line, exact=True)


@pytest.mark.parametrize("page", NAMED)
def test_a_page_names_commands_that_exist(page: str) -> None:
    text = NAMED[page].read_text(encoding="utf-8")
    assert [f"{line}: {said}" for line, exact in commands(text) if (said := fault(line, exact))] == []


@pytest.mark.parametrize("page", NAMED)
def test_a_page_names_settings_that_exist(page: str) -> None:
    """`privacy.epsilon` is a setting, `privacy.query` a module; anything else of that form is a mistake."""
    groups = sorted({key.partition(".")[0] for key in setting_keys() if "." in key})
    text = NAMED[page].read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_]+)(?:=[^`]*)?`", text)
    named = [name for name in named if not name.endswith(FILES)]
    assert [name for name in named if name not in setting_keys() and not module_exists(name)] == []


def test_blocks_are_read_with_their_marks_and_outputs() -> None:
    page = "a\n<!-- run: one -->\n```console\n$ confide \\\n    --help  # why\nout\n$ ls\n```\n"
    page += "\n```sh\n# no\nmake test\n```\n"
    first, second = blocks("p", page)
    assert first.mark == "run" and first.about == "one" and first.line == 3
    assert first.steps() == [("confide --help", ["out"]), ("ls", [])]
    assert second.mark == "" and second.steps() == [("make test", [])]
