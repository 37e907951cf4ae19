"""The public tables of a run: the encoder and the words that its queries may rest on, opened once in a process."""

from __future__ import annotations

from functools import lru_cache

from client.encoder import HASHED, Encoder, open_encoder
from client.figures import STYLE, PublicTables
from privacy.errors import ConfigError
from server.plan import CampaignPlan
from server.public import Public
from simulation.basis_cache import Arrays
from simulation.config import RunConfig


def tables_of(config: RunConfig) -> PublicTables | None:
    """Return the tables that the queries of `config` rest on, None where they rest on none.

    Raises ModelError where the encoder cannot be had, ConfigError where it knows fewer words than are to be counted.
    """
    asked = config.queries
    if not (asked.clustering or asked.words or asked.retriever_rounds):
        return None
    reads_meaning = asked.words or asked.retriever_rounds or asked.portrait != STYLE
    encoder = _encoder(asked.encoder if reads_meaning else HASHED)  # style alone needs no encoder fetched
    words = encoder.common_words(asked.words)
    if len(words) < asked.words:
        raise ConfigError(f"queries.words: the encoder {asked.encoder} knows {len(words)} words, not {asked.words}")
    return PublicTables(encoder, words, asked.portrait)


def public_of(tables: PublicTables | None, plan: CampaignPlan, curvature: Arrays) -> Public:
    """Return what a campaign's server needs: the tables' words, where its retriever may turn a query, the curvature."""
    if tables is None:
        return Public(arrays=curvature)
    directions = {"directions": tables.directions(plan.retriever_rank)} if plan.retriever_rounds else {}
    return Public(tables.words, directions | curvature)


@lru_cache(maxsize=2)
def _encoder(name: str) -> Encoder:
    return open_encoder(name)
