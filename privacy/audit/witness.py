"""A witness: remembers the longest state of each ledger it saw, countersigns it, and refuses what does not continue it.

Anybody other than the owner can be one: the privacy officer, another organisation. What it remembers lies in its state
folder, one file per owner. It is on the disk before a cosignature exists, so that a witness that crashes never signs
two histories. A device ledger that was restored from a backup is accepted again once it adopted what it had lost by the
word of this witness; a federation's is not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.account import FEDERATION
from privacy.audit.verdict import Finding, Verdict, judged
from privacy.canonical import canonical_json, exact_fields, is_name, parse_canonical
from privacy.chain import line_entry
from privacy.checkpoint import Checkpoint, cosigned, verify_checkpoint
from privacy.errors import ConfideError, ConfigError, LedgerError, WireError
from privacy.files import write_atomic
from privacy.history import Figures, History, Visit, open_history, thinned
from privacy.ledger import LedgerView, public_key_of, read_ledger

FORMAT: Final = "confide-witness/1"
CHECK: Final = "witness"


@dataclass(frozen=True)
class Memory:
    """What a witness keeps of one owner: key, longest state, its last line and note as signed, visits, the last time.

    `line` and `note` (empty if there was none) are the owner's own signatures under that state: evidence, if another
    history of the same length is ever shown.
    """

    owner_key: str
    checkpoint: Checkpoint
    line: str
    note: str
    seconds: int
    visits: tuple[Visit, ...]

    @property
    def head(self) -> str:
        """Return the hash of the last entry that was seen."""
        return self.visits[-1].head

    @property
    def history(self) -> History:
        """Return what the owner may adopt."""
        federation, owner = self.checkpoint.origin.split("/")
        return History(federation, owner, self.visits, self.visits[-1].figures)

    def to_bytes(self) -> bytes:
        """Return the bytes of the state file."""
        seen = {"origin": self.checkpoint.origin, "root": self.checkpoint.root, "size": self.checkpoint.size}
        visits = [{"head": visit.head, **visit.figures.body()} for visit in self.visits]
        kept = {"line": self.line, "note": self.note, "owner_key": self.owner_key, "seconds": self.seconds}
        return canonical_json({**seen, **kept, "format": FORMAT, "visits": visits})

    @classmethod
    def from_bytes(cls, data: bytes) -> Memory:
        """Return the memory in a state file; raises ConfigError for a file that is none: nothing may be guessed."""
        try:
            fields: dict[str, Any] = exact_fields(
                parse_canonical(data),
                {"format", "line", "note", "origin", "owner_key", "root", "seconds", "size", "visits"},
                "witness",
            )
            visits = tuple(Visit(each.pop("head"), Figures.from_body(each)) for each in fields["visits"])
            seen = Checkpoint(fields["origin"], fields["size"], fields["root"])
            if fields["format"] != FORMAT or not visits:
                raise WireError("another format")
            found = cls(fields["owner_key"], seen, fields["line"], fields["note"], fields["seconds"], visits)
            found.history.since(())  # its figures rise
        except (WireError, LedgerError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError("cannot read what this witness remembers; its state folder is damaged") from error
        return found


def witness_key(path: Path) -> Ed25519PrivateKey:
    """Return the witness's key at `path`, 64 hexadecimal digits; made there, for its owner only, if there is none.

    The public half is put beside it, as `.pub`. Raises ConfigError for a file that holds no key.
    """
    if not path.exists():
        write_atomic(path, os.urandom(32).hex().encode() + b"\n", mode=0o600)
    try:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path.name}: it holds no witness key") from error
    public = key.public_key().public_bytes_raw().hex().encode() + b"\n"
    beside = path.with_suffix(".pub")
    if not beside.exists() or beside.read_bytes() != public:
        write_atomic(beside, public)
    return key


def ledgers_of(path: Path) -> list[Path]:
    """Return the ledgers that `path` names: itself, or those in a RUN folder; raises ConfigError if there are none."""
    if path.is_file():
        return [path]
    found = [path / "ledger" / "federation.jsonl", *sorted((path / "ledger" / "devices").glob("*.jsonl"))]
    if not found[0].is_file():
        raise ConfigError(f"cannot read {path}: neither a ledger nor a RUN folder with ledger/federation.jsonl")
    return found


def witness(
    path: Path, state: Path, key: Ed25519PrivateKey, seconds: int, owner: Ed25519PublicKey | None = None
) -> Verdict:
    """Return the verdict on the ledger or RUN at `path` against what `state` remembers; remember and countersign.

    `owner` is the key of the ledger's owner (of the federation, for a RUN); without one the key beside a ledger is
    taken at the first visit and held to from then on. `seconds` is the time. Raises ConfigError for what cannot be
    read.
    """
    with _locked(state):
        findings = [
            _visit(each, state, key, seconds, owner if each.stem == FEDERATION or each == path else None)
            for each in ledgers_of(path)
        ]
    cosigned_ = sum("; countersigned" in finding.detail for finding in findings)
    facts = {"witness": key.public_key().public_bytes_raw().hex(), "ledgers": len(findings), "cosigned": cosigned_}
    return Verdict(path.name, tuple(findings), facts)


def _visit(path: Path, state: Path, key: Ed25519PrivateKey, seconds: int, owner: Ed25519PublicKey | None) -> Finding:
    try:
        owner = owner or public_key_of(path)
    except LedgerError as error:
        raise ConfigError(f"{error}; name the key with --owner") from error
    try:
        view, data = read_ledger(path, owner), path.read_bytes()
        note = _note(path, view, owner)
    except (ConfideError, OSError) as error:
        return judged(CHECK, [f"{path.name}: {error}"], "")
    names = view.origin.split("/")
    if len(names) != 2 or not all(map(is_name, names)):
        raise ConfigError(f"cannot witness {path.name}: its GENESIS names no federation and owner")
    place = state / f"{names[0]}--{names[1]}"
    kept = place.with_name(f"{place.name}.memory")
    memory = Memory.from_bytes(kept.read_bytes()) if kept.exists() else None
    if memory is not None and (problem := _broken(memory, view, owner, key, data, note, place)):
        return judged(CHECK, [f"{path.name}: {problem}"], "")
    new = _remembered(memory, view, owner, data, note, seconds)
    write_atomic(kept, new.to_bytes())
    if names[1] != FEDERATION:
        write_atomic(place.with_name(f"{place.name}.history"), new.history.signed(key))
    done = f"{path.name}: {new.checkpoint.size} entries, head {new.head[:16]}, continue what was seen"
    if not note or verify_checkpoint(note, owner).size != new.checkpoint.size:
        return judged(CHECK, (), f"{done}; remembered, but its owner signed no checkpoint of this state")
    both = cosigned(note, key, new.seconds)
    for where in (place.with_name(f"{place.name}.checkpoint"), path.with_suffix(".checkpoint")):
        write_atomic(where, both)
    return judged(CHECK, (), f"{done}; countersigned")


def _note(path: Path, view: LedgerView, owner: Ed25519PublicKey) -> bytes:
    """Return the owner's checkpoint beside the ledger, empty if there is none; raises LedgerError if they disagree."""
    beside = path.with_suffix(".checkpoint")
    if not beside.exists():
        return b""
    note = beside.read_bytes()
    shown = verify_checkpoint(note, owner)
    if shown.origin != view.origin or not shown.is_kept_by(view.chain):
        raise LedgerError(f"it does not contain the {shown.size} entries of its own checkpoint")
    return note


