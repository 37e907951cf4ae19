"""PROTOCOL.md and THREATS.md say what the code does: names, numbers and tests that they mention exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import pytest

from privacy.accounting import epsilon_gdp, epsilon_zcdp, sybil_rho
from privacy.objective import CHOICES, OBJECTIVES, PURPOSES
from privacy.policy import Policy
from privacy.query import PROTOCOL, TRANSPORTS, Cohort, Query
from privacy.wire import RefusalCode

HERE = Path(__file__).parents[2]
PROTOCOL_TEXT = (HERE / "privacy" / "PROTOCOL.md").read_text()
THREATS_TEXT = (HERE / "privacy" / "THREATS.md").read_text()


def test_every_test_that_threats_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", THREATS_TEXT))
    sources = "\n".join(path.read_text() for path in (HERE / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_refusal_code_is_in_the_protocol_under_its_number() -> None:
    listed = dict(re.findall(r"^\| (\d+) \| `([a-z.-]+)`", PROTOCOL_TEXT, re.MULTILINE))
    assert listed == {str(number): code.value for number, code in enumerate(RefusalCode)}


@pytest.mark.parametrize("kind", [Query, Policy])
def test_every_field_is_in_the_protocol(kind: type[Query | Policy]) -> None:
    for field in fields(kind):
        assert f"`{field.name}`" in PROTOCOL_TEXT, field.name
    for value in (PROTOCOL, *PURPOSES, *OBJECTIVES, *CHOICES, *TRANSPORTS):
        assert value in PROTOCOL_TEXT


def test_the_figures_of_threats_are_computed(asked: Callable[..., Query]) -> None:
    query = asked(cohort=Cohort(100), noise_multiplier=Fraction(1))
    assert query.rho is not None
    alone = sybil_rho(query)
    told = (
        f"honest = {query.cohort.honest}; `epsilon` {epsilon_zcdp(query.rho, 1e-6):.2f} "
        f"(exact {epsilon_gdp(query.rho, 1e-6):.2f}) against a reader of the release; "
        f"{epsilon_zcdp(alone, 1e-6):.1f} (exact {epsilon_gdp(alone, 1e-6):.1f})"
    )
    assert told in THREATS_TEXT
