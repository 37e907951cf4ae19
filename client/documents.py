"""A person's text as the learner sees it: people, documents, spans.

A document is a sequence of spans. The text is their concatenation; only a span that the person wrote
(`own`) and that carries loss (`loss`) is a training target. What a partner wrote, a prompt, a speaker's
label and a scrubber's placeholder are context: read, never learned by heart for what is shared.

    text(d)    = s_1 + s_2 + ... + s_n
    targets(d) = { s_i : s_i.own and s_i.loss }
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["history", "test"]


@dataclass(frozen=True, slots=True)
class Span:
    """A run of characters with one owner.

    `own`: the person wrote it. `loss`: it may be a target; False for a placeholder that stands where
    the person's own words were.
    """

    text: str
    own: bool
    loss: bool = True

    @property
    def target(self) -> bool:
        """Return whether the span is a training or scoring target: written by the owner and not masked."""
        return self.own and self.loss


@dataclass(frozen=True, slots=True)
class Document:
    """One text of one person: a mail, a post, a conversation seen from one side.

    `order` sorts a person's documents in time, where time is known. `group` names what several
    people's documents have in common (a conversation): a group is history for all of them or test
    for all of them. Left empty it is the document's own id. `alternatives` are texts that the person might have chosen
    in place of their own words and did not; nothing learns from them.
    """

    id: str
    spans: tuple[Span, ...]
    split: Split
    order: int
    group: str = ""
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def text(self) -> str:
        """Return the concatenation of all spans."""
        return "".join(span.text for span in self.spans)

    @property
    def own_text(self) -> str:
        """Return the concatenation of the targets alone."""
        return "".join(span.text for span in self.spans if span.target)

    @property
    def own_words(self) -> int:
        """Return the number of whitespace-separated words in targets."""
        return sum(len(span.text.split()) for span in self.spans if span.target)

    def target_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield [start, end) in characters of `text` for every non-empty target, adjacent ones merged."""
        start = end = position = 0
        for span in self.spans:
            if span.target and span.text:
                if end != position:
                    if end > start:
                        yield start, end
                    start = position
                end = position + len(span.text)
            position += len(span.text)
        if end > start:
            yield start, end


@dataclass(frozen=True, slots=True)
class Person:
    """One author and everything of theirs that the device holds. `user` is a pseudonym, never a name.

    `persona` is the declared persona that they count themselves to, "" for none: it stays on the device.
    """

    user: str
    documents: tuple[Document, ...]
    persona: str = ""

    @property
    def history(self) -> tuple[Document, ...]:
        """Return the documents to learn from, oldest first."""
        return self._part("history")

    @property
    def test(self) -> tuple[Document, ...]:
        """Return the held-out documents, oldest first; nothing may be trained on them."""
        return self._part("test")

    def _part(self, split: Split) -> tuple[Document, ...]:
        return tuple(sorted((d for d in self.documents if d.split == split), key=lambda d: (d.order, d.id)))


def own_words(documents: Iterable[Document]) -> int:
    """Return the number of own words (targets) in `documents`."""
    return sum(document.own_words for document in documents)


def latest(documents: Iterable[Document], least_own_words: int) -> tuple[Document, ...]:
    """Return the newest documents that together hold at least `least_own_words` own words (or all), oldest first."""
    kept: list[Document] = []
    words = 0
    for document in sorted(documents, key=lambda d: (d.order, d.id), reverse=True):
        if words >= least_own_words:
            break
        kept.append(document)
        words += document.own_words
    return tuple(reversed(kept))


def shortened(document: Document, characters: int) -> Document:
    """Return `document` cut after so many characters of its text: what lies behind is neither read nor scrubbed."""
    spans: list[Span] = []
    left = characters
    for span in document.spans:
        if left <= 0:
            break
        spans.append(replace(span, text=span.text[:left]))
        left -= len(span.text)
    return replace(document, spans=tuple(spans))


def without_empty_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return `spans` without empty ones and with neighbours of the same kind joined."""
    joined: list[Span] = []
    for span in spans:
        if not span.text:
            continue
        if joined and (joined[-1].own, joined[-1].loss) == (span.own, span.loss):
            span = Span(joined.pop().text + span.text, span.own, span.loss)
        joined.append(span)
    return tuple(joined)
