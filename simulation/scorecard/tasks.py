"""The tasks of a scorecard: what is asked of a model or a ranker, and by what it is told.

    text      bits per token of the person's own words; those that are generated are also written, and told by ROUGE
    choice    the likeliest of several ways on, nats a token: labels of a classification, answers to prefer
    rating    a number of stars, by error                     (`simulation.scorecard.rating`)
    ranking   items in order, by NDCG and hit ratio           (`simulation.scorecard.ranking`)
    search    own documents found among everybody's           (`simulation.scorecard.searching`)

In all of them the tokens of the person's held-out words are the same in every arm.
"""

from __future__ import annotations

from dataclasses import dataclass

from privacy.errors import ConfigError

TEXT, CHOICE, RATING, RANKING, SEARCH = "text", "choice", "rating", "ranking", "search"


@dataclass(frozen=True)
class Task:
    """One task: how it is told, what it asks in words, whether texts are written for it, on one line or on many."""

    name: str
    kind: str
    asks: str
    writes: bool = False
    one_line: bool = False
    code: bool = False


TASKS = (
    Task("next text", TEXT, "the next words of the person’s own text"),
    Task("reply", TEXT, "the person’s next turn, after what was said to them", writes=True, one_line=True),
    Task("headline", TEXT, "the person’s headline for a text", writes=True, one_line=True),
    Task("subject", TEXT, "the person’s subject line for a mail", writes=True, one_line=True),
    Task("long text", TEXT, "a text of several sentences in the person’s voice", writes=True),
    Task("coding", TEXT, "the lines that the person adds in their next commits", writes=True, code=True),
    Task("classification", CHOICE, "the label that the person gives, among all labels"),
    Task("preference", CHOICE, "the answer that the person would rather have, among several"),
    Task("rating", RATING, "the stars that the person gives"),
    Task("ranking", RANKING, "the item that the person takes next"),
    Task("search", SEARCH, "the person’s own document, from the words that lead up to it"),
)
BY_NAME = {task.name: task for task in TASKS}
DEFAULT = TASKS[0].name


def task_named(name: str) -> Task:
    """Return the task of a name; "text" is the first. Raises ConfigError for one that there is not."""
    found = BY_NAME.get(DEFAULT if name == TEXT else name)
    if found is None:
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(BY_NAME)}")
    return found
