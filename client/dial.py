"""The privacy dial: how far a person lets their device answer a federation, from nothing to all.

    alone      nothing leaves
    metrics    figures of how well adapters serve, in private sums
    personas   and which persona fits, and steps of that persona's adapter
    all        and steps of the adapters and the retriever that everybody shares

A stop is a set of purposes; what is beyond it is refused before anything is computed or charged, whatever the
federation's policy grants. A turn of the dial is a line in the vault's journal (`client.journal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from client.journal import changes, note
from client.vault import Vault
from privacy.errors import ConfigError, VaultError
from privacy.objective import PURPOSES

ALONE, METRICS, PERSONAS, ALL = "alone", "metrics", "personas", "all"
_METRICS: Final = ("measure.adapters",)
_PERSONAS: Final = (*_METRICS, "cluster.persona", "describe.persona", "train.persona")
STOPS: Final[Mapping[str, tuple[str, ...]]] = {ALONE: (), METRICS: _METRICS, PERSONAS: _PERSONAS, ALL: PURPOSES}
SETTING = "dial"
DELTA = 1e-6


def allowed(stop: str) -> frozenset[str]:
    """Return the purposes that a stop allows. Raises ConfigError for a stop that there is not."""
    if stop not in STOPS:
        raise ConfigError(f"the dial has the stops {', '.join(STOPS)}, not {stop}")
    return frozenset(STOPS[stop])


def where(vault: Vault) -> str:
    """Return where the dial stands; alone until somebody turned it."""
    return vault.setting(SETTING, ALONE)


def turn(vault: Vault, stop: str) -> None:
    """Set the dial and note it in the journal, both or neither. Raises ConfigError for a stop that there is not."""
    allowed(stop)
    with vault.change() as rows:
        note(rows, {"dial": stop, "from": where(vault)})
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (SETTING, stop))


def turns(vault: Vault) -> list[dict[str, Any]]:
    """Return every turn of the dial, oldest first. Raises VaultError where the journal and the dial disagree."""
    found = [line for line in changes(vault) if "dial" in line]
    if (found[-1]["dial"] if found else ALONE) != where(vault):
        raise VaultError("the dial stands where no line of its journal says")
    return found


def checked(vault: Vault) -> tuple[str, int]:
    """Return where the dial stands and the number of turns until then, after a look at the journal (`turns`)."""
    found = turns(vault)
    return where(vault), len(found)
