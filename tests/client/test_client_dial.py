"""The dial: what is beyond its stop is refused, and every turn of it is on the record."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import vault_key
from client.budget import year_cap
from client.dial import ALL, ALONE, METRICS, PERSONAS, STOPS, allowed, turn, turns, where
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfigError, VaultError
from privacy.objective import PURPOSES


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    with Vault.create(tmp_path, Opener(passphrase="x")) as made:
        yield made


def test_each_stop_allows_what_the_one_before_it_does_and_more() -> None:
    sets = [allowed(stop) for stop in (ALONE, METRICS, PERSONAS, ALL)]
    assert sets[0] == frozenset() and sets[-1] == frozenset(PURPOSES)
    assert all(less < more for less, more in itertools.pairwise(sets))
    assert tuple(STOPS) == (ALONE, METRICS, PERSONAS, ALL)
    with pytest.raises(ConfigError, match="not some"):
        allowed("some")


def test_a_turn_is_kept_with_its_line_and_a_wrong_one_changes_nothing(vault: Vault) -> None:
    assert where(vault) == ALONE and turns(vault) == []
    turn(vault, METRICS)
    turn(vault, ALL)
    with pytest.raises(ConfigError):
        turn(vault, "some")
    assert where(vault) == ALL and [line["dial"] for line in turns(vault)] == [METRICS, ALL]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE setting SET value = 'personas' WHERE name = 'dial'",
        "DELETE FROM journal WHERE id = 1",
        "DELETE FROM journal WHERE id = 2",
        "UPDATE journal SET line = replace(line, 'metrics', 'personas') WHERE id = 1",
    ],
)
def test_a_journal_that_was_changed_is_noticed(vault: Vault, change: str) -> None:
    turn(vault, METRICS)
    turn(vault, ALL)
    with vault.change() as rows:
        rows.execute(change)
    with pytest.raises(VaultError):
        turns(vault)


def test_without_a_policy_no_stop_costs_anything() -> None:
    assert [year_cap(None, stop) for stop in STOPS] == [0.0] * 4
