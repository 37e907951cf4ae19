"""What the tests of the core share: queries and policies that are fine, to be changed one field at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from privacy.policy import Policy
from privacy.query import Cohort, Limits, Query

POLICY = Policy(
    federation="test",
    purposes=("train.global", "train.persona"),
    min_noise_multiplier=Fraction(1, 2),
    max_clip_norm=Fraction(1),
    min_invited=10,
    min_survivor_fraction=Fraction(2, 3),
    max_participations=4,
    budget_rho=Fraction(2),
    max_dim=10_000,
    limits=Limits(own_tokens=512, local_steps=8),
    basis_sha256="b" * 64,
    release_signer="e" * 64,
)
QUERY = Query(
    federation="test",
    campaign="first",
    round=1,
    attempt=0,
    purpose="train.global",
    slots=1,
    slot_dim=50,
    clip_norm=Fraction(1, 10),
    noise_multiplier=Fraction(1),
    cohort=Cohort(100),
    transport="ideal",
    release_sha256="a" * 64,
    basis_sha256="b" * 64,
    policy_sha256=POLICY.sha256,
    ledger_head="c" * 64,
    objective="next-token",
    limits=Limits(own_tokens=512, local_steps=2),
)


@pytest.fixture(scope="session")
def asked() -> Callable[..., Query]:
    """Return a maker of queries: a fine one with the given fields replaced."""

    def make(**changes: Any) -> Query:
        return replace(QUERY, **changes)

    return make


@pytest.fixture(scope="session")
def granted() -> Callable[..., Policy]:
    """Return a maker of policies: one that grants the fine query, with the given fields replaced."""

    def make(**changes: Any) -> Policy:
        return replace(POLICY, **changes)

    return make
