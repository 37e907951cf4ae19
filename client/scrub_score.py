"""How well the scrubber finds what people labelled: precision, recall and F2 by entity, with intervals.

Matching is by span. Labels and findings are first mapped to families (`LABELS`, `FINDINGS`), because sets name
the same thing differently and one street address may be found as an address and a place. A labelled span is
found if findings of its family cover at least half of its characters; a finding is right if labelled spans of
its family cover at least half of it. `removed` asks less: did anything at all replace half of the span?

    F2 = 5 P R / (4 P + R)      recall weighs more, because a miss stays in the text

Families that a file never labels are not scored on it: nothing says whether their findings are right.
Labels that the scrubber leaves alone on purpose (organisations, dates, titles, works, products) are not
counted as missed, but a finding that lies on one is still wrong.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.scrub_engine import Finding
from privacy.errors import DataError

LABELS: Mapping[str, str] = {
    "PERSON": "PERSON",
    "GPE": "LOCATION",
    "LOCATION": "LOCATION",
    "STREET_ADDRESS": "LOCATION",
    "ADDRESS": "LOCATION",
    "ZIP_CODE": "LOCATION",
    "NRP": "NRP",
    "AGE": "AGE",
    "CREDIT_CARD": "CREDIT_CARD",
    "IBAN_CODE": "IBAN_CODE",
    "IBAN": "IBAN_CODE",
    "CRYPTO": "CRYPTO",
    "EMAIL_ADDRESS": "EMAIL_ADDRESS",
    "EMAIL": "EMAIL_ADDRESS",
    "PHONE_NUMBER": "PHONE_NUMBER",
    "PHONE": "PHONE_NUMBER",
    "DOMAIN_NAME": "URL",
    "URL": "URL",
    "IP_ADDRESS": "IP_ADDRESS",
    "MAC_ADDRESS": "MAC_ADDRESS",
    "US_SSN": "ID_NUMBER",
    "US_DRIVER_LICENSE": "ID_NUMBER",
    "ID_NUMBER": "ID_NUMBER",
    "PASSPORT": "ID_NUMBER",
    "US_PASSPORT": "ID_NUMBER",
    "MEDICAL_RECORD": "ID_NUMBER",
    "SECRET": "SECRET",
    "PASSWORD": "SECRET",
    "DATE_OF_BIRTH": "DATE_OF_BIRTH",
}
"""Family of a label, upper-cased first. A label that is not here is left alone on purpose."""

FINDINGS: Mapping[str, str] = {
    **LABELS,
    "US_ITIN": "ID_NUMBER",
    "UK_NHS": "ID_NUMBER",
    "UK_NINO": "ID_NUMBER",
}
"""Family of an entity that the scrubber reports."""

COVERED = 0.5
Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and its labelled spans: (start, end, family or "" for a label that is left alone)."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one family: labelled spans, those found, those removed under any name, findings, right ones."""

    support: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    predicted: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)


def read_labelled(path: Path) -> list[Labelled]:
    """Return the examples of a file of `{"text": ..., "spans": [{"start", "end", "label"}, ...]}` lines.

    Raises DataError with the line number, never the text, at the first line that is not one.
    """
    try:
        with path.open("rb") as stream:
            return [_labelled(line, f"{path.name}:{n}") for n, line in enumerate(stream, start=1) if line.strip()]
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from None


def tally(examples: Sequence[Labelled], findings: Sequence[Sequence[Finding]]) -> Tally:
    """Return the counts by family over all examples (rule: module docstring)."""
    counts = Tally()
    for example, found in zip(examples, findings, strict=True):
        guesses = [(f.start, f.end, FINDINGS.get(f.entity, f.entity)) for f in found]
        for start, end, family in example.spans:
            if family:
                counts.support[family] += 1
                counts.found[family] += _covered(start, end, (g for g in guesses if g[2] == family))
                counts.removed[family] += _covered(start, end, guesses)
        for start, end, family in guesses:
            counts.predicted[family] += 1
            counts.right[family] += _covered(start, end, (s for s in example.spans if s[2] == family))
    return counts


def scores(counts: Tally) -> dict[str, Any]:
    """Return `{"entities": {family: row}, "overall": row, "not_labelled": {family: findings}}`.

    A row holds precision, recall, removed, f2, support, predicted, and 95 % Wilson intervals. `overall` pools
    the families that the file labels.
    """
    families = sorted(counts.support)
    rows = {family: _row(counts, [family]) for family in families}
    unlabelled = {family: n for family, n in sorted(counts.predicted.items()) if family not in counts.support}
    return {"entities": rows, "overall": _row(counts, families), "not_labelled": unlabelled}


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927); (0, 1) of no trials.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    """
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z_95**2
    middle = share + z2 / (2 * trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    low, high = (middle - half) / scale, (middle + half) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # at 0 and 1 the ends meet the share, but for rounding


def _row(counts: Tally, families: Sequence[str]) -> dict[str, Any]:
    support, found, removed, predicted, right = (
        sum(counter[family] for family in families)
        for counter in (counts.support, counts.found, counts.removed, counts.predicted, counts.right)
    )
    recall, precision = _share(found, support), _share(right, predicted)
    return {
        "precision": precision,
        "recall": recall,
        "f2": _share(5 * precision * recall, 4 * precision + recall),
        "support": support,
        "predicted": predicted,
        "removed": _share(removed, support),
        "precision_interval": list(wilson(right, predicted)),
        "recall_interval": list(wilson(found, support)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _covered(start: int, end: int, others: Iterable[tuple[int, int, str]]) -> bool:
    """Return whether disjoint `others` cover at least half of [start, end)."""
    overlap = sum(max(0, min(end, b) - max(start, a)) for a, b, _ in others)
    return overlap >= COVERED * (end - start)


def _labelled(line: bytes, where: str) -> Labelled:
    try:
        record = json.loads(line)
        text = record["text"]
        spans = tuple(_spans(record["spans"], len(text)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{where}: must be {{text, spans: [{{start, end, label}}]}} with offsets in the text") from None
    if not isinstance(text, str):
        raise DataError(f"{where}: text is not text")
    return Labelled(text, spans)


def _spans(raw: Sequence[Mapping[str, Any]], length: int) -> Iterator[tuple[int, int, str]]:
    for span in raw:
        start, end = span["start"], span["end"]
        if not 0 <= start < end <= length:
            raise ValueError
        yield start, end, LABELS.get(span["label"].upper(), "")
