"""What each source of the vault may be used for, and a change of it: the owner's to make, noted in the journal.

own       the owner's own model: found, quoted, trained on; stays on the device      granted when a source is added
shared    scrubbed text may train what leaves in private sums, as far as the dial goes     refused until it is given
"""

from __future__ import annotations

import time

from client.importers import PURPOSES
from client.journal import note
from client.vault import Vault
from privacy.errors import ConfigError


def consent(vault: Vault, source: int, purpose: str, granted: bool) -> bool:
    """Grant or withdraw a purpose for a source, and return whether that changed anything; both or neither is kept.

    What is derived from a source whose `own` is withdrawn stays in the vault, unused; `confide device forget` removes.
    Raises ConfigError for a source or purpose that there is not.
    """
    if purpose not in PURPOSES:
        raise ConfigError(f"no purpose {purpose}: there is {', '.join(PURPOSES)}")
    with vault.change() as rows:
        if rows.execute("SELECT 1 FROM source WHERE id = ?", (source,)).fetchone() is None:
            raise ConfigError(f"the vault has no source {source}")
        before = rows.execute(
            "SELECT granted FROM consent WHERE source = ? AND purpose = ?", (source, purpose)
        ).fetchone()
        if before is not None and bool(before[0]) == granted:
            return False
        rows.execute("INSERT OR REPLACE INTO consent VALUES (?, ?, ?, ?)", (source, purpose, int(granted), time.time()))
        note(rows, {"consent": purpose, "source": source, "granted": granted})
    return True
