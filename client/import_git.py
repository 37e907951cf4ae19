"""A git repository as text: one document a commit, the author's own or another's.

A commit's message and the lines that it adds are its author's words; file names and other people's commits are
context. A file that a commit renames or copies adds no lines, whoever wrote them. `git` runs with nothing of the
repository's own configuration that could start a program: no signature check, no external diff, no text conversion, no
file watcher, no pager, no fetch of what a partial clone lacks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator
from pathlib import Path

from client.documents import Span
from client.imported import CODE, Event, Skipped, Text
from privacy.errors import DataError

MAX_ADDED_CHARACTERS = 6_000
_SEPARATOR = "\x1e"
_FORMAT = f"--format={_SEPARATOR}%H%x1f%ae%x1f%an%x1f%at%x1f%s%x1f%b%x1f"
_SAFE = (
    *("-c", "log.showSignature=false", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "diff.external=", "-c", "protocol.allow=never", "--no-pager"),
)
_LOG = (
    *("log", "--no-color", "--no-ext-diff", "--no-textconv", "--no-show-signature", "--no-merges", "--reverse"),
    *(
        "--unified=0",
        "--patch",
        "--find-renames",
        "--find-copies",
        "--encoding=UTF-8",
        "--ignore-submodules=all",
        "--submodule=short",
    ),
)


def own_address(repository: Path) -> str:
    """Return the address that this repository's commits would carry, "" without one."""
    return _git(repository, "config", "user.email").strip()


def read_commits(repository: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the repository's commits, oldest first; own are those whose author's address or name is in `owner`."""
    mine = {name.casefold() for name in owner}
    for fields in _commits(repository):
        if isinstance(fields, Skipped):
            yield fields
            continue
        digest, address, name, time, subject, body, patch = fields
        own = bool({address.casefold(), name.casefold()} & mine)
        spans = [Span(f"Commit by {'me' if own else name}:\n", own=False)]
        spans.append(Span("\n".join(filter(None, (subject, body.strip()))) + "\n", own=own))
        spans += _added(patch, own)
        written = float(time) if time.isdigit() else None
        yield Text(digest, CODE, subject, written, tuple(spans))


def code_of_all(repository: Path) -> Iterator[tuple[str, Text]]:
    """Yield (author's address, commit) of everybody, oldest first: the added lines are own, the message is context.

    Commits that add no line are left out. For the evaluation of code, where every author is a person of their own.
    """
    for fields in _commits(repository):
        if not isinstance(fields, Skipped):
            digest, address, _, time, subject, _, patch = fields
            added = tuple(_added(patch, own=True))
            if any(span.own and span.text.strip() for span in added):
                spans = (Span(f"{subject}\n", own=False), *added)
                yield address.casefold(), Text(digest, CODE, subject, float(time) if time.isdigit() else None, spans)


def _commits(repository: Path) -> Iterator[list[str] | Skipped]:
    """Yield hash, address, name, time, subject, body and patch of every commit that can be read, oldest first."""
    if not _git(repository, "rev-parse", "--verify", "--quiet", "HEAD").strip():
        yield Skipped(repository.name, "no commit yet")
        return
    for record in _git(repository, *_LOG, _FORMAT).split(_SEPARATOR)[1:]:
        fields = record.split("\x1f", 6)
        yield fields if len(fields) == 7 else Skipped("a commit", "its message holds control characters")


def _added(patch: str, own: bool) -> Iterator[Span]:
    """Yield file names as context and the added lines, up to a bound; binary files and removed lines are left out."""
    left, file = MAX_ADDED_CHARACTERS, ""
    lines: list[str] = []
    for line in patch.splitlines():
        if line.startswith("+++ "):
            if lines:
                yield Span("".join(lines), own=own)
                lines = []
            file = line.removeprefix("+++ ").removeprefix("b/")
        elif line.startswith("+") and len(line) > 1 and left > 0:
            if file:
                yield Span(f"{file}:\n", own=False)
                file = ""
            lines.append(line[1 : left + 1] + "\n")
            left -= len(line)
    if lines:
        yield Span("".join(lines), own=own)


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", *_SAFE, "-C", str(repository), *arguments]
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "GIT_TERMINAL_PROMPT": "0"}
    environment |= {
        "HOME": str(Path.home()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
    }
    try:
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
    except FileNotFoundError:
        raise DataError("a git repository needs the program git") from None
    if done.returncode > 1:
        raise DataError(f"{repository.name}: git cannot read this repository")
    return done.stdout.decode(errors="replace")
