"""Prompts from what the vault holds: plain, contextual, persona, profile, summary or refined, fitted by tokens.

    context = template(kind){memories: best passages, oldest first; persona: attributes; profile: topics; advice}

The words stand in `prompts.toml`. Memories are chosen best first until the budget of tokens is used, then put in order
of time, so that the newest stands nearest to what follows: newer facts beat older ones, and the prompt says so. What a
newer memory says again or takes back is left out (`client.supersede`): what no longer holds must not be read twice.
Imported text passes the wall (`client.wall`) first.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from client.library import Passage
from client.supersede import current
from client.wall import as_data

PLAIN, CONTEXTUAL, PERSONA, PROFILE, REFINED = "plain", "contextual", "persona", "profile", "refined"
SUMMARY = "summary"  # the profile over sentences in place of passages, see `client.extract`
KINDS = (PLAIN, CONTEXTUAL, PERSONA, PROFILE, SUMMARY, REFINED)
CHAT, CONTINUE = "chat", "continue"
Count = Callable[[str], int]  # tokens of a text


@dataclass(frozen=True)
class About:
    """What is known of the person besides passages: generalised attributes, topics over all and by type, advice."""

    attributes: Mapping[str, str]
    topics: tuple[str, ...] = ()
    topics_by_type: tuple[tuple[str, tuple[str, ...]], ...] = ()
    advice: str = ""


NOBODY = About({})


@lru_cache(maxsize=1)
def templates() -> dict[str, Any]:
    """Return the words of the prompts."""
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text())


def context(
    kind: str, purpose: str, found: Sequence[Passage], about: About, budget: int, count: Count, wall: bool = True
) -> str:
    """Return what goes before a question or a text, at most `budget` tokens by `count`; "" where nothing is to say.

    `found` is best first. What does not fit is left out whole, the worst passages first; a first passage over the
    budget alone is cut at a word. Without `wall` imported text stands as it is: for measuring what the wall does.
    """
    words = templates()
    parts = {"rules": words[CHAT]["rules"], "memories": "", "persona": "", "profile": "", "advice": about.advice}
    if kind == PERSONA:
        parts["persona"] = _about_line(about)
    if kind in (PROFILE, SUMMARY):
        parts["profile"] = _profile(about, found)
    if kind == PLAIN:
        found = ()
    frame = filled(words[purpose][kind], parts)
    memories: list[tuple[float, int, str]] = []
    for rank, passage in enumerate(current(found)):
        line = memory_line(passage, wall)
        chosen = sorted([*memories, (passage.written or 0.0, -rank, line)])
        if count(_with(frame, parts, words, purpose, kind, chosen)) <= budget:
            memories = chosen
        elif not memories and (cut := _cut(line, budget - count(frame), count)):
            memories = [(0.0, 0, cut)]
            break
    if not memories and not parts["persona"] and not parts["profile"]:
        return ""
    return _with(frame, parts, words, purpose, kind, memories)


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Return the template with its parts; an empty part takes its paragraph along. A part is never a template."""
    paragraphs = []
    for paragraph in template.split("\n\n"):
        name = paragraph.strip("{}")
        text = parts.get(name, "") if paragraph == f"{{{name}}}" else paragraph
        if text:
            paragraphs.append(text)
    return "\n\n".join(paragraphs)


def memory_line(passage: Passage, wall: bool = True) -> str:
    """Return one passage as a prompt shows it: its date and type, then its text."""
    line = templates()["line"]
    text = as_data(passage.text) if wall else passage.text
    if passage.written is None:
        return _replaced(line["memory_undated"], type=passage.type, text=text)
    date = datetime.fromtimestamp(passage.written, UTC).date().isoformat()
    return _replaced(line["memory"], date=date, type=passage.type, text=text)


def _with(
    frame: str,
    parts: Mapping[str, str],
    words: Mapping[str, Any],
    purpose: str,
    kind: str,
    memories: Sequence[tuple[float, int, str]],
) -> str:
    if not memories:
        return frame
    return filled(words[purpose][kind], {**parts, "memories": "\n".join(line for _, _, line in memories)})


def _about_line(about: About) -> str:
    text = "; ".join(f"{name} {value}" for name, value in sorted(about.attributes.items()))
    return _replaced(templates()["line"]["persona"], text=text) if text else ""


def _profile(about: About, found: Sequence[Passage]) -> str:
    """Return the profile from the whole person down to the types of data that this task found something in."""
    line = templates()["line"]
    if not about.topics:
        return ""
    lines = [_replaced(line["profile"], text=", ".join(about.topics))]
    here = {passage.type for passage in found}
    lines += [
        _replaced(line["profile_type"], type=kind, text=", ".join(topics))
        for kind, topics in about.topics_by_type
        if kind in here and topics
    ]
    return "\n".join(lines)


def _replaced(template: str, **parts: str) -> str:
    """Return a line with its parts put in, in one pass: braces in a part stay what they are."""
    pieces, rest = [], template
    while "{" in rest:
        before, _, behind = rest.partition("{")
        name, _, rest = behind.partition("}")
        pieces += [before, parts[name]]
    return "".join([*pieces, rest])


def _cut(line: str, budget: int, count: Count) -> str:
    words = line.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(" ".join(words[:middle])) <= budget else (low, middle - 1)
    return " ".join(words[:low])
