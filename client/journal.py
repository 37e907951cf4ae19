"""The vault's journal: every change of what may leave the device, a line each, chained by its hash to the line before.

    {"dial": "metrics"}    {"consent": "shared", "source": 2, "granted": true}    {"scrubbing": "strict"}

A line is written in the transaction that makes the change, so neither is there without the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from client.vault import Vault
from privacy.canonical import Json, canonical_json, sha256_hex
from privacy.errors import VaultError

_FIRST = "0" * 64


def note(rows: Any, change: Mapping[str, Json]) -> None:
    """Write a line about a change into the journal, inside the transaction `rows` that makes it."""
    last = rows.execute("SELECT head FROM journal ORDER BY id DESC LIMIT 1").fetchone()
    line = {**change, "before": last[0].hex() if last else _FIRST, "second": int(time.time())}
    head = bytes.fromhex(sha256_hex(canonical_json(line)))
    rows.execute("INSERT INTO journal (time, line, head) VALUES (?, ?, ?)", (line["second"], json.dumps(line), head))


def changes(vault: Vault) -> list[dict[str, Any]]:
    """Return every line, oldest first. Raises VaultError where one was changed or taken out of the middle."""
    found: list[dict[str, Any]] = []
    before = _FIRST
    for text, head in vault.select("SELECT line, head FROM journal ORDER BY id"):
        line = json.loads(text)
        if line["before"] != before or sha256_hex(canonical_json(line)) != head.hex():
            raise VaultError("the journal of what may leave was changed outside this program")
        before = head.hex()
        found.append(line)
    return found
