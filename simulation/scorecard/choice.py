"""A choice among several ways on, by likelihood: a label among all labels, the answer that a person would rather have.

    chosen = argmin_c (nats(c | memories, question) - nats(c | no question)) / tokens(c)

Length counts for nothing, as in the forced choices of `simulation.scorecard.probes`. What a candidate costs where
nothing was asked is taken off, by `global` without memories and so alike in every arm: a small model prefers a word to
an answer (Holtzman et al. 2021, "Surface form competition", arXiv:2104.08315; Zhao et al. 2021, "Calibrate before use",
arXiv:2102.09690, whose "N/A" is the question that asks nothing). What a person chooses often is not taken off. What to
choose from are a document's own `alternatives`, else the labels that people give, the commonest `MOST_LABELS` of them
and those of the document itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from client.documents import Document, Person, Span
from simulation.measures.ranking import label_scores

Rows = Sequence[tuple[str, float, int]]  # document, nats, tokens
Values = dict[str, dict[str, dict[str, float]]]  # measure -> arm -> person -> value
Choices = Mapping[str, Mapping[str, Sequence["Choice"]]]  # person -> arm
MOST_LABELS = 20
ACCURACY, F1, PRECISION, RECALL = "right choice", "F1 of the labels", "precision of the labels", "recall of the labels"
_CANDIDATE, _UNASKED = "/candidate/", "unasked/"
NOTHING_ASKED = "N/A\n"


@dataclass(frozen=True)
class Choice:
    """One decided question: the label or answer that is right and the one chosen, and among how many."""

    truth: str
    chosen: str
    among: int


def labels_of(people: Sequence[Person]) -> tuple[str, ...]:
    """Return the labels that people's histories hold, the commonest first, `MOST_LABELS` at most."""
    counts = Counter(d.own_text.strip() for person in people for d in person.history)
    return tuple(label for label, _ in counts.most_common(MOST_LABELS) if label)


def candidates(document: Document, labels: Sequence[str]) -> list[str]:
    """Return what there is to choose from for one document, the right one among it, sorted: no place tells anything."""
    return sorted({document.own_text.strip(), *(document.alternatives or labels)})


def candidate_documents(documents: Sequence[Document], labels: Sequence[str]) -> tuple[Document, ...]:
    """Return one document for each candidate of each document that has two at least, the context the same."""
    found = []
    for document in documents:
        before = document.text[: next(iter(document.target_ranges()), (0, 0))[0]]
        some = candidates(document, labels)
        for number, text in enumerate(some if before.strip() and len(some) > 1 else ()):
            spans = (Span(before, own=False), Span(text, own=True))
            found.append(replace(document, id=f"{document.id}{_CANDIDATE}{number}", spans=spans, group=""))
    return tuple(found)


def unasked_documents(among: Sequence[Document]) -> tuple[Document, ...]:
    """Return one document for each different candidate of `candidate_documents`, behind what asks nothing."""
    texts = sorted({document.own_text for document in among})
    return tuple(
        Document(f"{_UNASKED}{text}", (Span(NOTHING_ASKED, own=False), Span(text, own=True)), "test", number)
        for number, text in enumerate(texts)
    )


def choices(rows: Rows, documents: Sequence[Document], labels: Sequence[str], unasked: Rows = ()) -> list[Choice]:
    """Return what an arm's rows of `candidate_documents` choose for each document; equals go to the first.

    `unasked` are the rows of `unasked_documents`; without one of them nothing is taken off its candidate.
    """
    before = {name.removeprefix(_UNASKED): nats / max(1, tokens) for name, nats, tokens in unasked}
    costs: dict[str, dict[int, float]] = {}
    for name, nats, tokens in rows:
        asked, mark, number = name.rpartition(_CANDIDATE)
        if mark:
            costs.setdefault(asked, {})[int(number)] = nats / max(1, tokens)
    found = []
    for document in documents:
        some, cost = candidates(document, labels), costs.get(document.id, {})
        if len(cost) != len(some):
            continue  # too long to be read with all its candidates
        told = [cost[place] - before.get(text, 0.0) for place, text in enumerate(some)]
        best = told.index(min(told))
        found.append(Choice(document.own_text.strip(), some[best], len(some)))
    return found


def choice_values(chosen: Choices, labelled: bool) -> Values:
    """Return the share of right choices of every arm and person; with `labelled` also F1, precision and recall.

    The latter are means over the labels that the person's documents have or were given, as far as few documents tell.
    """
    values: Values = {}
    for user, arms in chosen.items():
        for arm, some in arms.items():
            if not some:
                continue
            found = label_scores([c.truth for c in some], [c.chosen for c in some])
            row = {ACCURACY: found.accuracy}
            if labelled:
                row |= {F1: found.f1, PRECISION: found.precision, RECALL: found.recall}
            for measure, value in row.items():
                values.setdefault(measure, {}).setdefault(arm, {})[user] = value
    return values


def chance(chosen: Choices) -> float | None:
    """Return the share of right choices of somebody who guesses, None where nothing was chosen."""
    shares = [1 / c.among for arms in chosen.values() for some in list(arms.values())[:1] for c in some]
    return sum(shares) / len(shares) if shares else None


def micro_f1(chosen: Choices, arm: str) -> float | None:
    """Return the F1 of an arm over everybody's questions together, None where it chose nothing."""
    some = [c for arms in chosen.values() for c in arms.get(arm, ())]
    return label_scores([c.truth for c in some], [c.chosen for c in some]).micro_f1 if some else None
