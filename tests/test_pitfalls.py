"""docs/pitfalls.md names tests and bugs that exist, for every mistake, and leaves no planted bug out."""

from __future__ import annotations

import re
from pathlib import Path

import confide
from simulation.mechanism.planting import bug_names

ROOT = Path(confide.__file__).parent
PAGE = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
MISTAKES = re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]


def test_every_mistake_names_tests_that_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(MISTAKES) >= 24
    for mistake in MISTAKES:
        named = re.findall(r"`(test_\w+)`", mistake)
        assert len(named) >= 2, mistake.splitlines()[0]
        missing = [name for name in named if f"def {name}(" not in sources]
        assert not missing, missing


def test_mistakes_are_numbered_and_stand_under_a_severity() -> None:
    assert [int(mistake.split(".")[0]) for mistake in MISTAKES] == list(range(1, len(MISTAKES) + 1))
    assert re.findall(r"^## (\w+)", PAGE, re.MULTILINE) == ["Critical", "Serious", "Costly"]


def test_every_planted_bug_stands_under_its_mistake_and_no_other_is_named() -> None:
    planted = {
        name
        for each in re.findall(r"Plant\s((?:`[a-z-]+`[,.]?\s*)+)", PAGE)
        for name in re.findall(r"`([a-z-]+)`", each)
    }
    assert planted == set(bug_names())