def _broken(
    memory: Memory, view: LedgerView, owner: Ed25519PublicKey, key: Ed25519PrivateKey, data: bytes, note: bytes,
    place: Path,
) -> str:  # fmt: skip
    """Return how the ledger contradicts what was seen of it, "" if it does not; of a fork the evidence is kept."""
    size = memory.checkpoint.size
    if memory.owner_key != owner.public_bytes_raw().hex():
        return f"it is signed by another key than at the {len(memory.visits)} visits before"
    if memory.checkpoint.is_kept_by(view.chain) or _adopted(memory, view, key):
        return ""
    if len(view.entries) < size:
        return f"rolled back: {len(view.entries)} entries, {size} were seen"
    where = place.parent / "evidence" / f"{place.name}.{size}"
    line = data.split(b"\n")[size - 1]
    write_atomic(where / "owner.pub", memory.owner_key.encode() + b"\n")
    write_atomic(where / "seen.entry", memory.line.encode() + b"\n")
    write_atomic(where / "shown.entry", line + b"\n")
    for name, text in (("seen", memory.note.encode()), ("shown", note)):
        if text:
            write_atomic(where / f"{name}.checkpoint", text)
    return f"forked: its owner signed two different entries {size - 1}; both are kept in evidence/{where.name}"


def _adopted(memory: Memory, view: LedgerView, key: Ed25519PrivateKey) -> bool:
    """Return whether a device's ledger took over the last state that this witness saw, by this witness's own word."""
    mine = key.public_key().public_bytes_raw().hex()
    for entry in view.entries:
        if entry.kind == "ADOPT":
            history, signer = open_history(canonical_json(entry.body))
            if signer == mine and history.visits and history.visits[-1].head == memory.head:
                return True
    return False


def _remembered(
    memory: Memory | None, view: LedgerView, owner: Ed25519PublicKey, data: bytes, note: bytes, seconds: int
) -> Memory:
    visit = Visit(view.head, view.account.figures())
    before = memory.visits if memory is not None else ()
    visits = before if before and before[-1].head == visit.head else thinned((*before, visit))
    line = data.split(b"\n")[len(view.entries) - 1].decode()
    shown = Checkpoint.of(view.origin, view.chain)
    time = max(seconds, memory.seconds) if memory is not None else seconds
    return Memory(owner.public_bytes_raw().hex(), shown, line, note.decode(), time, visits)


def is_entry_fork(first: bytes, second: bytes, key: Ed25519PublicKey) -> bool:
    """Return whether two lines of ledgers prove that the owner of `key` signed two entries of one number."""
    one, other = line_entry(first.rstrip(b"\n"), key), line_entry(second.rstrip(b"\n"), key)
    return one.seq == other.seq and one.sha256 != other.sha256


@contextmanager
def _locked(state: Path) -> Iterator[None]:
    """Hold the state folder: two witnesses that share one would each forget what the other saw."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open the state folder {state.name}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"the state folder {state.name} is in use by another witness") from error
    finally:
        os.close(descriptor)
