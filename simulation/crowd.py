"""People by their number, each made or read when somebody asks: a population that is never in memory as a whole.

    source (picklable: a few numbers)  --make(number)-->  Person          crowd: a source and some of its numbers

A crowd is a sequence of people like a tuple of them, costs four bytes a person, and travels to a host as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from client.documents import Person

Numbers = NDArray[np.int32]


class Source(Protocol):
    """Where people come from. Names ascend with their numbers, so that a crowd in order has its names in order."""

    @property
    def people(self) -> int:
        """Return how many there are: numbers 0 up to this."""

    @property
    def sha256(self) -> str:
        """Return the hash of what everybody's text follows from."""

    def name(self, number: int) -> str:
        """Return a person's pseudonym."""

    def number(self, name: str) -> int | None:
        """Return the number of the person of that name, None where there is none."""

    def make(self, number: int) -> Person:
        """Return the person: the same one whenever, wherever and in whatever order it is asked for."""


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """The names of some of a source's people, in order; each is made when it is looked at."""

    source: Source
    numbers: Numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> str | Names:
        if isinstance(place, slice):
            return Names(self.source, self.numbers[place])
        return self.source.name(int(self.numbers[place]))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.place(name) is not None

    def place(self, name: str) -> int | None:
        """Return where `name` stands, by bisection; None where it does not."""
        number = self.source.number(name)
        if number is None:
            return None
        found = int(np.searchsorted(self.numbers, number))
        return found if found < len(self.numbers) and self.numbers[found] == number else None

    def drawn(self, number: int, rng: np.random.Generator) -> list[str]:
        """Return at most `number` of the names, sorted, drawn by `rng`."""
        places = rng.choice(len(self), min(number, len(self)), replace=False)
        return [self[int(place)] for place in sorted(places)]


@dataclass(frozen=True, eq=False)
class Crowd(Sequence[Person]):
    """Some of a source's people; `numbers` int32 [people] ascend."""

    source: Source
    numbers: Numbers

    @classmethod
    def everybody(cls, source: Source, at_most: int | None = None) -> Crowd:
        """Return the people of a source, or the first so many."""
        return cls(source, np.arange(min(source.people, at_most or source.people), dtype=np.int32))

    @property
    def names(self) -> Names:
        """Return the people's names, in the same order."""
        return Names(self.source, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Person: ...
    @overload
    def __getitem__(self, place: slice) -> Crowd: ...
    def __getitem__(self, place: int | slice) -> Person | Crowd:
        if isinstance(place, slice):
            return Crowd(self.source, self.numbers[place])
        return self.source.make(int(self.numbers[place]))

    def __contains__(self, person: object) -> bool:
        return isinstance(person, Person) and person.user in self.names

    def parted(self, chosen: NDArray[np.bool_]) -> tuple[Crowd, Crowd]:
        """Return the people who are not `chosen`, bool [people], and those who are."""
        return Crowd(self.source, self.numbers[~chosen]), Crowd(self.source, self.numbers[chosen])


def names_of(people: Sequence[Person]) -> Sequence[str]:
    """Return the pseudonyms of people in their order, without making anybody of a crowd."""
    return people.names if isinstance(people, Crowd) else [person.user for person in people]


class People:
    """The people of one host by name: those given, or of crowds each made when asked for and not kept."""

    def __init__(self, *parts: Sequence[Person]) -> None:
        self._crowds = [part for part in parts if isinstance(part, Crowd)]
        self._known = {person.user: person for part in parts if not isinstance(part, Crowd) for person in part}

    def __getitem__(self, user: str) -> Person:
        if user in self._known:
            return self._known[user]
        for crowd in self._crowds:
            place = crowd.names.place(user)
            if place is not None:
                return crowd[place]
        raise KeyError(user)

    def __contains__(self, user: str) -> bool:
        return user in self._known or any(user in crowd.names for crowd in self._crowds)
