"""The people of a simulated federation: who they are, what they wrote, what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.documents import Document, Person, own_words
from privacy.errors import DataError
from simulation.crowd import Crowd
from simulation.datasets import catalogue, chitchat, indexed, jsonl, synthetic
from simulation.datasets.indexed import Indexed
from simulation.datasets.synthetic import Synthetic

MIN_TEST_DOCUMENTS = 2
COVERAGE_WORDS = (256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Population:
    """People of one source, in a stable order; what was wrong with the source; what was counted.

    `people` is a tuple, or a crowd that makes each when asked for and is never in memory as a whole. `sha256` is
    that of the source file, for `run.json`. No conversation (`Document.group`) is history for one person and test for
    another.
    """

    source: str
    people: Sequence[Person]
    warnings: tuple[str, ...]
    counts: Mapping[str, int]
    sha256: str

    @property
    def by_user(self) -> dict[str, Person]:
        """Return the people by their pseudonym."""
        return {person.user: person for person in self.people}


def load_people(
    source: str, max_people: int | None, strict: bool = False, min_test: int = MIN_TEST_DOCUMENTS
) -> Population:
    """Return the people of `source`: `chitchat`, a JSONL file, NAME:FOLDER, `stream:FILE` or `synthetic:N`.

    `stream` and `synthetic` make people when asked for and give all they have, whatever `max_people` is. Of others the
    order is: those with at least `min_test` test documents first, then by own history words, then by id; the first
    `max_people` are kept, and their pseudonyms do not depend on `max_people`. Broken records become warnings with file
    and number.
    Raises DataError if nothing can be read, nobody is left or, with `strict`, at the first broken record.
    """
    if max_people is not None and max_people < 1:
        raise DataError(f"max_people must be at least 1, not {max_people}")
    name, _, rest = source.partition(":")
    if name in (synthetic.PREFIX, indexed.PREFIX):
        found = Synthetic.of(source) if name == synthetic.PREFIX else Indexed.read(Path(rest))
        made = Crowd.everybody(found)
        return Population(source, made, (), {"people": len(made), "people_kept": len(made)}, found.sha256)
    if source == "chitchat":
        loaded = chitchat.load(chitchat.find_file(), min_test, strict)
    else:
        loaded = catalogue.load(source, min_test, strict) or jsonl.load(Path(source), min_test, strict)
    if not loaded.people:
        fault = f"; the first fault: {loaded.warnings[0]}" if loaded.warnings else ""
        raise DataError(f"{Path(source).name}: holds no people{fault}")
    people = loaded.people[:max_people]
    refuse_shared_conversations(people)
    counts = {**loaded.counts, **coverage(loaded.people, min_test), "people_kept": len(people)}
    counts |= repeated_texts(people)
    return Population(source, people, loaded.warnings, counts, loaded.sha256)


def as_organisations(population: Population, number: int) -> Population:
    """Return the same documents held by `number` organisations, people dealt out in turn; 0 leaves them as they are.

    Raises DataError for more organisations than people. A document keeps its id, which names whose it is.
    """
    if not number:
        return population
    if number > len(population.people):
        raise DataError(f"{len(population.people)} people cannot be held by {number} organisations")
    held = [
        Person(f"organisation-{k + 1}", tuple(d for person in population.people[k::number] for d in person.documents))
        for k in range(number)
    ]
    return replace(population, people=tuple(held), counts={**population.counts, "organisations": number})


def refuse_shared_conversations(people: Iterable[Person]) -> None:
    """Raise DataError if a conversation is history for one document and test for another."""
    history: set[str] = set()
    test: set[str] = set()
    for person in people:
        for document in person.documents:
            (test if document.split == "test" else history).add(document.group)
    if shared := history & test:
        raise DataError(f"{len(shared)} conversations are in both history and test")


def coverage(people: Sequence[Person], min_test: int) -> dict[str, int]:
    """Return how many people there are, with enough test documents, and with so many own history words."""
    words = [own_words(person.history) for person in people if len(person.test) >= min_test]
    counts = {"people": len(people), "people_with_test": len(words)}
    for least in COVERAGE_WORDS:
        counts[f"people_with_test_and_{least}_history_words"] = sum(count >= least for count in words)
    return counts


def repeated_texts(people: Sequence[Person]) -> dict[str, int]:
    """Return how many test documents there are, and how many repeat the own text of a history document word for word.

    The history of all `people` is searched, not only the writer's. Case and white space do not count.
    """
    history = {_words(document) for person in people for document in person.history}
    test = [_words(document) for person in people for document in person.test]
    return {"test_documents": len(test), "test_documents_repeating_history": sum(text in history for text in test)}


def _words(document: Document) -> str:
    return " ".join(document.own_text.lower().split())
