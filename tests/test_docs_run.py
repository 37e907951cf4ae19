"""The commands that pages show are typed, in their order, in an empty folder; what a page shows as output came out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.documents import ROOT, Block, blocks
from tests.federation_by_command import made_basis

PATIENCE_S = 900.0
SITE = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
ALL = [block for path in SITE for block in blocks(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))]


def sessions(mark: str) -> dict[str, list[Block]]:
    """Return the blocks to be run, by page and name of their session: those of one name share a folder."""
    found: dict[str, list[Block]] = {}
    for block in ALL:
        if block.mark == mark:
            found.setdefault(f"{block.page}: {block.about}", []).append(block)
    return found


def lacking(expected: list[str], told: str) -> list[str]:
    """Return the lines that a page shows and that did not come out in this order; `…` stands for anything."""
    lines = [" ".join(line.split()) for line in told.splitlines()]
    at, missing = 0, []
    for line in expected:
        parts = [re.escape(part.strip()) for part in re.split("…", " ".join(line.split()))]
        pattern = re.compile(r"\s*.*?\s*".join(parts))
        place = next((n for n in range(at, len(lines)) if pattern.fullmatch(lines[n])), None)
        if place is None:
            missing.append(line)
        else:
            at = place + 1
    return missing


class Shell:
    """Types lines in a folder; `confide` is the one of this checkout, everything that it writes lies in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, programs = folder, folder / ".programs"
        programs.mkdir()
        (folder / "docs").symlink_to(ROOT / "docs")
        for name, words in {"confide": "-P -m confide", "python": ""}.items():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (programs / name).chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONFIDE_", "FLWR_"))}
        cache = os.environ.get("CONFIDE_CACHE") or str(Path.home() / ".cache" / "confide")
        self.environment = kept | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "CONFIDE_HOME": str(folder / "device"),
            "CONFIDE_CACHE": cache,
            "CONFIDE_PASSPHRASE": "for this test alone",
            "COLUMNS": "100",
        }
        self.behind: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> str:
        """Return what a line wrote; raises AssertionError with it where the line fails."""
        if line.endswith(" &"):
            return self._behind(line.removesuffix(" &"))
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}"
        return done.stdout

    def _behind(self, line: str) -> str:
        """Start a program that keeps running, and return what it wrote once it has said its first line."""
        path = self.folder / f".behind-{len(self.behind)}"
        with path.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.behind.append(process)
        end = time.monotonic() + PATIENCE_S
        while not path.read_bytes().endswith(b"\n"):
            assert process.poll() is None and time.monotonic() < end, f"{line}\n{path.read_text()[-3000:]}"
            time.sleep(0.1)
        return path.read_text()

    def end(self) -> None:
        for process in reversed(self.behind):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    opened = Shell(folder)
    try:
        yield opened
    finally:
        opened.end()


def typed(folder: Path, session: list[Block], model: Path) -> None:
    with shell(folder) as opened:
        if "tiny model" in session[0].about:
            (folder / "model").symlink_to(model)
            made_basis(folder, model)
        for block in session:
            for line, expected in block.steps():
                told = opened.type(line)
                assert lacking(expected, told) == [], f"{block.page}:{block.line}: {line}\n{told}"


@pytest.mark.parametrize("name", sessions("run"))
def test_what_a_page_shows_runs(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    if name.endswith(": apps"):
        pytest.importorskip("marimo", reason="no marimo here: `make docs`")
    typed(tmp_path, sessions("run")[name], tiny_model_dir)


@pytest.mark.slow
@pytest.mark.parametrize("name", sessions("run slowly"))
def test_what_a_page_shows_runs_slowly(name: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    typed(tmp_path, sessions("run slowly")[name], tiny_model_dir)


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    bare = [f"{b.page}:{b.line}" for b in ALL if b.shell and not (b.mark and b.about)]
    assert bare == []


def test_the_comparison_of_outputs_sees_what_is_missing_and_what_is_in_another_order() -> None:
    told = "one  two\nthree 3 four\nfive\n"
    assert lacking(["one two", "three … four", "five"], told) == []
    assert lacking(["three 4 four"], told) == ["three 4 four"]
    assert lacking(["five", "one two"], told) == ["one two"]


def test_a_line_that_fails_is_seen(tmp_path: Path) -> None:
    with shell(tmp_path) as opened:
        assert opened.type("echo one") == "one\n"
        with pytest.raises(AssertionError, match="false"):
            opened.type("false")
