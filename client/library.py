"""A person's documents as the vault holds them: read for retrieval and training, forgotten with all that they left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.documents import Document, Span, without_empty_spans
from client.imported import RATING, unpacked_spans

if TYPE_CHECKING:
    from client.vault import Vault

PASSAGE_WORDS = 180


@dataclass(frozen=True, slots=True)
class Kept:
    """One document of the vault."""

    number: int
    source: int
    type: str
    title: str
    written: float | None
    spans: tuple[Span, ...]
    held_back: bool

    def as_document(self) -> Document:
        """Return it as the learner reads it: others' words are context, never a target."""
        order = int(self.written) if self.written is not None else self.number
        return Document(f"v{self.number}", self.spans, "test" if self.held_back else "history", order)


@dataclass(frozen=True, slots=True)
class Passage:
    """A run of whole lines of a document, short enough to be quoted: `own` if any word of it is the owner's."""

    document: int
    part: int
    type: str
    title: str
    written: float | None
    text: str
    own: bool


def documents(vault: Vault, purpose: str, after: int = 0, held_back: bool | None = None) -> Iterator[Kept]:
    """Yield the documents beyond number `after` whose source grants `purpose`, oldest number first."""
    rows = vault.select(
        "SELECT d.id, d.source, d.type, d.title, d.written, d.spans, d.held_back FROM document d"
        " JOIN consent c ON c.source = d.source AND c.purpose = ? AND c.granted"
        " WHERE d.id > ? AND (? OR d.held_back = ?) ORDER BY d.id",
        (purpose, after, held_back is None, int(bool(held_back))),
    )
    for number, source, kind, title, written, spans, held in rows:
        yield Kept(number, source, kind, title, written, unpacked_spans(spans), bool(held))


def passages(kept: Kept) -> list[Passage]:
    """Return a document in passages of at most about `PASSAGE_WORDS` words, cut at line ends, in order.

    A line longer than that is cut between words. The first passage begins with the document's title where a note has
    one that its text does not show.
    """
    runs: list[list[Span]] = [[]]
    words = 0
    for piece in _pieces(kept.spans):
        size = len(piece.text.split())
        if words and words + size > PASSAGE_WORDS:
            runs.append([])
            words = 0
        runs[-1].append(piece)
        words += size
    found = []
    for part, run in enumerate(runs):
        text = "".join(span.text for span in without_empty_spans(run)).strip()
        if text:
            own = any(span.own and span.text.strip() for span in run)
            found.append(Passage(kept.number, part, kept.type, kept.title, kept.written, text, own))
    return found


def rating_passages(vault: Vault, purpose: str) -> list[Passage]:
    """Return one passage a rated thing, the newest rating of it; documents are numbered below zero, item by item."""
    rows = vault.select(
        "SELECT i.id, i.title, i.about, n.rating, max(n.time) FROM item i JOIN interaction n ON n.item = i.id"
        " JOIN consent c ON c.source = i.source AND c.purpose = ? AND c.granted GROUP BY i.id",
        (purpose,),
    )
    return [
        Passage(
            -item, 0, RATING, title, time or None, f"Rated {rating:g}: {title}{f' ({about})' if about else ''}", True
        )
        for item, title, about, rating, time in rows
    ]


def _pieces(spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        for line in span.text.splitlines(keepends=True):
            words = line.split(" ")
            for start in range(0, len(words), PASSAGE_WORDS):
                end = start + PASSAGE_WORDS
                text = " ".join(words[start:end]) + (" " if end < len(words) else "")
                yield Span(text, span.own, span.loss)
