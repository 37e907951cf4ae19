"""What the documents show: code blocks with their marks, the commands in them, and what is wrong with a command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import click

import confide
from privacy.errors import ConfideError
from simulation.config import RunConfig, load_config

ROOT = Path(confide.__file__).parent
SHELLS = ("sh", "bash", "console")
FENCE = re.compile(r"^```+\s*(\S*)[^\n]*\n(.*?)^```+\s*$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"<!--\s*(run|run slowly|not run):\s*((?:(?!-->).)*?)\s*-->\s*\Z", re.DOTALL)
# A line that is a form and no command: it has a choice, something left out, or a part that may be left out.
FORM = re.compile(r"\||…|\.\.\.|\[")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it begins, its language, its text, and the mark in the comment before it."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    about: str

    @property
    def shell(self) -> bool:
        return self.language in SHELLS

    def steps(self) -> list[tuple[str, list[str]]]:
        """Return each command with the lines that the page shows as its output, none for blocks without prompts."""
        found: list[tuple[str, list[str]]] = []
        prompted = self.language == "console"
        for line in re.sub(r"\s*\\\n\s*", " ", self.text).splitlines():
            text = line.strip()
            if prompted and not text.startswith("$ "):
                if found and text:
                    found[-1][1].append(text)
            elif text and not text.startswith("#"):
                found.append((re.sub(r"\s+#\s.*$", "", text.removeprefix("$ ")), []))
        return found


def blocks(page: str, text: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        kind, about = (mark.group(1), " ".join(mark.group(2).split())) if mark else ("", "")
        found.append(Block(page, line, match.group(1), match.group(2), kind, about))
    return found


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """Yield every command of ours that a page shows, and whether it stands in a block, to be typed as it is."""
    for block in blocks("", text):
        for line, _ in block.steps():
            if block.shell or ours(line):
                yield line, True
    rest = FENCE.sub("", text)
    for line in re.findall(r"^ {4}(\S.*)$", rest, flags=re.MULTILINE):
        if ours(line):
            yield line, True
    for line in re.findall(r"`([^`\n]+)`", rest):
        if ours(line):
            yield line, False


def ours(line: str) -> bool:
    return bool(re.match(r"(?:\.venv/bin/)?(?:confide|make) [a-z|-]|python -m (?:\w+\.)+\w|deploy/\w", line))


def fault(line: str, exact: bool) -> str:
    """Return what is wrong with a command, "" for nothing: a name, option, value or setting that does not exist.

    With `exact` the line is one that a reader types: whatever the command wants must be there too.
    """
    if line.endswith("|| true"):  # shown because it is refused: the page shows with which words
        return ""
    line = re.sub(r'"\$\(.*?\)"(?= |$)', "VALUE", line)  # what a shell fills in
    line = re.split(r"\s+(?:2?>|\|\||&&|&$)", line)[0]
    try:
        words = shlex.split(line)
    except ValueError:
        return f"no shell reads this: {line}"
    words[0] = words[0].removeprefix(".venv/bin/")
    if words[0] == "make":
        targets = {
            name for word in words[1:] if "=" not in word for name in word.split("|") if re.match(r"[a-z]", name)
        }
        return ", ".join(sorted(targets - make_targets()))
    if words[0] == "python" and words[1:2] == ["-m"]:
        return "" if module_exists(words[2]) else words[2]
    if words[0].startswith("deploy/"):
        return "" if (ROOT / words[0].rstrip("/")).exists() else words[0]
    if words[0] != "confide":
        return ""
    if FORM.search(re.sub(r"\"[^\"]*\"|'[^']*'", "", line)):
        return form_fault(line)
    return typed_fault(words[1:], exact)


def form_fault(line: str) -> str:
    """Return what a form names that does not exist: alternatives between bars, brackets around what may be left out."""
    alternatives = [re.sub(r"[\[\]…]|\.\.\.", " ", part).split() for part in line.split(" | ")]
    first = alternatives[0][1:]
    _, rest = walked(first)
    group = first[: max(len(first) - len(rest) - 1, 0)]
    faults = []
    for number, words in enumerate(alternatives):
        for path in expanded(words[1:] if number == 0 else [*group, *words]):
            command, rest = walked(path)
            if rest and isinstance(command, click.Group) and re.match(r"[a-z]", rest[0]):
                faults.append(rest[0])
            faults += unknown_options(command, rest)
    return ", ".join(faults)


def expanded(words: Sequence[str]) -> list[list[str]]:
    """Return the words with each `a|b` as one list a choice."""
    found: list[list[str]] = [[]]
    for word in words:
        found = [[*before, choice] for before in found for choice in word.split("|")]
    return found


def walked(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """Return the command that the words lead to, loaded, and the words that are left."""
    command: click.Command = confide.confide
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        below = top(rest[0]) if command is confide.confide else command.commands.get(rest[0])
        if below is None:
            break
        command = below
        rest.pop(0)
    return command, rest


@cache
def top(name: str) -> click.Command | None:
    return confide.confide.get_command(click.Context(confide.confide), name)


def unknown_options(command: click.Command, words: Sequence[str]) -> list[str]:
    known = {"--help", "-h"} | {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


def typed_fault(words: list[str], exact: bool) -> str:
    """Return what click itself, and the configuration of a run, say against a command line; nothing is run."""
    command, rest = walked(words)
    if isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        return rest[0]
    if unknown := unknown_options(command, rest):
        return ", ".join(unknown)
    if "--help" in rest or (isinstance(command, click.Group) and rest == ["--version"]):
        return ""
    if exact and not isinstance(command, click.Group):
        try:
            with command.make_context(str(command.name), list(rest), resilient_parsing=False):
                pass
        except click.ClickException as error:
            return error.format_message()
    return settings_fault(command, rest)


def settings_fault(command: click.Command, words: Sequence[str]) -> str:
    """Return what is wrong with the `--set` and `--grid` of `confide simulate`."""
    if command.name != "simulate":
        return ""
    given = [word for before, word in pairwise(words) if before in ("--set", "--grid")]
    singles = [f"{w.partition('=')[0]}={value}" for w in given for value in w.partition("=")[2].split(",")[:1]]
    try:
        load_config(None, [word for word in singles if not word.startswith("key=")])
    except ConfideError as error:
        return str(error)
    return ""


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def module_exists(name: str) -> bool:
    if name.partition(".")[0] not in ("privacy", "client", "server", "simulation", "deploy", "tests"):
        return True
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def setting_keys() -> set[str]:
    return set(RunConfig().flat())
