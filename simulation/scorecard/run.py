"""The scorecard of one task: everybody's cards from their hosts, for every seed, and the table made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from client.documents import Document, Person, own_words
from simulation.host import Call, Hosts
from simulation.progress import Progress
from simulation.scorecard.arms import BY_NAME, CHOSEN, NOBODY, PERSONA_CORE, PREFERRED, PROBED
from simulation.scorecard.lent import CardSettings, Learned, Loan
from simulation.scorecard.person import PersonCard
from simulation.scorecard.reader import Rows

Vector = NDArray[np.float64]
SEED_STRIDE = 1_000_003


@dataclass
class TaskCards:
    """All people's cards of one task, one for each seed: cards[seed][user]; `inactive` people have nothing to score."""

    task: str
    data: str
    inactive: int = 0
    words: dict[str, int] = field(default_factory=dict)  # own words of history, by person
    declared: dict[str, str] = field(default_factory=dict)  # the declared persona, by person, "" for none
    cards: list[dict[str, PersonCard]] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What is asked of everybody: people in order, the flat cores, the arms, the settings.

    `personas` maps a person to the flat core, global included, of the persona that fits their history. The wrong person
    of each is the next in the list.
    """

    people: Sequence[Person]
    core: Vector
    personas: Mapping[str, Vector]
    arms: Sequence[str]
    settings: CardSettings
    probes: Mapping[str, tuple[Document, ...]] = field(default_factory=dict)  # by person; "" = everybody's
    write_with: tuple[str, ...] = ()
    dated: bool = False
    labels: tuple[str, ...] = ()
    probed: tuple[str, ...] = PROBED
    tuned: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)  # by person, from an earlier seed

    def wrong(self, place: int) -> Person | None:
        """Return the wrong person of the person at `place`, None for somebody alone."""
        other = self.people[(place + 1) % len(self.people)]
        return other if other.user != self.people[place].user else None


def run_cards(pool: Hosts, asked: Asked, seeds: Sequence[int], task: TaskCards, progress: Progress) -> TaskCards:
    """Fill `task` with a card of everybody for every seed; later seeds score only what depends on them."""
    task.words = {person.user: own_words(person.history) for person in asked.people}
    task.declared = {person.user: person.persona for person in asked.people}
    needs_own = any(name == CHOSEN or BY_NAME[name].own for name in asked.arms)
    for number, seed in enumerate(seeds):
        if number:  # what was written and asked under the first seed is what is told
            asked = replace(asked, probes={}, write_with=(), tuned={u: c.tuned for u, c in task.cards[0].items()})
        arms = list(asked.arms) if number == 0 else [name for name in asked.arms if _seeded(name)]
        own = _trained(pool, asked, seed, task.task, progress) if needs_own else {}
        task.cards.append(_scored(pool, asked, arms, own, f"{task.task}: scoring, seed {seed}", progress))
    return task


def _trained(pool: Hosts, asked: Asked, seed: int, task: str, progress: Progress) -> dict[str, Learned]:
    """Return everybody's own adapter and the tokens that it learned from."""
    own: dict[str, Learned] = {}
    preferred = any(name in BY_NAME and BY_NAME[name].own == PREFERRED for name in asked.arms)
    with progress.task(f"{task}: own adapters, seed {seed}", len(asked.people)) as step:

        def done(user: str, result: Learned) -> None:
            own[user] = result
            step()

        calls: list[tuple[str, Call]] = [
            (p.user, ("card_train", (p.user, asked.core, asked.settings, seed * SEED_STRIDE + i, preferred)))
            for i, p in enumerate(asked.people)
        ]
        pool.run(calls, done)
    return own


def _scored(
    pool: Hosts,
    asked: Asked,
    arms: Sequence[str],
    own: Mapping[str, Learned],
    label: str,
    progress: Progress,
) -> dict[str, PersonCard]:
    cards: dict[str, PersonCard] = {}
    with progress.task(label, len(asked.people)) as step:

        def done(user: str, card: PersonCard) -> None:
            if user in own:
                card.learned_tokens, card.cpu_s = own[user].tokens, own[user].cpu_s
            cards[user] = card
            step()

        calls: list[tuple[str, Call]] = [
            (p.user, ("card_score", (p.user, arms, _loan(asked, place, own), asked.settings)))
            for place, p in enumerate(asked.people)
        ]
        pool.run(calls, done)
    return cards


def _loan(asked: Asked, place: int, own: Mapping[str, Learned]) -> Loan:
    user, other = asked.people[place].user, asked.wrong(place)
    cores = {"global": asked.core}
    if user in asked.personas:
        cores[PERSONA_CORE] = asked.personas[user]
    return Loan(
        cores,
        own[user].own if own else {},
        own[other.user].own if own and other else None,
        other.history if other else (),
        asked.probes.get(user, asked.probes.get("", ())),
        asked.write_with,
        asked.dated,
        own[user].extended if own else None,
        own[user].preferred if own else None,
        asked.labels,
        asked.probed,
        asked.tuned.get(user, {}),
    )


def _seeded(name: str) -> bool:
    """Return whether an arm depends on the seed: what is trained does, and what is chosen with it."""
    return name == CHOSEN or BY_NAME[name].own != NOBODY
