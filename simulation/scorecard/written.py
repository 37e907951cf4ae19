"""What the model wrote in people's place, measured: likeness to their own text, style, tone, content.

Each measure is one value a person and arm, the mean over test documents; which direction is better stands in
`HIGHER_IS_BETTER`. The person's own held-out text is the arm `own words`: the most that attribution can reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.documents import Person
from client.encoder import Encoder
from simulation.extension import extension
from simulation.measures import coding, tone
from simulation.measures.authorship import Attribution
from simulation.measures.personalization import degress, egises, perseval
from simulation.measures.text import embedding_f1, meteor, meteor_label, movers_distance, rouge, sentence_bleu
from simulation.scorecard.person import PersonCard
from simulation.scorecard.reader import Written

Vector = NDArray[np.float64]
Values = dict[str, dict[str, dict[str, float]]]  # measure -> arm -> person -> value
OWN_WORDS = "own words"
STYLE, FORMALITY, SENTIMENT, CONTENT = "style", "formality distance", "sentiment distance", "content"
CODING = "coding style"
LOWER_IS_BETTER = (FORMALITY, SENTIMENT, "movers distance (MiniLM)")
AUTHORS = 20
SAME = 1e-6  # a distance below this is rounding: the texts are one


def written_values(
    cards: Mapping[str, PersonCard],
    people: Sequence[Person],
    encoder: Encoder,
    metric: str = "",
    code: bool = False,
) -> Values:
    """Return every measure of what was written; empty where nothing was. `code` adds the likeness of coding styles.

    `metric` names a researcher's own class; a value that is better lower is put in as its negative, and said so.
    """
    users = [user for user, card in sorted(cards.items()) if card.written]
    if not users:
        return {}
    by_user = {person.user: person for person in people}
    values: Values = {}
    own_metric = extension("metric", metric)() if metric else None
    for user in users:
        for arm, texts in cards[user].written.items():
            _likeness(values, arm, user, texts, encoder)
            if code:
                _coding(values, arm, user, texts)
            if own_metric is not None:
                _extended(values, own_metric, arm, user, texts)
    _style(values, cards, users, by_user)
    _content(values, cards, users, encoder)
    return values


def _put(values: Values, measure: str, arm: str, user: str, value: float) -> None:
    values.setdefault(measure, {}).setdefault(arm, {})[user] = value


def _likeness(values: Values, arm: str, user: str, texts: Sequence[Written], encoder: Encoder) -> None:
    """Put the measures of likeness; what was written is compared with as many own words."""
    pairs = [(_first_words(w.own, max(8, len(w.text.split()))), w.text) for w in texts]
    if not pairs:
        return
    rouges = [rouge(own, text) for own, text in pairs]
    tokens = [(encoder.tokens(own).astype(np.float64), encoder.tokens(text).astype(np.float64)) for own, text in pairs]
    measured: dict[str, Sequence[float]] = {
        "ROUGE-1": [r.rouge1 for r in rouges],
        "ROUGE-L": [r.rouge_l for r in rouges],
        "BLEU": [sentence_bleu(own, text) for own, text in pairs],
        meteor_label(): [meteor(own, text) for own, text in pairs],
        "BERTScore (MiniLM)": [embedding_f1(a, b) for a, b in tokens],
        "movers distance (MiniLM)": [movers_distance(a, b) for a, b in tokens if len(a) and len(b)],
        FORMALITY: _distances(pairs, tone.formality),
        SENTIMENT: _distances(pairs, tone.sentiment),
    }
    for measure, row in measured.items():
        if row:
            _put(values, measure, arm, user, float(np.mean(row)))


def _coding(values: Values, arm: str, user: str, texts: Sequence[Written]) -> None:
    row = [alike for w in texts if (alike := coding.alike(w.own, w.text)) is not None]
    if row:
        _put(values, CODING, arm, user, float(np.mean(row)))


def _extended(values: Values, metric: Any, arm: str, user: str, texts: Sequence[Written]) -> None:
    sign, name = (1.0, metric.name) if metric.higher_is_better else (-1.0, f"{metric.name} (negative)")
    row = [sign * float(metric.value(w.own, w.text)) for w in texts]
    if row:
        _put(values, name, arm, user, float(np.mean(row)))


def _distances(pairs: Sequence[tuple[str, str]], of: Callable[[str], float]) -> list[float]:
    return [abs(of(own) - of(text)) for own, text in pairs if text.strip()]


def _first_words(text: str, most: int) -> str:
    return " ".join(text.split()[:most])


def _style(values: Values, cards: Mapping[str, PersonCard], users: Sequence[str], people: Mapping[str, Person]) -> None:
    """Put the share of texts that are attributed to their person among at most `AUTHORS` people."""
    among = list(users)[:AUTHORS]
    if len(among) < 2:
        return
    attribution = Attribution({user: [d.own_text for d in people[user].history] for user in among})
    for user in among:
        for arm, texts in cards[user].written.items():
            if (share := attribution.share_right(user, [w.text for w in texts])) is not None:
                _put(values, STYLE, arm, user, share)
        own = next(iter(cards[user].written.values()))
        if (share := attribution.share_right(user, [w.own for w in own])) is not None:
            _put(values, STYLE, OWN_WORDS, user, share)


def _content(values: Values, cards: Mapping[str, PersonCard], users: Sequence[str], encoder: Encoder) -> None:
    """Put the share of texts whose embedding is nearer to the person's own text than to the next person's."""
    own = {user: encoder.encode([w.own for w in next(iter(cards[user].written.values()))]) for user in users}
    for i, user in enumerate(users):
        other = own[users[(i + 1) % len(users)]]
        if len(users) < 2 or not len(other):
            return
        for arm, texts in cards[user].written.items():
            rows = encoder.encode([w.text for w in texts])
            nearer = [float(rows[d] @ own[user][d] > (rows[d] @ other.T).mean()) for d in range(len(rows))]
            if nearer:
                _put(values, CONTENT, arm, user, float(np.mean(nearer)))


def responsiveness_of(cards: Mapping[str, PersonCard], arm: str, encoder: Encoder) -> dict[str, float]:
    """Return EGISES and PerSEval of an arm over what all people wrote and what was written for them, {} for too few.

    People here answer different questions: the document of a person's text is its own opening's embedding mean, so the
    two figures compare arms of one report, and compare with no published value. Distances are (1 - cosine) / 2.
    """
    users = [user for user, card in sorted(cards.items()) if card.written.get(arm)]
    if len(users) < 2:
        return {}
    own = np.array([encoder.encode([cards[u].written[arm][-1].own])[0] for u in users], dtype=np.float64)
    made = np.array([encoder.encode([cards[u].written[arm][-1].text])[0] for u in users], dtype=np.float64)
    middle = own.mean(0) / max(1e-12, float(np.linalg.norm(own.mean(0))))
    between, made_between = _apart(own, own), _apart(made, made)
    for distances in (between, made_between):
        np.fill_diagonal(distances, 0.0)
    found = degress(between, _apart(own, middle[None])[:, 0], made_between, _apart(made, middle[None])[:, 0])
    to_own = np.array([float(_apart(a[None], b[None])[0, 0]) for a, b in zip(own, made, strict=True)])
    return {"EGISES": egises([found]), "PerSEval": perseval([(found, to_own)])}


def _apart(a: Vector, b: Vector) -> Vector:
    distances: Vector = np.clip((1 - a @ b.T) / 2, 0, 1)
    return np.where(distances < SAME, 0.0, distances)
