"""The privacy ledger: what was asked and charged, written to the disk before any noise is drawn.

    RESERVE (flushed) -> noise, answer -> COMMIT          or ABORT, if the answer provably never left the process

A RESERVE without ABORT counts as spent, so that a crash may waste budget and never leak it. Epsilon is never stored:
a RESERVE holds the whole query, and whoever reads recomputes. One file per owner (each device, the federation), one
writer at a time, lines as in `privacy.chain`. There is no way past a budget: where the ledger holds the signed policy
(`grant`), a RESERVE beyond it is not written, and only another policy of the root key changes what it allows. See
PROTOCOL.md, sections 3 and 8.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.account import DONE, FEDERATION, Account, Reservation, Spent, Unsent, refused_for, reserve_body
from privacy.canonical import Json, canonical_json, parse_canonical
from privacy.chain import GENESIS_PREV, Chain, Entry, read_chain, sign_entry
from privacy.checkpoint import Checkpoint, Standing, standing, verify_checkpoint, verify_cosignature
from privacy.errors import LedgerError, PolicyRefused, SignatureInvalid
from privacy.files import Disk, SystemDisk, write_atomic
from privacy.history import Figures, open_history
from privacy.merkle import consistency_proof, tree_root
from privacy.query import Query
from privacy.wire import RefusalCode

MAX_SHOWN: Final = 1024  # earlier states that a device may come from
FORMAT: Final = "confide-ledger/1"
TIME_STEP_S: Final = 3600  # a state seen before is noted again for its signed time, not more often than this


def now_ms() -> int:
    """Return the milliseconds since 1970 by the clock of this machine."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class LedgerView:
    """A ledger read by someone else: its verified entries, what they add up to, and whose it says it is."""

    chain: Chain
    account: Account
    genesis: Mapping[str, Json]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Return all entries in order."""
        return self.chain.entries

    @property
    def head(self) -> str:
        """Return the hash of the last entry."""
        return self.chain.head

    @property
    def origin(self) -> str:
        """Return the name of the ledger in checkpoints: federation/owner."""
        return f"{self.genesis.get('federation', '')}/{self.genesis.get('owner', '')}"


def read_ledger(path: Path, key: Ed25519PublicKey | None = None, *, every_signature: bool = True) -> LedgerView:
    """Return the ledger at `path`, verified to its last byte without taking its lock.

    `key` is the owner's; without one it is read from the `.pub` file beside, which shows that file and ledger agree and
    nothing more. Raises LedgerError that names the line.
    """
    data, owner = _file_bytes(path), key or public_key_of(path)
    return _view(read_chain(data, owner, every_signature=every_signature), owner)


def public_key_of(path: Path) -> Ed25519PublicKey:
    """Return the public key in the `.pub` file beside the ledger `path`: 64 hexadecimal digits."""
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(_file_bytes(path.with_suffix(".pub")).decode().strip()))
    except ValueError as error:
        raise LedgerError(f"{path.with_suffix('.pub').name} holds no Ed25519 public key") from error


class Ledger:
    """One owner's ledger, open for writing under a lock; use it as a context manager.

    Every append is on the disk before it returns. After a failed write nothing more is accepted: open the ledger again,
    which cuts an unfinished last line off and counts everything that is whole. `genesis` is written with a new ledger
    (name `federation` and `owner`; the federation's also `devices`, id -> public key) and must agree with an old one.
    """

    def __init__(
        self,
        path: Path,
        signing_key: Ed25519PrivateKey,
        genesis: Mapping[str, object] | None = None,
        *,
        clock: Callable[[], int] = now_ms,
        disk: Disk | None = None,
    ) -> None:
        self.path, self._key, self._clock, self._disk = path, signing_key, clock, disk or SystemDisk()
        self._failed = False
        self._reserved_here: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _locked(path)
        try:
            self._load(dict(genesis or {}))
        except BaseException:
            self.close()
            raise

    read = staticmethod(read_ledger)

    @property
    def head(self) -> str:
        """Return the hash of the last entry: what queries and releases name as `ledger_head`."""
        return self._entries[-1].sha256

    @property
    def account(self) -> Account:
        """Return what the entries add up to; read only."""
        return self._account

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries in order."""
        return tuple(self._entries)

    def spent_rho(self, device: str | None = None) -> Fraction:
        """Return the zCDP charged so far, aborted events excepted; in the federation's ledger, to `device`."""
        return self._account.spent_rho(device)

    def spent(self, excluding: bytes | None = None) -> Spent:
        """Return what `Policy.check` takes after the query: what was spent; without the event `excluding`.

        The time is that of this ledger, which never runs backwards: the clock's, or its last entry's if that is later.
        """
        return self._account.spent(self._now(), excluding.hex() if excluding is not None else None)

    def append(self, kind: str, body: Mapping[str, object]) -> Entry:
        """Write one entry, flush it to the disk and return it.

        Raises LedgerError for an unknown kind, an event out of order, a full or failing disk; then nothing is charged
        that `entries` does not show, and after a failing disk the ledger must be opened again.
        """
        self._require_sound()
        last = self._entries[-1] if self._entries else None
        seq, prev = (last.seq + 1, last.sha256) if last else (0, GENESIS_PREV)
        entry, line = sign_entry(self._key, seq=seq, prev=prev, ts_ms=self._now(), kind=kind, body=body)
        self._account.apply(entry)  # refuses before a byte is written
        self._write(line)
        self._entries.append(entry)
        return entry

    def reserve(self, query: Query, device: str, invited: Sequence[str] = ()) -> Reservation:
        """Charge one event before its noise is drawn and return it; the same event again is the same one charge.

        The federation reserves a whole round: `device` FEDERATION and the ids it invites. Raises LedgerError for
        another query in the same place (federation, campaign, round, attempt, purpose, device), for an aborted event;
        PolicyRefused past the granted policy, or for a federation that signed two histories.
        """
        self._require_sound()
        refused_for(self._account)
        event = query.event_id(device).hex()
        known = self._account.reservations.get(event)
        if known is None:
            self.append("RESERVE", reserve_body(query, device, invited))
            self._reserved_here.add(event)
        elif not known.counts:
            raise LedgerError(f"event {event[:16]} was aborted; ask again with a new attempt")
        elif known.query.sha256 != query.sha256:
            raise LedgerError(f"event {event[:16]} was reserved under another ledger head or policy")
        return self._account.reservations[event]

    def commit(self, event: bytes, **facts: object) -> None:
        """Note that the answer was made (a device) or the sum taken (the federation, with `survivors`); once is enough.

        The same facts again change nothing; other facts for a committed event raise LedgerError.
        """
        self._require_sound()
        known = self._account.reservations.get(event.hex())
        if known is None or known.state != DONE or canonical_json(known.facts) != canonical_json(facts):
            self.append("COMMIT", {"event": event.hex(), **facts})

    def abort(self, event: bytes, reason: Unsent) -> None:
        """Give a charge back, for an answer that provably never left; `reason` says why that is so, see `Unsent`.

        Only the process that reserved the event, without closing the ledger since, may say so: raises LedgerError for
        every other. After a crash or a restored backup the charge stays spent.
        """
        if event.hex() not in self._reserved_here:
            raise LedgerError(f"event {event.hex()[:16]} was not reserved by this process: whether it left is unknown")
        self.append("ABORT", {"event": event.hex(), "reason": str(Unsent(reason))})

    def grant(self, signed_policy: bytes) -> None:
        """Hold the owner to the policy of this file from now on; the same policy again changes nothing.

        Needs `root_key` in GENESIS. Raises LedgerError unless that key signed it, with a higher `serial` than the one
        before: budget comes from the root key only, and a policy that was replaced never returns.
        """
        body = parse_canonical(signed_policy)
        if not isinstance(body, dict):
            raise LedgerError("a policy file is an object")
        held = self._account.policy
        if held is None or canonical_json(body.get("policy")) != held.to_bytes():
            self.append("GRANT", body)

    def see(self, note: bytes, federation_key: Ed25519PublicKey, proof: Sequence[bytes] = ()) -> Standing:
        """Note the state of the federation's ledger that a query comes with, and return how it stands to the last one.

        `proof` is `consistency_proof(from the size noted last)`, see `Account.seen`. Raises PolicyRefused with code
        HISTORY, and remembers nothing, unless the state is the same, or proven to continue what was seen. Two states of
        one size are kept as a FORK, evidence that their signer cannot deny; from then on this device answers no more.
        Signed times of the policy's witness on the note date the charges (`privacy.meter`). Raises LedgerError or
        SignatureInvalid for a note that is none, or not the federation's.
        """
        self._require_sound()
        refused_for(self._account)
        shown = verify_checkpoint(note, federation_key)
        found = standing(self._account.seen, shown, proof)
        if found is Standing.FORKED:
            self.append("FORK", {"first": self._seen_note(), "second": note.decode()})
        if not found.holds:
            raise PolicyRefused(RefusalCode.HISTORY, f"its ledger is {found}")
        if found is not Standing.SAME or self._is_later(note):
            self.append("SEEN", {"note": note.decode()})
        return found

    def adopt(self, signed_history: bytes, trusted: Sequence[Ed25519PublicKey]) -> Figures:
        """Take over what this ledger lost, by the word of a witness or server whose key is `trusted`; return how much.

        For a device that was restored from a backup, before it answers again. Only ever raises what was spent; nothing
        is written if nothing was lost. Raises LedgerError for another key or another ledger's history.
        """
        history, signer = open_history(signed_history)
        if signer not in {key.public_bytes_raw().hex() for key in trusted}:
            raise LedgerError("a history signed by a key that is not trusted")
        lost = self._account.lost(history, signer)
        if lost != Figures():
            body = parse_canonical(signed_history)
            assert isinstance(body, dict)
            self.append("ADOPT", body)
        return lost

    def checkpoint(self) -> Checkpoint:
        """Return the present state, for others to keep; the origin is `federation/owner` of GENESIS."""
        genesis = self._account.genesis
        origin = f"{genesis.get('federation', '')}/{genesis.get('owner', '')}"
        return Checkpoint(origin, len(self._entries), tree_root(self._leaves()).hex())

    def write_checkpoint(self) -> bytes:
        """Sign the present state, put it beside the ledger as `.checkpoint`, and return the note."""
        note = self.checkpoint().signed(self._key)
        write_atomic(self.path.with_suffix(".checkpoint"), note, disk=self._disk)
        return note

    def consistency_proof(self, size: int, at: int | None = None) -> list[bytes]:
        """Return the proof that the present state, or that of `at` entries, continues the one of `size`, for `see`."""
        return consistency_proof(self._leaves()[:at], size)

    def shown(self, query: Query) -> tuple[bytes, dict[int, list[bytes]]]:
        """Return the signed state of this ledger at the RESERVE of `query`, and by size a proof for each earlier one.

        What a device is shown with a question: it takes the proof that starts where it looked last. States are those at
        a RESERVE, so that a server that was cut off shows the same again.
        """
        sizes = [entry.seq + 1 for entry in self._entries if entry.kind == "RESERVE"]
        events = {entry.body["event"]: entry.seq + 1 for entry in self._entries if entry.kind == "RESERVE"}
        size = events[query.event_id(FEDERATION).hex()]
        now = self.checkpoint()
        state = Checkpoint(now.origin, size, tree_root(self._leaves()[:size]).hex())
        earlier = [s for s in sizes if s < size][-MAX_SHOWN:]
        return state.signed(self._key), {s: self.consistency_proof(s, size) for s in earlier}

    def close(self) -> None:
        """Release the lock and the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leaves(self) -> list[bytes]:
        return [bytes.fromhex(entry.sha256) for entry in self._entries]

    def _now(self) -> int:
        """Return the time of the next entry: a clock set back must not look like a forged order."""
        return max(self._clock(), self._entries[-1].ts_ms if self._entries else 0)

    def _seen_note(self) -> str:
        return str(next(e.body["note"] for e in reversed(self._entries) if e.kind == "SEEN"))

    def _is_later(self, note: bytes) -> bool:
        """Return whether a note of a state seen before carries a signed time that is worth an entry."""
        policy = self._account.policy
        if policy is None or policy.witness_key is None:
            return False
        try:
            _, seconds = verify_cosignature(note, Ed25519PublicKey.from_public_bytes(bytes.fromhex(policy.witness_key)))
        except (SignatureInvalid, ValueError):
            return False
        return seconds >= self._account.meter.signed_ms // 1000 + TIME_STEP_S

    def _load(self, genesis: dict[str, object]) -> None:
        """Read what is there, cut an unfinished last line off, or begin a new ledger."""
        data = _file_bytes(self.path)
        owner = self._key.public_key()
        chain = read_chain(data, owner, every_signature=False)
        self._entries, self._account = list(chain.entries), Account()
        if chain.torn_bytes:
            self._durably(lambda: self._disk.truncate(self._descriptor, chain.size))
        if chain.entries:
            view = _view(chain, owner)
            self._account = view.account
            _check_genesis(self.path, view.genesis, genesis)
            if not chain.torn_bytes and not data.endswith(b"\n"):
                self._write(b"\n")
            return
        name = owner.public_bytes_raw().hex().encode() + b"\n"
        write_atomic(self.path.with_suffix(".pub"), name, disk=self._disk)
        self.append("GENESIS", {"format": FORMAT, "public_key": owner.public_bytes_raw().hex(), **genesis})
        self._durably(lambda: self._disk.fsync_folder(self.path.parent))

    def _write(self, line: bytes) -> None:
        def put() -> None:
            rest = memoryview(line)
            while rest:
                rest = rest[self._disk.write(self._descriptor, bytes(rest)) :]
            self._disk.fsync(self._descriptor)

        self._durably(put)

    def _require_sound(self) -> None:
        if self._failed or self._descriptor < 0:
            raise LedgerError(f"{self.path.name}: closed, or a write failed before; open the ledger again")

    def _durably(self, action: Callable[[], None]) -> None:
        self._failed = True  # until it is known to have worked: after a failed fsync the state of the file is unknown
        try:
            action()
        except OSError as error:
            raise LedgerError(
                f"{self.path.name}: cannot write to the disk ({error.strerror}); nothing is done"
            ) from error
        self._failed = False


def _view(chain: Chain, owner: Ed25519PublicKey) -> LedgerView:
    account = Account()
    for number, entry in enumerate(chain.entries, 1):
        if (entry.kind == "GENESIS") != (number == 1):
            raise LedgerError(f"line {number}: a ledger begins with its one GENESIS")
        try:
            account.apply(entry)
        except (LedgerError, PolicyRefused) as error:
            raise LedgerError(f"line {number}: {error}") from error
    genesis = chain.entries[0].body if chain.entries else {}
    if genesis.get("format") != FORMAT or genesis.get("public_key") != owner.public_bytes_raw().hex():
        raise LedgerError("line 1: not the GENESIS of this key's ledger")
    return LedgerView(chain, account, genesis)


def _check_genesis(path: Path, found: Mapping[str, Json], wanted: Mapping[str, object]) -> None:
    wrong = [name for name, value in wanted.items() if found.get(name) != value]
    if wrong:
        raise LedgerError(f"{path.name} is another ledger: its {', '.join(sorted(wrong))} differ")


def _locked(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(f"cannot open {path.name}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LedgerError(f"{path.name} is in use by another process; wait for it or stop it") from error
    return descriptor


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LedgerError(f"cannot read {path.name}: {error.strerror}") from error
