"""How much scrubbing takes out of a text before anything is learned from it for others: the dial's second hand.

There is no strength at which nothing goes. A change is noted in the vault's journal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from client.journal import note
from client.vault import Vault
from privacy.errors import ConfigError

IDENTIFIERS, STANDARD, STRICT = "identifiers", "standard", "strict"
SETTING = "scrubbing"
_LEAST = frozenset({"DATE_TIME", "ORGANIZATION", "NUMBER"})
LEFT_ALONE: Final[Mapping[str, frozenset[str]]] = {
    IDENTIFIERS: _LEAST | {"LOCATION", "NRP", "AGE"},
    STANDARD: _LEAST,
    STRICT: frozenset(),
}
"""The entities that each strength leaves in the text."""

REMOVES: Final[Mapping[str, str]] = {
    IDENTIFIERS: "names, street, mail and net addresses, phone, card, account and other identifying numbers, secrets",
    STANDARD: "these, and places, ages, nationality, religion, politics",
    STRICT: "these, and organisations, dates, every number",
}


def require_strength(strength: str) -> None:
    """Return for a strength that there is; raises ConfigError for another."""
    if strength not in LEFT_ALONE:
        raise ConfigError(f"scrubbing has the strengths {', '.join(LEFT_ALONE)}; it is never off, nor {strength}")


def strength_of(vault: Vault) -> str:
    """Return how much scrubbing takes out of what leaves; standard to begin with."""
    return vault.setting(SETTING, STANDARD)


def set_strength(vault: Vault, strength: str) -> None:
    """Set how much scrubbing takes out and note it in the journal, both or neither. Raises ConfigError."""
    require_strength(strength)
    with vault.change() as rows:
        note(rows, {"scrubbing": strength, "from": strength_of(vault)})
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (SETTING, strength))
