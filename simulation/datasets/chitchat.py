"""The package `chitchat-dataset` (MIT): real volunteers' conversations, seen by each of their two authors.

The unit is the author. A conversation becomes one document for each of its two people: own words are
targets, the partner's are context. A conversation with one speaker only is a greeting that nobody
answered (median six words) or a finger resting on a key; it is counted and left out.

Split over the whole data set, by conversation and date. Each person's conversations in time order have
the positions 1/n, 2/n, ..., 1. The lateness of a conversation is the mean of its position in its two
people's sequences; the latest quarter of all conversations is test, for both people or for neither.

A cut at one calendar date would be simpler and leave most people on one side of it, because volunteers
came and went within weeks. The price: a partner's test conversation can be older than some of one's own
history; `history_test_pairs_reversed` counts how often.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from client.documents import Document, Person, Span, own_words
from client.records import OWN_LABEL, PARTNER_LABEL
from privacy.errors import DataError
from simulation.datasets.loaded import Loaded

PACKAGE = "chitchat_dataset"
TEST_SHARE = Fraction(1, 4)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: who wrote it (a raw sender id, never shown), when (ISO 8601, UTC), what."""

    sender: str
    sent: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation of exactly two people, messages in time order."""

    id: str
    messages: tuple[Message, ...]

    @property
    def start(self) -> str:
        """Return the time of the first message (ISO 8601, UTC, sorts as text)."""
        return self.messages[0].sent

    @property
    def senders(self) -> tuple[str, ...]:
        """Return the raw ids of those who wrote something, sorted."""
        return tuple(sorted({message.sender for message in self.messages}))


def find_file() -> Path:
    """Return the path of the data file inside the installed package, found without importing the package.

    Raises DataError if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / "dataset.json"
        if path.is_file():
            return path
    raise DataError("chitchat: the package is not installed; run `pip install chitchat-dataset`")


def load(path: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return everybody in the file at `path`, most useful first.

    Order and pseudonyms (`chit0001`, ...) depend on the file and on `min_test` alone: first those with at
    least `min_test` test conversations, then by own history words. Raises DataError if the file cannot be
    read, or, with `strict`, at the first broken conversation.
    """
    raw, sha256 = _read(path)
    conversations, warnings, counts = _conversations(raw, path.name, strict)
    test = held_out(conversations)
    people = _people(conversations, test, min_test)
    counts |= {"conversations": len(conversations), "test_conversations": len(test)}
    counts |= _split_counts(conversations, test)
    return Loaded(people, tuple(warnings), counts, sha256)


def held_out(conversations: Sequence[Conversation]) -> frozenset[str]:
    """Return the ids of the test conversations: the latest quarter by mean position (module docstring).

    `conversations` in time order. Ties, and only they, are broken by time and id.
    """
    sequences = _sequences(conversations)
    position = {
        (sender, index): Fraction(rank, len(indices))
        for sender, indices in sequences.items()
        for rank, index in enumerate(indices, start=1)
    }

    def lateness(index: int) -> tuple[Fraction, int]:
        senders = conversations[index].senders
        return sum((position[sender, index] for sender in senders), Fraction(0)) / len(senders), index

    by_lateness = sorted(range(len(conversations)), key=lateness)
    kept = len(conversations) - int(len(conversations) * TEST_SHARE)
    return frozenset(conversations[index].id for index in by_lateness[kept:])


def render(conversation: Conversation, sender: str) -> tuple[Span, ...]:
    """Return the conversation as `sender` sees it: a message a line, own words and their newline as targets."""
    spans: list[Span] = []
    for message in conversation.messages:
        if message.sender == sender:
            spans += [Span(OWN_LABEL, own=False), Span(message.text + "\n", own=True)]
        else:
            spans.append(Span(PARTNER_LABEL + message.text + "\n", own=False))
    return tuple(spans)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        data = path.read_bytes()
        raw = json.loads(data)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path.name}: is not JSON") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path.name}: must be an object of conversations by id")
    return raw, hashlib.sha256(data).hexdigest()


def _conversations(
    raw: Mapping[str, Any], name: str, strict: bool
) -> tuple[list[Conversation], list[str], dict[str, int]]:
    found: list[Conversation] = []
    warnings: list[str] = []
    one_sided = 0
    for number, (key, body) in enumerate(raw.items(), start=1):
        conversation = _conversation(key, body)
        if conversation is None:
            warnings.append(f"{name}: conversation {number} is not a list of turns of messages; left out")
            if strict:
                raise DataError(warnings[-1])
        elif len(conversation.senders) == 2:
            found.append(conversation)
        else:
            one_sided += 1
    found.sort(key=lambda conversation: (conversation.start, conversation.id))
    return found, warnings, {"one_sided_conversations_left_out": one_sided}


def _conversation(key: str, body: Any) -> Conversation | None:
    try:
        messages = tuple(
            Message(message["sender"], message["timestamp"], " ".join(message["text"].split()))
            for turn in body["messages"]
            for message in turn
        )
        "".join(message.sender + message.sent for message in messages)
    except (TypeError, KeyError, AttributeError):
        return None
    return Conversation(key, tuple(sorted((m for m in messages if m.text), key=lambda message: message.sent)))


def _sequences(conversations: Sequence[Conversation]) -> dict[str, list[int]]:
    sequences: dict[str, list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        for sender in conversation.senders:
            sequences[sender].append(index)
    return sequences


def _people(conversations: Sequence[Conversation], test: frozenset[str], min_test: int) -> tuple[Person, ...]:
    drafts = {
        sender: tuple(_document(conversations[index], index, sender, test) for index in indices)
        for sender, indices in _sequences(conversations).items()
    }

    def rank(sender: str) -> tuple[bool, int, str]:
        documents = drafts[sender]
        tests = sum(document.split == "test" for document in documents)
        return tests < min_test, -own_words(d for d in documents if d.split == "history"), sender

    width = max(4, len(str(len(drafts))))
    return tuple(
        _named(f"chit{number:0{width}d}", drafts[sender]) for number, sender in enumerate(sorted(drafts, key=rank), 1)
    )


def _document(conversation: Conversation, index: int, sender: str, test: frozenset[str]) -> Document:
    group = f"conversation{index:05d}"
    spans = render(conversation, sender)
    return Document(group, spans, "test" if conversation.id in test else "history", index, group)


def _named(user: str, drafts: Sequence[Document]) -> Person:
    return Person(user, tuple(Document(f"{user}.{d.group}", d.spans, d.split, d.order, d.group) for d in drafts))


def _split_counts(conversations: Sequence[Conversation], test: frozenset[str]) -> dict[str, int]:
    """Return how many (history, test) pairs of one person there are and how many are out of time order."""
    pairs = reversed_pairs = 0
    for indices in _sequences(conversations).values():
        tests_before = 0
        tests = sum(conversations[index].id in test for index in indices)
        for index in indices:
            if conversations[index].id in test:
                tests_before += 1
            else:
                pairs += tests
                reversed_pairs += tests_before
    return {"history_test_pairs": pairs, "history_test_pairs_reversed": reversed_pairs}
