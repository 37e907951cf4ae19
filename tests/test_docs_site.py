"""The site builds strictly, shows every public module and command, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import confide

ROOT = Path(confide.__file__).parent
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\"' >]+")


class _Settings(yaml.SafeLoader):  # type: ignore[misc] # yaml says nothing of its types
    """Reads mkdocs.yml, whose tags are for mkdocs alone."""


def pages(nav: object) -> list[str]:
    """Return the files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return [page for each in below for page in pages(each)]


def test_every_page_is_in_the_navigation_and_nothing_else() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Settings)
    made = {"protocol.md", "threats.md", "changes.md"}
    assert set(pages(settings["nav"])) == {path.name for path in ROOT.glob("docs/*.md")} | made
    assert settings["strict"] and settings["theme"]["font"] is False


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    site = tmp_path / "site"
    html = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {name: found for name, text in html.items() if (found := LOADED.findall(text))} == {}
    for path in ROOT.glob("privacy/**/*.py"):
        if not any(part.startswith("_") for part in path.relative_to(ROOT).with_suffix("").parts):
            assert f"reference/{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.html" in html
    assert "confide device forget" in html["commands.html"] and "--before" in html["commands.html"]
    assert html["guarantees.html"].count("<math") > 20 and "arithmatex" not in html["guarantees.html"]


def test_the_search_for_what_is_loaded_finds_it_and_lets_links_be() -> None:
    assert LOADED.findall('<script src="https://cdn.example/x.js">') and LOADED.findall("<link href=//a.example/x.css>")
    assert not LOADED.findall('<a href="https://example.org">') and not LOADED.findall('<script src="assets/x.js">')
