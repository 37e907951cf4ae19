"""Ratings on invented people: who rates high by habit, what is said in the text; and recipes that can be read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import confide
from client.documents import Document, Person, Span
from client.encoder import HashedEncoder
from privacy.errors import ConfigError, DataError
from simulation.config import load_config
from simulation.progress import Progress
from simulation.scorecard.rating import BOTH, EVERYBODY, MAE, MEDIAN, MOOD, SIMILAR, WRONG, explained, rating_values
from simulation.scorecard.recipe import Recipe

RECIPES = Path(confide.__file__).parent / "recipes"
GOOD, BAD = ("wonderful", "lovely", "splendid"), ("terrible", "awful", "dreadful")


def rated(user: str, number: int, habit: int, rng: random.Random) -> Person:
    """Someone whose stars are what the text says plus a habit of their own, in 1 to 5."""
    documents = []
    for i in range(number):
        good = rng.random() < 0.5
        words = " ".join(rng.choices(GOOD if good else BAD, k=3))
        stars = (5 if good else 2) + habit
        spans = (Span(f"{words}\n", own=False), Span(f"{stars}\n", own=True))
        documents.append(Document(f"{user}.{i}", spans, "test" if i >= number - 4 else "history", i))
    return Person(user, tuple(documents))


def people() -> list[Person]:
    rng = random.Random(4)
    return [rated(f"u{i:02d}", 16, (-1, 0)[i % 2], rng) for i in range(12)]


def test_text_and_habit_together_beat_either_alone() -> None:
    values, chosen = rating_values(people(), HashedEncoder(), 4, Progress(quiet=True))
    means = {arm: float(np.mean(list(row.values()))) for arm, row in values[MAE].items()}
    assert means[BOTH] < 0.2 < means[EVERYBODY] < means[MEDIAN]
    assert means[SIMILAR] < means[MEDIAN], "their own nearest texts say it too"
    assert means[WRONG] > means[EVERYBODY], "the habit of another is the wrong one"
    assert means[MOOD] < means[MEDIAN], "gladder texts, more stars"
    assert chosen["weight"] > 0 and chosen["slope"] > 0


def test_the_nearest_own_items_explain() -> None:
    person = people()[0]
    asked = Document("q", (Span("wonderful lovely\n", own=False), Span("5\n", own=True)), "test", 99)
    found = explained(person.history, asked, HashedEncoder())
    texts = {d.id: d.text for d in person.documents}
    assert len(found) == 3 and all(any(word in texts[name] for word in GOOD) for name in found)
    assert explained((), asked, HashedEncoder()) == []


def test_nobody_who_rates_is_said() -> None:
    words = Person("u", (Document("u.0", (Span("only words", own=True),), "history", 0),))
    with pytest.raises(DataError, match="two people with rated history"):
        rating_values([words], HashedEncoder(), 4, Progress(quiet=True))


@pytest.mark.parametrize("name", ["writing", "recommendation"])
def test_recipes_are_read(name: str) -> None:
    recipe = Recipe.read(RECIPES / f"{name}.toml")
    assert recipe.title and recipe.settings(["test_documents=1"]).test_documents == 1


def test_every_other_recipe_is_a_configuration() -> None:
    for path in RECIPES.glob("*.toml"):
        if "application" not in path.read_text(encoding="utf-8"):
            assert load_config(path, []).people


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('title = "x"', "is no recipe"),
        ('title = "x"\napplication = "y"\ntask = "dance"', "bad.toml: unknown task 'dance'; known: next text"),
        ('title = "x"\napplication = "y"\narms = ["nonsense"]', "unknown arm nonsense"),
        ('title = "x"\napplication = "y"\n[card]\nnonsense = 1', "unknown key nonsense"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        Recipe.read(tmp_path / "bad.toml")
