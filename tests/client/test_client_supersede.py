"""What a newer memory takes back is not shown; what merely sounds alike is."""

from __future__ import annotations

import pytest

from client.library import Passage
from client.supersede import current


def passage(day: float | None, text: str) -> Passage:
    return Passage(int(day or 0), 0, "note", "", day, text, own=True)


def shown(older: str, newer: str) -> list[str]:
    return [each.text for each in current([passage(1, older), passage(2, newer)])]


@pytest.mark.parametrize(
    "newer",
    [
        "My sister lives in Graz now.",
        "Since May my sister lives in Graz.",
        "Hello! We moved the party. My sister lives in Graz now, by the way. See you.",
        "I was wrong, my sister lives in Graz.",
    ],
)
def test_a_fact_that_is_corrected_is_no_longer_shown(newer: str) -> None:
    assert shown("My sister lives in Turin.", newer) == [newer]


def test_the_slot_may_stand_before_the_frame_and_words_may_be_german() -> None:
    assert shown("Vale is my dentist.", "Moss is my dentist now.") == ["Moss is my dentist now."]
    assert shown("Meine Katze heißt Olive.", "Seit gestern heißt es anders: meine Katze heißt Coco.") == [
        "Seit gestern heißt es anders: meine Katze heißt Coco."
    ]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("I am glad of the new bridge.", "I am glad of the new tram."),  # no word of change
        ("My sister lives in Turin.", "My brother lives in Graz now."),  # no frame in common
        ("My sister lives in Turin with two cats and a boat.", "My sister lives in Graz now."),  # says much more
        ("It is in the house.", "Now it is in the garden."),  # a frame of the commonest words says nothing
    ],
)
def test_what_is_no_correction_leaves_both(older: str, newer: str) -> None:
    assert shown(older, newer) == [older, newer]


def test_only_the_sentence_that_is_taken_back_goes() -> None:
    older = "We met at the mill. My sister lives in Turin. She has a boat."
    newer = "My sister lives in Graz now."
    assert shown(older, newer) == ["We met at the mill. She has a boat.", newer]


def test_neither_an_older_nor_an_undated_one_takes_anything_back() -> None:
    now = passage(1, "My sister lives in Graz now.")
    later, undated = passage(2, "My sister lives in Turin."), passage(None, "My sister lives in Turin.")
    assert current([now, later, undated]) == [now, later, undated]
