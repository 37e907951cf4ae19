"""Entries of a ledger: one line each, chained by SHA-256 and signed by Ed25519.

    line_n = {"entry":E_n,"sig":"..."} newline       E_n canonical JSON, keys body kind prev seq ts v
    prev_n = SHA-256(0x00 || line_(n-1) without its newline), sixty-four zeros for the first
    sig_n  = Ed25519("confide/ledger/1" || 0x00 || E_n)

Every signature covers its `prev`, so the last one covers every entry before it: an owner who opens his own ledger
checks the chain and one signature, an auditor checks them all. What a chain cannot show is that its end was cut off or
that its owner wrote a second one: for that others hold heads of it (checkpoints, and the `ledger_head` of queries and
releases).
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import Json, canonical_json
from privacy.errors import LedgerError, WireError

VERSION = 1
GENESIS_PREV = "0" * 64
MAX_LINE_BYTES = 4 * 2**20
DOMAIN = b"confide/ledger/1\x00"
HEAD, MIDDLE, TAIL, HEX_SIGNATURE = b'{"entry":', b',"sig":"', b'"}', 128
COMPLETE = re.compile(rb',"sig":"[0-9a-f]{128}"\}')
ENTRY_KEYS = {"body", "kind", "prev", "seq", "ts", "v"}


class Entry(NamedTuple):
    """One line of a ledger, read and checked; `sha256` is what the next entry names as `prev`.

    A tuple and no dataclass: making a million of them takes a fifth of the time.
    """

    seq: int
    prev: str
    ts_ms: int
    kind: str
    body: Mapping[str, Json]
    sha256: str


@dataclass(frozen=True)
class Chain:
    """The entries of one verified file in their order, and how many bytes of an unfinished last line follow them."""

    entries: tuple[Entry, ...]
    size: int
    torn_bytes: int

    @property
    def head(self) -> str:
        """Return the hash of the last entry, sixty-four zeros for none: 64 hexadecimal digits."""
        return self.entries[-1].sha256 if self.entries else GENESIS_PREV

    def leaves(self) -> list[bytes]:
        """Return the hash of each entry, 32 bytes: the leaves of the tree whose root a checkpoint names."""
        return [bytes.fromhex(entry.sha256) for entry in self.entries]


def sign_entry(
    key: Ed25519PrivateKey, *, seq: int, prev: str, ts_ms: int, kind: str, body: Mapping[str, object]
) -> tuple[Entry, bytes]:
    """Return the entry and its line, newline included; raises WireError for a body that has no canonical form."""
    packed = canonical_json({"body": body, "kind": kind, "prev": prev, "seq": seq, "ts": ts_ms, "v": VERSION})
    line = HEAD + packed + MIDDLE + key.sign(DOMAIN + packed).hex().encode() + TAIL
    if len(line) > MAX_LINE_BYTES:
        raise LedgerError(f"an entry of {len(line)} bytes: at most {MAX_LINE_BYTES} are allowed")
    if COMPLETE.search(packed):  # would pass for the end of the entry when a write is torn
        raise LedgerError("an entry must not hold what looks like its own signature")
    return _entry(line, packed, seq + 1), line + b"\n"


def read_chain(data: bytes, key: Ed25519PublicKey, *, every_signature: bool = True) -> Chain:
    """Return the entries in `data`; raises LedgerError that names the first line that is wrong, and how.

    Found, with the line: any changed byte, a deleted, inserted, repeated or moved line, a line of another key. With
    `every_signature` false only the last signature is checked, which covers all before it, and the others where the
    chain breaks. An unfinished last line (a crash inside a write) is no error: it is counted in `torn_bytes`.
    """
    with _no_collection():
        return _chain(data, key, every_signature=every_signature)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the search for reference cycles: there are none in entries, and a million of them are searched for long."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _chain(data: bytes, key: Ed25519PublicKey, *, every_signature: bool) -> Chain:
    *lines, rest = data.split(b"\n")
    if _is_whole(rest):  # all but the newline was written, and may have been acted on: it counts
        lines, rest = [*lines, rest], b""
    entries: list[Entry] = []
    for number, line in enumerate(lines, 1):
        entry = _checked(line, number)
        _check_link(entries, entry, number, lines, key)
        if every_signature or number == len(lines):
            _check_signature(line, number, key)
        entries.append(entry)
    return Chain(tuple(entries), len(data) - len(rest), len(rest))


def line_entry(line: bytes, key: Ed25519PublicKey) -> Entry:
    """Return the entry of one line, without newline, that `key` signed, wherever it stands; raises LedgerError."""
    entry = _checked(line, 1)
    _check_signature(line, 1, key)
    return entry


def _checked(line: bytes, number: int) -> Entry:
    if len(line) > MAX_LINE_BYTES or not _has_frame(line):
        raise LedgerError(f"line {number}: not an entry; it was changed or is damaged")
    return _entry(line, _packed(line), number)


def _entry(line: bytes, packed: bytes, number: int) -> Entry:
    """Return the entry; the encoder below is C and agrees with `canonical_json` on what a ledger may hold."""
    try:
        value, _ = _DECODER.raw_decode(packed.decode())  # what follows the value shows in the comparison below
        if _ENCODER.encode(value).encode() != packed and canonical_json(value) != packed:
            raise WireError("another canonical form")
    except (ValueError, RecursionError, WireError) as error:
        raise LedgerError(f"line {number}: not canonical JSON; it was changed or is damaged") from error
    if not _is_entry(value):
        raise LedgerError(f"line {number}: not an entry of version {VERSION}")
    sha256 = hashlib.sha256(b"\x00" + line).hexdigest()
    return Entry(value["seq"], value["prev"], value["ts"], value["kind"], value["body"], sha256)


def _is_entry(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == ENTRY_KEYS
        and (type(value["v"]), value["v"]) == (int, VERSION)
        and type(value["body"]) is dict
        and type(value["kind"]) is type(value["prev"]) is str
        and type(value["seq"]) is type(value["ts"]) is int
    )


def _check_link(before: list[Entry], entry: Entry, number: int, lines: list[bytes], key: Ed25519PublicKey) -> None:
    expected = before[-1].sha256 if before else GENESIS_PREV
    if entry.prev != expected:
        if before:
            _check_signature(lines[number - 2], number - 1, key)  # tells a changed line from the one after it
        _check_signature(lines[number - 1], number, key)
        raise LedgerError(f"line {number}: does not follow line {number - 1}: removed, inserted or moved entries")
    if entry.seq != number - 1:
        raise LedgerError(f"line {number}: carries the number {entry.seq}, not {number - 1}")
    if before and entry.ts_ms < before[-1].ts_ms:
        raise LedgerError(f"line {number}: its time is before that of line {number - 1}")


def _check_signature(line: bytes, number: int, key: Ed25519PublicKey) -> None:
    try:
        key.verify(bytes.fromhex(line[-HEX_SIGNATURE - len(TAIL) : -len(TAIL)].decode()), DOMAIN + _packed(line))
    except (InvalidSignature, ValueError) as error:
        raise LedgerError(f"line {number}: its signature does not hold; it was changed or is another key's") from error


def _has_frame(line: bytes) -> bool:
    return (
        line.startswith(HEAD)
        and COMPLETE.fullmatch(line, len(line) - len(MIDDLE) - HEX_SIGNATURE - len(TAIL)) is not None
    )


def _packed(line: bytes) -> bytes:
    return line[len(HEAD) : -len(MIDDLE) - HEX_SIGNATURE - len(TAIL)]


def _is_whole(rest: bytes) -> bool:
    """Return whether the bytes after the last newline hold a whole entry, be it only with its newline damaged."""
    return COMPLETE.search(rest) is not None


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"a ledger holds no such number: {text[:20]}")


_DECODER = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
