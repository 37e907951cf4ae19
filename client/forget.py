"""Forgetting: text, embeddings, profile lines, pseudonyms, chats that quoted it, own adapters that learned from it.

    one transaction: documents and all that hangs on them  ->  the file rewritten, its log emptied  ->  a certificate

What is derived points at its document and goes with it. An own adapter that was trained on a forgotten document is
deleted, not patched: the next training starts from nothing without it. What shared releases learned before cannot be
taken back; the certificate says within which bound, by this device's own ledger.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from client.vault import Vault
from privacy.errors import ConfigError

RETRAIN = "retrain"


@dataclass(frozen=True)
class Wanted:
    """What to forget: documents by number, sources by number, everything written before a time (seconds since 1970)."""

    documents: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    before: float | None = None


@dataclass(frozen=True)
class Certificate:
    """What was forgotten, in numbers alone: no text, and no hash by which a text could be guessed."""

    time: str
    documents: tuple[int, ...]
    sources: tuple[int, ...]
    vectors: int
    profile_lines: int
    pseudonyms: int
    chats: int
    ratings: int
    adapters: int
    file_rewritten: bool
    releases: str

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return asdict(self)


def forget(vault: Vault, wanted: Wanted, releases: str = "") -> Certificate:
    """Forget and return the certificate, which the vault keeps too.

    Raises ConfigError where nothing matches, VaultError where the file cannot be rewritten now: the text is then
    deleted and overwritten in the file, and forgetting again empties the log as well.
    """
    with vault.change() as rows:
        numbers = _matching(rows, wanted)
        sources = _existing(rows, "source", wanted.sources)
        if not numbers and not sources:
            raise ConfigError("nothing in the vault matches; `confide device status` lists its sources")
        counts = _deleted(rows, numbers, sources)
        if counts["adapters"]:
            rows.execute("INSERT OR REPLACE INTO setting VALUES (?, '1')", (RETRAIN,))
        made = Certificate(
            datetime.now(UTC).isoformat(timespec="seconds"),
            tuple(numbers),
            tuple(sources),
            **counts,
            file_rewritten=True,
            releases=releases or "This device has answered no federation: no release holds anything of it.",
        )
        rows.execute(
            "INSERT INTO forgotten (time, certificate) VALUES (?, ?)", (time.time(), json.dumps(made.to_json()))
        )
    vault.erase_free_pages()
    return made


def mark(rows: Any, source: int, key: str) -> bytes:
    """Return the mark by which a forgotten document is known again: keyed, so outside the vault it says nothing."""
    rows.execute("INSERT OR IGNORE INTO setting VALUES ('tombstone', ?)", (secrets.token_hex(32),))
    secret = rows.execute("SELECT value FROM setting WHERE name = 'tombstone'").fetchone()[0]
    place = rows.execute("SELECT kind || char(10) || place FROM source WHERE id = ?", (source,)).fetchone()[0]
    return hmac.digest(bytes.fromhex(secret), f"{place}\n{key}".encode(), "sha256")


def _matching(rows: Any, wanted: Wanted) -> list[int]:
    found = set(_existing(rows, "document", wanted.documents))
    for source in wanted.sources:
        found |= {row[0] for row in rows.execute("SELECT id FROM document WHERE source = ?", (source,))}
    if wanted.before is not None:
        found |= {row[0] for row in rows.execute("SELECT id FROM document WHERE written < ?", (wanted.before,))}
    return sorted(found)


def _existing(rows: Any, table: str, numbers: Sequence[int]) -> list[int]:
    assert table in ("document", "source")
    here = {row[0] for row in rows.execute(f"SELECT id FROM {table}")}  # noqa: S608 - one of two names above
    if missing := [number for number in numbers if number not in here]:
        raise ConfigError(f"the vault has no {table} {missing[0]}")
    return sorted(set(numbers))


def _deleted(rows: Any, numbers: Sequence[int], sources: Sequence[int]) -> dict[str, int]:
    """Delete the documents and sources with all that was derived from them; return how much of each went."""
    rows.execute("CREATE TEMP TABLE IF NOT EXISTS gone (id INTEGER PRIMARY KEY)")
    rows.execute("DELETE FROM gone")
    rows.executemany("INSERT INTO gone VALUES (?)", [(number,) for number in numbers])
    counts = {
        "vectors": _count(rows, "SELECT count(*) FROM vector WHERE document IN gone"),
        "profile_lines": _count(rows, "SELECT count(*) FROM profile WHERE document IN gone"),
    }
    chats = rows.execute("DELETE FROM chat WHERE id IN (SELECT chat FROM chat_document WHERE document IN gone)")
    counts["chats"] = chats.rowcount
    learned = "SELECT adapter FROM adapter_document WHERE document IN gone"
    counts["adapters"] = rows.execute(f"DELETE FROM adapter WHERE id IN ({learned})").rowcount  # noqa: S608
    for source, key in rows.execute("SELECT source, key FROM document WHERE id IN gone").fetchall():
        if source not in sources:  # a whole source that is added again is wanted again
            rows.execute("INSERT OR IGNORE INTO tombstone VALUES (?)", (mark(rows, source, key),))
    rows.execute("DELETE FROM document WHERE id IN gone")
    counts["pseudonyms"] = drop_unused_pseudonyms(rows)
    before = _count(rows, "SELECT count(*) FROM interaction")
    rows.executemany("DELETE FROM source WHERE id = ?", [(source,) for source in sources])
    counts["ratings"] = before - _count(rows, "SELECT count(*) FROM interaction")
    rows.execute("DELETE FROM gone")
    return counts


def drop_unused_pseudonyms(rows: Any) -> int:
    """Delete the pseudonyms whose name stands in no document any more, and return how many that were."""
    used = "SELECT 1 FROM pseudonym_document d WHERE d.entity = pseudonym.entity AND d.name = pseudonym.name"
    return int(rows.execute(f"DELETE FROM pseudonym WHERE NOT EXISTS ({used})").rowcount)  # noqa: S608 - no value in it


def _count(rows: Any, statement: str) -> int:
    return int(rows.execute(statement).fetchone()[0])
