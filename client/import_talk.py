"""Exports of conversations: WhatsApp's chat text, Slack's workspace folder, ChatGPT's `conversations.json`.

    WhatsApp   one text: "15/02/2024, 09:41 - Name: words" or "[15/02/2024, 09:41:12] Name: words", a day a document
    Slack      users.json, then <channel>/<day>.json, a list of messages; a day of a channel a document
    ChatGPT    a list of conversations, each a tree of messages; the branch that was shown last is the document

All three layouts are taken from documentation; none was tried on a real export yet. Whose words are the owner's is said
by name, user id or address; in ChatGPT's export they are the user's turns. Others' words are context, never a target.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.documents import Span, without_empty_spans
from client.imported import TALK, Event, Skipped, Text, decoded, read_bytes
from privacy.errors import DataError

Message = tuple[float | None, str, str, bool]  # when, who, what, whether it is the owner's

_STAMP = (
    r"\u200e?\[?(?P<a>\d{1,4})[/.\-](?P<b>\d{1,2})[/.\-](?P<c>\d{2,4}),? "
    r"(?P<hour>\d{1,2})[:.](?P<minute>\d{2})(?:[:.]\d{2})?(?:[ \u202f]?(?P<half>[AaPp])\.?[Mm]\.?)?\]?"
)
_LINE = re.compile(_STAMP + r"(?: -|) (?P<rest>.*)")
_SPOKEN = re.compile(r"(?P<who>[^:]{1,80}): (?P<what>.*)", re.DOTALL)
_NO_WORDS = re.compile(r"\u200e?(?:<Media omitted>|<[^>]*(?:attached|angehängt)[^>]*>|\w+ omitted)\s*$", re.IGNORECASE)
_MENTION = re.compile(r"<([@#!])([^>|]*)(?:\|([^>]*))?>")
_LINK = re.compile(r"<((?:https?|mailto)[^>|]*)(?:\|([^>]*))?>")


def is_whatsapp(place: Path) -> bool:
    """Return whether a text file begins as an exported chat does."""
    with place.open("rb") as file:
        head = file.read(4096).decode("utf-8-sig", errors="replace").splitlines()
    return len(head) > 1 and all(_LINE.match(line) for line in head[:1]) and any(_LINE.match(line) for line in head[1:])


def is_slack(place: Path) -> bool:
    """Return whether a folder is an unpacked workspace export."""
    return (place / "users.json").is_file() and (place / "channels.json").is_file()


def is_chatgpt(place: Path) -> bool:
    """Return whether a file is a list of ChatGPT's conversations."""
    if place.suffix.lower() != ".json":
        return False
    with place.open("rb") as file:
        return b'"mapping"' in file.read(200_000)


def read_whatsapp(place: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the days of a chat. Raises DataError where no name of `owner` speaks in it."""
    messages: list[Message] = []
    names = {name.casefold() for name in owner}
    lines = _whatsapp_lines(place)
    order = _day_order([stamp for stamp, _ in lines])
    for stamp, rest in lines:
        spoken = _SPOKEN.match(rest)
        if spoken is None or _NO_WORDS.match(spoken["what"]):
            continue  # the program's own notices, pictures
        who = spoken["who"].strip("\u200e ~")
        messages.append((_second(stamp, order), who, spoken["what"], who.casefold() in names))
    _require_owner(place, messages)
    yield from _days(place.name, place.stem, messages)


def read_slack(place: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the days of every channel. Raises DataError where nobody of `owner` speaks."""
    names: dict[str, str] = {}
    mine: set[str] = set()
    wanted = {each.casefold() for each in owner}
    for user in _json_list(place / "users.json"):
        profile = user.get("profile") or {}
        known = [user.get("id"), user.get("name"), user.get("real_name"), profile.get("email")]
        names[str(user.get("id"))] = str(profile.get("display_name") or user.get("real_name") or user.get("name"))
        if wanted & {str(each).casefold() for each in known if each}:
            mine.add(str(user.get("id")))
    everything: list[Message] = []
    events: list[Event] = []
    for path in sorted(place.glob("*/*.json")):
        key = path.relative_to(place).as_posix()
        try:
            day = _json_list(path)
        except DataError as error:
            events.append(Skipped(key, str(error).partition(": ")[2]))
            continue
        found: list[Message] = []
        for each in day:
            if each.get("type") != "message" or each.get("subtype") or not each.get("text"):
                continue  # joins, bots, files alone
            speaker = str(each.get("user"))
            found.append(
                (
                    _number(each.get("ts")),
                    names.get(speaker, speaker),
                    _slack_text(each["text"], names),
                    speaker in mine,
                )
            )
        everything += found
        if found:
            events.append(_talk(key, f"{path.parent.name} {path.stem}", sorted(found, key=lambda m: m[0] or 0.0)))
    _require_owner(place, everything)
    yield from events


def read_chatgpt(place: Path, _owner: Collection[str]) -> Iterator[Event]:
    """Yield the conversations."""
    for number, each in enumerate(_json_list(place)):
        key = str(each.get("conversation_id") or each.get("id") or number)
        mapping, at = each.get("mapping"), each.get("current_node")
        if not isinstance(mapping, dict):
            yield Skipped(f"{place.name}: conversation {number}", "has no tree of messages")
            continue
        messages: list[Message] = []
        seen: set[str] = set()
        while isinstance(at, str) and at in mapping and at not in seen:
            seen.add(at)
            node = mapping[at]
            if spoken := _chatgpt_message(node.get("message")):
                messages.append(spoken)
            at = node.get("parent")
        if messages:
            yield _talk(key, str(each.get("title") or "conversation"), messages[::-1])
        else:
            yield Skipped(f"{place.name}: conversation {number}", "holds no words")


def _chatgpt_message(message: Any) -> Message | None:
    if not isinstance(message, dict):
        return None
    role = (message.get("author") or {}).get("role")
    parts = (message.get("content") or {}).get("parts") or []
    text = "\n".join(part for part in parts if isinstance(part, str)).strip()
    if role not in ("user", "assistant") or not text:
        return None
    return _number(message.get("create_time")), "You" if role == "user" else "Assistant", text, role == "user"


def _whatsapp_lines(place: Path) -> list[tuple[re.Match[str], str]]:
    try:
        text = decoded(read_bytes(place))
    except ValueError:
        raise DataError(f"{place.name}: holds bytes that are no text") from None
    lines: list[tuple[re.Match[str], str]] = []
    for line in text.splitlines():
        if stamp := _LINE.match(line):
            lines.append((stamp, stamp["rest"]))
        elif lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}\n{line}")
    return lines


