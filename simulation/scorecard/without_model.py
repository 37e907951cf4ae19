"""Scorecards that need no language model and no run: ratings, rankings and searches of people's own items and texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from client.encoder import open_encoder
from privacy.errors import ConfigError
from simulation.population import load_people
from simulation.progress import Progress
from simulation.scorecard import ranking, rating, searching
from simulation.scorecard.criteria import Measure, adjusted, measure_rows
from simulation.scorecard.evaluate import CardReport
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.tasks import RANKING, RATING, SEARCH, task_named

KINDS = (RATING, RANKING, SEARCH)
REFERENCE = {RATING: rating.MEDIAN, RANKING: ranking.POPULARITY, SEARCH: searching.PLAIN}


def card_without_model(
    sources: Sequence[str], settings: CardSettings, progress: Progress, people: int | None = None
) -> CardReport:
    """Return the scorecard of the task `settings.task` on every source of people, differences to its simplest arm.

    `people` at most of each, those with most to learn from. Raises ConfigError without a source.
    """
    started, kind = time.monotonic(), task_named(settings.task).kind
    if not sources:
        raise ConfigError(f"a scorecard of {settings.task} needs --people NAME:FOLDER")
    encoder, rng = open_encoder(settings.encoder), np.random.default_rng([0, 11])
    measures: list[Measure] = []
    notes = []
    for source in sources:
        population = load_people(source, people)
        some, tuning, test = population.people, settings.tuning_documents, settings.test_documents
        if kind == RATING:
            values, chosen = rating.rating_values(some, encoder, tuning, progress)
        elif kind == RANKING:
            values, chosen = ranking.ranking_values(some, encoder, tuning, test, progress)
        else:
            values, chosen = searching.search_values(some, encoder, tuning, test, progress)
        name = Path(population.source).name
        measures += measure_rows(name, values, rng, reference=REFERENCE[kind])
        notes.append(f"{name}: chosen on tuning documents: " + ", ".join(f"{k} {v:g}" for k, v in chosen.items()) + ".")
    return {
        "table": {"tasks": [], "rows": [], "cold": [], "seeds": [], "notes": notes},
        "measures": adjusted(measures),
        "groups": [],
        "gaps": [],
        "responsiveness": {},
        "bias": {"questions": 0, "rows": [], "gaps": []},
        "releases": [],
        "seconds": time.monotonic() - started,
        "settings": dict(vars(settings)),
    }
