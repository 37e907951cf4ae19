"""Scrubbing: what names a person or opens a door is replaced before text may train anything shared.

A placeholder is typed and consistent, `<PERSON_1>`: within one person's text the same entity always gets the
same one, so that a conversation still reads; another person's numbering starts again. A placeholder carries no
loss. This is data minimisation with measured recall (`confide scrub --evaluate`), not anonymisation: what the
recognizers miss stays in, and nothing of it is credited in the privacy accounting.

Only history is scrubbed. Held-out documents stay raw, so that every arm is scored on the same tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from presidio_analyzer import AnalyzerEngine

from client.documents import Document, Person, Span, without_empty_spans
from client.scrub_engine import Finding, load_engine, raw_findings
from client.scrub_strength import STANDARD

WINDOW = 20_000
LABEL = re.compile(r"^(?:Me|You): ", re.MULTILINE)
_EDGE = " \t\r\n.,;:!?\"'`()[]{}<>*_~|/\\-"
_GAP = r"[\s,>]{0,6}"
_JOINED = re.compile(rf"{_GAP}(?:[^\W\d_][\w.-]{{1,20}}(?: [^\W\d_a-z][\w.-]{{1,20}}){{0,2}}{_GAP})?")
_POSTCODE = re.compile(r"(?:,? [A-Z]{2})?,? (?!(?:19|20)\d\d\b)(?:\d{4,6}(?:-\d{4})?|\d{3} \d{2})\b(?![.,]\d)")
_HOUSE_NUMBER = re.compile(r"(?<![\w.,$€£])\d{1,6},? $")


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """How much was replaced: counts only, never text.

    `replaced` counts placeholders by entity, `distinct` different entities by type; `characters` were read, of
    which `masked_characters` are gone; `own_words` were targets before, of which `masked_own_words` no longer are.
    """

    documents: int = 0
    characters: int = 0
    masked_characters: int = 0
    own_words: int = 0
    masked_own_words: int = 0
    replaced: Counter[str] = field(default_factory=Counter)
    distinct: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: ScrubReport) -> ScrubReport:
        """Return the sum over two disjoint sets of people."""
        return ScrubReport(
            self.documents + other.documents,
            self.characters + other.characters,
            self.masked_characters + other.masked_characters,
            self.own_words + other.own_words,
            self.masked_own_words + other.masked_own_words,
            self.replaced + other.replaced,
            self.distinct + other.distinct,
        )

    def to_json(self) -> dict[str, int | dict[str, int]]:
        """Return the report as JSON values."""
        return {
            "documents": self.documents,
            "characters": self.characters,
            "masked_characters": self.masked_characters,
            "own_words": self.own_words,
            "masked_own_words": self.masked_own_words,
            "replaced": dict(sorted(self.replaced.items())),
            "distinct": dict(sorted(self.distinct.items())),
        }


class Scrubber:
    """One person's scrubber: it remembers which entity has which placeholder, and counts.

    The numbering depends on the documents it was given and on their order, nothing else. Not shared between
    people: equal placeholders of two people do not mean the same entity.
    """

    def __init__(self, engine: AnalyzerEngine | None = None, strength: str = STANDARD) -> None:
        self.engine, self.strength = engine or load_engine(), strength
        self.report = ScrubReport()
        self._numbers: dict[str, dict[str, int]] = {}

    def scrub_document(self, document: Document) -> Document:
        """Return `document` with every finding replaced by its placeholder, which carries no loss.

        Raises ModelError if the analyzer fails; the message holds no text.
        """
        return self.scrub_documents([document])[0]

    def scrub_documents(self, documents: Sequence[Document]) -> tuple[Document, ...]:
        """Return every document as `scrub_document` would, faster: texts run through the model in batches."""
        found = find([document.text for document in documents], self.engine, self.strength)
        return tuple(self._scrubbed(document, findings) for document, findings in zip(documents, found, strict=True))

    def scrub_text(self, text: str) -> str:
        """Return `text` with placeholders."""
        return self.scrub_document(Document("text", (Span(text, own=True),), "history", 0)).text

    def placeholder(self, entity: str, text: str) -> str:
        """Return the placeholder of an entity with this text, a new one if it was not seen before.

        Case and white space do not distinguish; one word of a person's or place's longer name, if only one
        name holds it, means that name.
        """
        numbers = self._numbers.setdefault(entity, {})
        key = " ".join(text.casefold().split())
        if key not in numbers:
            longer = {n for name, n in numbers.items() if entity == "PERSON" and key in name.split()}
            numbers[key] = longer.pop() if len(longer) == 1 else max(numbers.values(), default=0) + 1
        return f"<{entity}_{numbers[key]}>"

    def _scrubbed(self, document: Document, findings: Sequence[Finding]) -> Document:
        text = document.text
        marks = [(f, self.placeholder(f.entity, text[f.start : f.end])) for f in findings]
        scrubbed = replace(document, spans=without_empty_spans(_with_placeholders(document.spans, marks)))
        self.report += ScrubReport(
            documents=1,
            characters=len(text),
            masked_characters=sum(f.end - f.start for f in findings),
            own_words=document.own_words,
            masked_own_words=_masked_own_words(document, findings),
            replaced=Counter(f.entity for f in findings),
        )
        distinct = Counter({entity: max(numbers.values()) for entity, numbers in self._numbers.items()})
        self.report = replace(self.report, distinct=distinct)
        return scrubbed


def scrub_person(person: Person) -> tuple[Person, ScrubReport]:
    """Return the person with scrubbed history and untouched test documents, and what was replaced.

    A plain function with the engine of its own process: hand it to a pool of workers.
    """
    scrubber = Scrubber()
    history = scrubber.scrub_documents(person.history)
    return Person(person.user, history + person.test), scrubber.report


def find(texts: Sequence[str], engine: AnalyzerEngine | None = None, strength: str = STANDARD) -> list[list[Finding]]:
    """Return what must go from each text at a strength: disjoint findings in order.

    Where two overlap, a rule wins over the entity model, a secret over anything, then the longer one; of the
    loser, what sticks out stays a finding. Speakers' labels (`Me: `, `You: `) are never part of one. Long texts
    are cut into windows at line ends, so an entity across such an end may be missed in part.
    """
    windows = [(index, start, text[start:end]) for index, text in enumerate(texts) for start, end in _windows(text)]
    found: list[list[Finding]] = [[] for _ in texts]
    analyzed = raw_findings(engine or load_engine(), [text for _, _, text in windows], strength)
    for (index, offset, text), raw in zip(windows, analyzed, strict=True):
        found[index] += [
            replace(f, start=f.start + offset, end=f.end + offset) for f in disjoint(_cleaned(text, raw), text)
        ]
    return found


def disjoint(findings: Iterable[Finding], text: str) -> list[Finding]:
    """Return findings that do not overlap, in order (rule: see `find`), neighbouring parts of an address joined."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=_precedence):
        kept += _outside(finding, kept, text)
    named = sorted(kept + _again(kept, text))
    return _joined([_extended(finding, text) for finding in named], text)


