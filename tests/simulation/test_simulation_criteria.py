"""Criteria without a judge: each told apart on texts that have it and texts that lack it, then on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from client.documents import Document, Person, Span
from client.encoder import HashedEncoder
from privacy.errors import DataError
from simulation.measures.authorship import Attribution
from simulation.measures.tone import formality, formality_of, sentiment
from simulation.scorecard import criteria, planted_people, probes
from simulation.scorecard.person import PersonCard
from simulation.scorecard.reader import Written
from simulation.scorecard.written import CONTENT, OWN_WORDS, STYLE, responsiveness_of, written_values

SHOUTS, WHISPERS = "WOW!!! that is GREAT!!! yes yes!!!", "one might perhaps consider, quietly, whether it matters;"


def test_formality_by_its_formula() -> None:
    """Heylighen, Dewaele 1999: all nouns give 100, all verbs 0, as many of both 50."""
    assert [formality_of({"NOUN": 4}), formality_of({"VERB": 4}), formality_of({"NOUN": 2, "PRON": 2})] == [100, 0, 50]
    assert formality_of({"NOUN": 3, "DET": 3, "VERB": 2, "PUNCT": 2}) == pytest.approx(70)
    assert formality("") == 50
    report = "The committee approved the annual budget of the regional library in the second session."
    chat = "well i really think you just went there and then she laughed and we ran"
    assert formality(report) > formality(chat) + 20


def test_sentiment_as_documented() -> None:
    """The example in TextBlob's quickstart."""
    assert sentiment("Textblob is amazingly simple to use. What great fun!") == pytest.approx(0.3917, abs=1e-4)
    assert sentiment("This is terrible and sad.") < 0


def test_authors_are_told_apart_and_a_copy_is_not_the_other() -> None:
    known = {"loud": [SHOUTS, f"no no!!! {SHOUTS}"], "soft": [WHISPERS, f"and yet, {WHISPERS}"]}
    attribution = Attribution(known)
    assert attribution.share_right("loud", ["YES!!! wow!!!", "quietly, perhaps; one might"]) == 0.5
    assert attribution.share_right("soft", ["", " "]) is None
    with pytest.raises(DataError):
        Attribution({"alone": ["text"]})


def test_a_forced_choice_is_decided_a_token_and_a_tie_is_half() -> None:
    rows = [("facts/0/right", 2.0, 2), ("facts/0/wrong", 3.0, 2), ("facts/1/right", 4.0, 2), ("facts/1/wrong", 2.0, 1)]
    assert probes.share_right(rows, "facts") == 0.75
    assert probes.share_right(rows, "register") is None
    with pytest.raises(DataError):
        probes.share_right(rows[:1], "facts")
    assert probes.public_nats([("public/0", 6.0, 2), ("public/1", 2.0, 2), ("d", 9.0, 1)]) == 2.0


def test_neutral_pairs_are_pairs() -> None:
    documents = probes.neutral_documents()
    assert len({d.id for d in documents}) == len(documents)
    assert all(
        pair.right.strip() and pair.wrong.strip() and pair.right != pair.wrong for pair in probes.neutral_pairs()
    )


def test_only_history_decides_for_planted_people() -> None:
    """Every value is right about as often as the others, and both values of a pair stand in the history."""
    people = planted_people.planted_people(60, 3)
    assert people == planted_people.planted_people(60, 3)
    right: dict[str, int] = {}
    for each in people:
        written = " ".join(d.own_text for d in each.person.history)
        for pair in each.pairs:
            if pair.kind == planted_people.CORRECTED:
                new, old = pair.right.strip(), pair.wrong.strip()
                sentences = [planted_people.corrected(f, pair.question, old, new) for f in planted_people.FORMS]
                assert sum(sentence in written for sentence in sentences) == 1
                assert f"{pair.question}{pair.wrong}." in written
                right[pair.right] = right.get(pair.right, 0) + 1
        kinds = [pair.kind for pair in each.pairs]
        assert kinds.count(planted_people.REGISTER) == 6 and kinds.count(planted_people.CORRECTED) == 6
    assert len(right) == 36 and max(right.values()) < 3 * min(right.values()) + 12


def card(**texts: str) -> PersonCard:
    own = texts.pop("own_words")
    return PersonCard(written={arm: [Written("d", text, own)] for arm, text in texts.items()})


def person(user: str, *texts: str) -> Person:
    return Person(user, tuple(Document(f"{user}{i}", (Span(t, own=True),), "history", i) for i, t in enumerate(texts)))


def test_what_is_written_in_a_persons_voice_is_measured_as_theirs() -> None:
    people = [person("a", SHOUTS, SHOUTS), person("b", WHISPERS, WHISPERS)]
    cards = {
        "a": card(own_words=SHOUTS, own="GREAT!!! yes yes!!!", **{"global": "one might consider, quietly;"}),
        "b": card(own_words=WHISPERS, own="perhaps, quietly;", **{"global": "one might consider, quietly;"}),
    }
    values = written_values(cards, people, HashedEncoder())
    assert values[STYLE]["own"] == {"a": 1.0, "b": 1.0} and values[STYLE]["global"] == {"a": 0.0, "b": 1.0}
    assert values[STYLE][OWN_WORDS] == {"a": 1.0, "b": 1.0}
    assert values[CONTENT]["own"] == {"a": 1.0, "b": 1.0} and values[CONTENT]["global"]["a"] == 0.0
    assert values["ROUGE-1"]["own"]["a"] > values["ROUGE-1"]["global"]["a"]
    assert values["BERTScore (MiniLM)"]["own"]["a"] > values["BERTScore (MiniLM)"]["global"]["a"]
    own, one_for_all = (responsiveness_of(cards, arm, HashedEncoder()) for arm in ("own", "global"))
    assert own["EGISES"] < one_for_all["EGISES"] == pytest.approx(1.0, abs=1e-3)
    assert written_values({"a": PersonCard()}, people, HashedEncoder()) == {}


def test_lower_is_better_is_turned_round() -> None:
    rng = np.random.default_rng(0)
    values = {criteria.PUBLIC: {"global": {f"u{i}": 3.0 for i in range(9)}, "own": {f"u{i}": 3.3 for i in range(9)}}}
    rows = {row["arm"]: row for row in criteria.measure_rows("t", values, rng)}
    assert rows["own"]["difference"] == pytest.approx(-0.3) and rows["own"]["said"] == "shown to be worse"
    assert rows["global"]["difference"] is None and rows["global"]["said"] == ""
    assert criteria.notes(list(rows.values())) == [
        "t, own: public neutral text costs +10.0% bits per token against global (more than 1%)."
    ]