def _day_order(stamps: Sequence[re.Match[str]]) -> str:
    """Return how dates are written: "ymd", "mdy" or "dmy", by the numbers; the last where both would do."""
    firsts, seconds = {int(s["a"]) for s in stamps}, {int(s["b"]) for s in stamps}
    if firsts and min(firsts) > 31:
        return "ymd"
    if seconds and max(seconds) > 12:
        return "mdy"
    if firsts and max(firsts) > 12:
        return "dmy"
    months_first = [(int(s["c"]), int(s["a"]), int(s["b"])) for s in stamps]
    days_first = [(int(s["c"]), int(s["b"]), int(s["a"])) for s in stamps]
    return "mdy" if months_first == sorted(months_first) and days_first != sorted(days_first) else "dmy"


def _second(stamp: re.Match[str], order: str) -> float | None:
    numbers = dict(zip(order, (int(stamp["a"]), int(stamp["b"]), int(stamp["c"])), strict=True))
    hour = int(stamp["hour"])
    if half := stamp["half"]:
        hour = hour % 12 + (12 if half.lower() == "p" else 0)
    year = numbers["y"] + (2000 if numbers["y"] < 100 else 0)
    try:
        return datetime(year, numbers["m"], numbers["d"], hour, int(stamp["minute"]), tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _days(place: str, title: str, messages: Sequence[Message]) -> Iterator[Event]:
    days: dict[str, list[Message]] = {}
    for message in messages:
        day = datetime.fromtimestamp(message[0], UTC).date().isoformat() if message[0] is not None else "undated"
        days.setdefault(day, []).append(message)
    for day, those in days.items():
        yield _talk(f"{place}/{day}", title, those)


def _talk(key: str, title: str, messages: Sequence[Message]) -> Text:
    """Return a conversation as one text: a speaker's label is nobody's word."""
    spans: list[Span] = []
    for _, who, what, own in messages:
        spans += [Span(f"{who}: ", own=False), Span(what, own=own), Span("\n", own=False)]
    written = next((when for when, _, _, _ in reversed(messages) if when is not None), None)
    return Text(key, TALK, title, written, tuple(without_empty_spans(spans)))


def _require_owner(place: Path, messages: Sequence[Message]) -> None:
    if messages and not any(own for *_, own in messages):
        names = sorted({who for _, who, _, _ in messages})
        shown = ", ".join(names[:5])
        raise DataError(f"{place.name}: say who you are with --me NAME; speakers here: {shown}")


def _slack_text(text: str, names: dict[str, str]) -> str:
    text = _MENTION.sub(lambda m: m[1].replace("!", "@") + (m[3] or names.get(m[2], m[2])), text)
    return html.unescape(_LINK.sub(lambda m: m[2] or m[1], text))


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        raise DataError(f"{path.name}: is no JSON") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{path.name}: is no list of objects")
    return found


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