def _masked_own_words(document: Document, findings: Sequence[Finding]) -> int:
    """Return how many words of the document's targets a finding covers, whole or in part."""
    text = document.text
    pieces = (text[max(start, f.start) : min(end, f.end)] for start, end in document.target_ranges() for f in findings)
    return sum(len(piece.split()) for piece in pieces)


def _precedence(finding: Finding) -> tuple[bool, bool, int, bool, float, int, str]:
    length, secret = finding.end - finding.start, finding.entity == "SECRET"
    return (
        not finding.by_rule,
        not secret,
        -length,
        finding.entity == "ID_NUMBER",
        -finding.score,
        finding.start,
        finding.entity,
    )


def _windows(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > WINDOW:
        end = text.rfind("\n", start, start + WINDOW) + 1 or text.rfind(" ", start, start + WINDOW) + 1
        end = end or start + WINDOW
        yield start, end
        start = end
    yield start, len(text)


def _cleaned(text: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    labels = [Finding(m.start(), m.end(), "", 1.0, True) for m in LABEL.finditer(text)]
    for finding in findings:
        if finding.by_rule:
            yield from _outside(finding, labels, text)
        else:
            yield from _names(text, finding, labels)


def _names(text: str, finding: Finding, labels: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the lines of a model's finding that may be a name: it never runs over a line end or into a label."""
    for line in re.finditer(r"[^\n]+", text[finding.start : finding.end]):
        part = replace(finding, start=finding.start + line.start(), end=finding.start + line.end())
        for piece in _outside(part, labels, text):
            if _plausible(text[piece.start : piece.end]) and text[max(0, piece.start - 1) : piece.start] not in (
                "#",
                "@",
            ):
                yield piece


def _plausible(name: str) -> bool:
    """Return whether a model's finding looks like a name: a capital somewhere, no digit, no sign of a web name."""
    return any(c.isupper() for c in name) and not re.search(r"[\d@#<>=_/\\]|http", name)


def _outside(finding: Finding, taken: Iterable[Finding], text: str) -> list[Finding]:
    """Return the parts of `finding` outside `taken`, trimmed of space and punctuation if cut or the model's."""
    parts = [(finding.start, finding.end)]
    for other in taken:
        parts = (
            [
                piece
                for start, end in parts
                for piece in ((start, min(end, other.start)), (max(start, other.end), end))
                if piece[0] < piece[1]
            ]
            if other.start < finding.end and finding.start < other.end
            else parts
        )
    if parts == [(finding.start, finding.end)] and finding.by_rule:
        return [finding]
    trimmed = (_trimmed(text, start, end) for start, end in parts)
    return [replace(finding, start=start, end=end) for start, end in trimmed if end - start > (not finding.by_rule)]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in _EDGE:
        start += 1
    while end > start and text[end - 1] in _EDGE:
        end -= 1
    return start, end


def _again(findings: Sequence[Finding], text: str) -> list[Finding]:
    """Return the other places in `text` of every word of a person's name found, spelled the same.

    A word that the text also has in lower case is taken for a common word and not searched for.
    """
    words = {
        word
        for finding in findings
        if finding.entity == "PERSON"
        for word in re.findall(r"[^\W\d_]{4,}", text[finding.start : finding.end])
        if not word.islower() and not re.search(rf"\b{word.lower()}\b", text)
    }
    if not words:
        return []
    pattern = re.compile(rf"(?<![\w@#./])(?:{'|'.join(sorted(words))})(?![\w@]|\.\w)")
    found = (Finding(*match.span(), "PERSON", 0.5, False) for match in pattern.finditer(text))
    return [new for new in found if all(new.end <= old.start or old.end <= new.start for old in findings)]


def _extended(finding: Finding, text: str) -> Finding:
    """Return a place or address with the postcode behind it, an address also with the number before it."""
    if finding.entity not in ("STREET_ADDRESS", "LOCATION"):
        return finding
    behind = _POSTCODE.match(text, finding.end)
    before = _HOUSE_NUMBER.search(text, max(0, finding.start - 9), finding.start)
    start = before.start() if before and finding.entity == "STREET_ADDRESS" else finding.start
    return replace(finding, start=start, end=behind.end() if behind else finding.end)


def _joined(findings: Sequence[Finding], text: str) -> list[Finding]:
    joined: list[Finding] = []
    for finding in findings:
        last = joined[-1] if joined else None
        if last and _continues(last, finding) and _JOINED.fullmatch(text, last.end, finding.start):
            joined[-1] = replace(last, end=finding.end)
        else:
            joined.append(finding)
    return joined


def _continues(last: Finding, finding: Finding) -> bool:
    return last.entity == "STREET_ADDRESS" and finding.entity in ("STREET_ADDRESS", "LOCATION")


def _with_placeholders(spans: Iterable[Span], marks: Sequence[tuple[Finding, str]]) -> Iterator[Span]:
    """Yield the spans with marked characters taken out; a placeholder stands in the span where its mark begins."""
    position = 0
    for span in spans:
        start, end = position, position + len(span.text)
        for finding, placeholder in marks:
            if finding.end <= position or finding.start >= end:
                continue
            yield replace(span, text=span.text[position - start : max(finding.start - start, position - start)])
            if finding.start >= start:
                yield replace(span, text=placeholder, loss=False)
            position = min(finding.end, end)
        yield replace(span, text=span.text[position - start :])
        position = end
