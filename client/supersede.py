"""Which memories still hold: what a newer one says again or takes back is not shown, because a small model repeats it.

Two rules over what was found, for an older and a newer text with times:

    said again   every word of the older passage, the commonest aside, stands in the newer one
    taken back   a sentence of the newer one has a word of change (`supersede.toml`: "now", "no longer", "since", ...)
                 and a frame in common with a sentence of the older: the same words in a row, at least `LEAST_FRAME`, to
                 which the older one adds at most `MOST_SLOT` words, before or behind

    "My sister lives in Turin."  "Since May my sister lives in Graz."       frame: my sister lives in; slot: Turin

Of what is taken back the sentence goes, of what is said again the passage: nothing but repetition is lost. The second
rule can be wrong: "I play in a band" is taken for taken back by "now I play in a club", though both may be true. What
it keeps from a prompt stays in the vault and is found by search. A correction that shares no frame, or has no word of
change (the words are English and German), is not recognised: order and date alone speak for it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from client.lexical import STOP_WORDS
from client.lexical import words as words_of
from client.library import Passage

LEAST_WORDS = 3  # of a memory that a newer one may repeat
LEAST_FRAME, MOST_SLOT = 3, 3
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+", re.UNICODE)
Words = tuple[str, ...]


def current(found: Sequence[Passage]) -> list[Passage]:
    """Return `found` without what a newer passage among them says again or takes back; without a time all stays."""
    told = [(passage, set(words_of(passage.text)), _sentences(passage.text)) for passage in found]
    kept = []
    for passage, said, sentences in told:
        later = [other for other in told if _later(other[0], passage)]
        if len(said) >= LEAST_WORDS and any(said <= words for _, words, _ in later):
            continue
        changes = [words for _, _, others in later for _, words in others if _changes(words)]
        holds = [text for text, words in sentences if not any(taken_back(words, newer) for newer in changes)]
        if len(holds) == len(sentences):
            kept.append(passage)
        elif holds:
            kept.append(replace(passage, text=" ".join(holds)))
    return kept


def taken_back(older: Words, newer: Words) -> bool:
    """Return whether a sentence has a frame that `newer` fills otherwise, or is repeated there; both are its words."""
    for slot in range(min(MOST_SLOT, len(older) - LEAST_FRAME) + 1):
        for frame in (older[: len(older) - slot], older[slot:]):
            if not all(STOP_WORDS.fullmatch(word) for word in frame) and _stands_in(frame, newer):
                return True
    return False


def _stands_in(frame: Words, words: Words) -> bool:
    return any(words[i : i + len(frame)] == frame for i in range(len(words) - len(frame) + 1))


def _later(one: Passage, other: Passage) -> bool:
    return one.written is not None and other.written is not None and one.written > other.written


def _sentences(text: str) -> list[tuple[str, Words]]:
    pieces = [piece.strip() for piece in _END.split(text)]
    return [(piece, tuple(_WORD.findall(piece.lower()))) for piece in pieces if piece]


def _changes(words: Words) -> bool:
    return any(_stands_in(change, words) for change in _words_of_change())


@lru_cache(maxsize=1)
def _words_of_change() -> tuple[Words, ...]:
    table = tomllib.loads(Path(__file__).with_name("supersede.toml").read_text(encoding="utf-8"))
    return tuple(tuple(_WORD.findall(phrase)) for phrases in table.values() for phrase in phrases)
