"""What the entries of a ledger add up to: events charged, committed, aborted, and the budget they spent.

The same rules bind the owner who writes (an entry that breaks one is refused before a byte is written) and whoever
reads the ledger later. Amounts are exact fractions of zCDP; the query itself stands in each RESERVE, epsilon nowhere.
Where the ledger holds the signed policy (GRANT), no RESERVE beyond it can be written, and none can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from typing import Final, NamedTuple, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.accounting import sybil_rho
from privacy.canonical import Json, canonical_json, is_digest, parse_canonical
from privacy.chain import Entry
from privacy.checkpoint import Checkpoint, read_checkpoint, verify_cosignature
from privacy.errors import ConfideError, ConfigError, LedgerError, PolicyRefused, SignatureInvalid, WireError
from privacy.history import Figures, History, Visit, open_history, thinned
from privacy.meter import Meter
from privacy.policy import Policy, open_policy
from privacy.query import Query
from privacy.wire import RefusalCode

NOTES: Final = frozenset(["POLICY", "RELEASE", "RECORD_DP", "EVAL", "CHECKPOINT"])  # kinds that charge nothing
KINDS: Final = NOTES | {"GENESIS", "GRANT", "RESERVE", "COMMIT", "ABORT", "ADOPT", "SEEN", "FORK"}
FEDERATION: Final = "federation"  # the device name under which the federation's own ledger writes a round
SPENT, DONE, VOID = "reserved", "committed", "aborted"


class Unsent(StrEnum):
    """The states of an event in which its answer provably never left: where an ABORT is legal.

    All of them hold only within the process that wrote the RESERVE and has not ended since: a later process cannot know
    what an earlier one sent, and a restored backup least of all. From the moment that the answer, or a masked vector
    made of it, is stored or handed to anything that may send it, none of them holds, whether or not it arrived.
    """

    NOT_TRAINED = "not trained"  # nothing was computed
    NOT_ENCODED = "not encoded"  # training or encoding failed; there is no vector
    NOT_STORED = "not stored"  # the vector was in this process's memory only, and is gone
    NOT_ASKED = "not asked"  # the federation: the query was handed to no device


class Spent(NamedTuple):
    """What a device spent, in the order in which `Policy.check` takes it.

    zCDP in its lifetime, answers, zCDP within the year, and whether signed time dated that year (`privacy.meter`).
    """

    rho: Fraction
    participations: int
    year_rho: Fraction
    witnessed: bool = False


@dataclass(frozen=True)
class Reservation:
    """One charged event: the query it was made for, for whom, and what became of it."""

    event: str
    device: str
    query: Query
    invited: tuple[str, ...]
    state: str
    facts: Mapping[str, Json]

    @property
    def counts(self) -> bool:
        """Return whether the event is spent: everything but an aborted one."""
        return self.state != VOID

    def concerns(self, device: str | None) -> bool:
        """Return whether `device` may have answered; None asks about anyone."""
        return device is None or device == self.device or device in self.invited


@dataclass
class Account:
    """What the entries so far add up to; a new entry that contradicts them raises LedgerError and changes nothing.

    An entry past the policy of the last GRANT raises PolicyRefused and changes nothing either.
    """

    reservations: dict[str, Reservation] = field(default_factory=dict)
    asked: dict[tuple[str, ...], str] = field(default_factory=dict)
    genesis: Mapping[str, Json] = field(default_factory=dict)
    policy: Policy | None = None
    seen: Checkpoint | None = None
    forked: bool = False
    adopted: Figures = field(default_factory=Figures)
    adoptions: dict[int, Figures] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    _heads: list[str] = field(default_factory=list)
    _adopted_from: dict[str, Figures] = field(default_factory=dict)
    _net: Fraction = Fraction(0)
    _gross: Figures = field(default_factory=Figures)
    _counted: int = 0

    def apply(self, entry: Entry) -> None:
        """Take one entry into the account."""
        rules = {
            "GENESIS": self._begin,
            "GRANT": self._grant,
            "RESERVE": self._reserve,
            "COMMIT": self._settle,
            "ABORT": self._settle,
            "ADOPT": self._adopt,
            "SEEN": self._see,
            "FORK": self._fork,
        }
        if entry.kind not in KINDS:
            raise LedgerError(f"unknown kind of entry: {entry.kind[:40]!r}")
        if entry.kind in rules:
            rules[entry.kind](entry)
        self._heads.append(entry.sha256)

    def charged(self, device: str | None = None) -> Iterator[Reservation]:
        """Yield the events that count as spent, in the order of the ledger; of `device` only, if one is named."""
        return (r for r in self.reservations.values() if r.counts and r.concerns(device))

    def spent_rho(self, device: str | None = None) -> Fraction:
        """Return the zCDP charged, the sum of 1/(2 z^2) over events not aborted; of the owner, also what it adopted.

        An event that is not private adds nothing here, because no number would do: see `unprotected`.
        """
        if device is None:
            return self._net + self.adopted.rho
        return sum((r.query.rho for r in self.charged(device) if r.query.rho is not None), Fraction(0))

    def spent(self, now_ms: int, excluding: str | None = None) -> Spent:
        """Return what the owner spent as of `now_ms`; without the event `excluding`, if that is charged already."""
        known = self.reservations.get(excluding or "")
        own = (known.query.rho or Fraction(0)) if known is not None and known.counts else Fraction(0)
        counted = self._counted + self.adopted.participations - (known is not None and known.counts)
        year = self.meter.year_rho(now_ms)
        return Spent(self.spent_rho() - own, counted, max(Fraction(0), year - own), self.meter.witnessed)

    def figures(self, device: str | None = None) -> Figures:
        """Return the figures that somebody else should remember, aborted events included: they never fall."""
        if device is None:
            return self._gross + self.adopted
        return sum((_figures(r.query) for r in self.reservations.values() if r.concerns(device)), Figures())

    def participations(self, device: str | None = None) -> int:
        """Return how many events were charged and not aborted."""
        if device is None:
            return self._counted + self.adopted.participations
        return sum(1 for _ in self.charged(device))

    def unprotected(self, device: str | None = None) -> int:
        """Return how many charged events carry no fresh noise: above zero, no epsilon holds."""
        lost = self.adopted.unprotected if device is None else 0
        return lost + sum(not r.query.private for r in self.charged(device))

    def busiest(self) -> tuple[Query, ...]:
        """Return the queries charged to the device that was charged most, in order: what a campaign's claim is about.

        In a federation's ledger every invited device is charged, whether or not it answered.
        """
        bare: dict[str, int] = {}
        spent: dict[str, Fraction] = {}
        for each in self.charged():
            for name in {*each.invited} or {each.device}:
                bare[name] = bare.get(name, 0) + (not each.query.private)
                spent[name] = spent.get(name, Fraction(0)) + (each.query.rho or 0)
        ranked = min(spent, key=lambda name: (-bare[name], -spent[name], name), default=None)
        return tuple(r.query for r in self.charged(ranked)) if ranked is not None else ()

    def pending(self) -> tuple[Reservation, ...]:
        """Return the events reserved and neither committed nor aborted, oldest first: where to go on after a crash."""
        return tuple(r for r in self.reservations.values() if r.state == SPENT)

    def lost(self, history: History, signer: str) -> Figures:
        """Return what `history` holds beyond this ledger: charges since the last state that both know.

        Nothing, if this ledger still has the signer's last state of it; all since the last common one, if not. So a
        ledger restored from a backup ends at what the signer saw, and one that was used after that counts both.
        """
        base = history.since(frozenset(self._heads)).largest(self._adopted_from.get(signer, Figures()))
        return history.total.above(base)

    def _begin(self, entry: Entry) -> None:
        self.genesis = entry.body

    def _grant(self, entry: Entry) -> None:
        root = self.genesis.get("root_key")
        try:
            if not is_digest(root):
                raise SignatureInvalid("policy without a root key in GENESIS")
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(root)))
            policy = open_policy(canonical_json(entry.body), key)
        except (ConfideError, ValueError) as error:
            raise LedgerError(f"a GRANT that the root key did not sign: {error}") from error
        if policy.federation != self.genesis.get("federation"):
            raise LedgerError("a GRANT for another federation")
        if self.policy is not None and policy.serial <= self.policy.serial:
            raise LedgerError(f"a GRANT with serial {policy.serial} after one with {self.policy.serial}")
        self.policy = policy
        self.meter.follow(witnessed=policy.witness_key is not None, ts_ms=entry.ts_ms)

    def _reserve(self, entry: Entry) -> None:
        new = reservation(entry.body)
        if new.event in self.reservations:
            raise LedgerError(f"event {new.event[:16]} is reserved twice")
        if self.asked.get(_place(new), new.event) != new.event:
            raise LedgerError(
                f"round {new.query.round} attempt {new.query.attempt} was asked with another query before"
            )
        if self.policy is not None and new.device != FEDERATION:
            self.policy.check(new.query, *self.spent(entry.ts_ms))
        self.reservations[new.event] = new
        self.asked[_place(new)] = new.event
        rho = new.query.rho or Fraction(0)
        self._net, self._counted, self._gross = self._net + rho, self._counted + 1, self._gross + _figures(new.query)
        self.meter.charge(new.event, rho, entry.ts_ms)

    def _settle(self, entry: Entry) -> None:
        kind, body = entry.kind, entry.body
        event = str(body.get("event"))
        known = self.reservations.get(event)
        if known is None:
            raise LedgerError(f"{kind} of event {event[:16]}, which was never reserved")
        if known.state != SPENT:
            raise LedgerError(f"{kind} of event {event[:16]}, which is {known.state} already")
        facts = {name: value for name, value in body.items() if name != "event"}
        if kind == "ABORT":
            if set(facts) != {"reason"} or facts["reason"] not in set(Unsent):
                raise LedgerError(f"an ABORT gives one of these reasons: {', '.join(Unsent)}")
            self._net, self._counted = self._net - (known.query.rho or 0), self._counted - 1
            self.meter.void(event)
        self.reservations[event] = replace(known, state=DONE if kind == "COMMIT" else VOID, facts=facts)

    def _adopt(self, entry: Entry) -> None:
        try:
            history, signer = open_history(canonical_json(entry.body))
        except ConfideError as error:
            raise LedgerError(f"an ADOPT that cannot be read: {error}") from error
        if self.genesis.get("owner") == FEDERATION:
            raise LedgerError("a federation's ledger adopts nothing: it must not be restored from a backup")
        if (history.federation, history.owner) != (self.genesis.get("federation"), self.genesis.get("owner")):
            raise LedgerError("an ADOPT of another ledger's history")
        lost = self.lost(history, signer)
        if lost == Figures():
            raise LedgerError("an ADOPT of a history in which nothing is lost")
        self.adopted += lost
        self.adoptions[entry.seq] = lost
        before = self._adopted_from.get(signer, Figures())
        self._adopted_from[signer] = before.largest(history.total)
        self.meter.charge(f"adopted:{entry.seq}", lost.rho, entry.ts_ms)

    def _see(self, entry: Entry) -> None:
        note = entry.body.get("note")
        try:
            shown = read_checkpoint(str(note).encode())
        except LedgerError as error:
            raise LedgerError(f"a SEEN that cannot be read: {error}") from error
        if set(entry.body) != {"note"} or (self.seen is not None and not _may_follow(self.seen, shown)):
            raise LedgerError("a SEEN of a state that the federation's ledger cannot have after the one before")
        self.seen = shown
        if self.policy is not None and self.policy.witness_key is not None:
            self._take_time(str(note).encode(), self.policy.witness_key)

    def _take_time(self, note: bytes, witness: str) -> None:
        try:
            _, seconds = verify_cosignature(note, Ed25519PublicKey.from_public_bytes(bytes.fromhex(witness)))
        except (SignatureInvalid, ValueError):
            return  # not a witnessed state: it dates nothing
        self.meter.sign(seconds * 1000)

    def _fork(self, entry: Entry) -> None:
        try:
            first, second = (read_checkpoint(str(entry.body[name]).encode()) for name in ("first", "second"))
        except (LedgerError, KeyError) as error:
            raise LedgerError("a FORK that cannot be read") from error
        if (first.origin, first.size) != (second.origin, second.size) or first.root == second.root:
            raise LedgerError("a FORK whose two states do not contradict each other")
        self.forked = True


def refused_for(account: Account) -> None:
    """Raise PolicyRefused if the owner must not answer this federation again, whatever it asks."""
    if account.forked:
        raise PolicyRefused(RefusalCode.HISTORY, "the federation signed two histories")


def remembered(account: Account, device: str) -> History:
    """Return what the federation's ledger remembers of a device, for it to adopt after a restore; sign before sending.

    A visit is each answer in a sum, whose COMMIT notes the `heads` of the devices' ledgers. Every round that asked the
    device counts, whether or not its answer came: it may have left.
    """
    visits: list[Visit] = []
    total = Figures()
    for asked in account.reservations.values():
        if not asked.concerns(device):
            continue
        total += _figures(asked.query)
        heads = asked.facts.get("heads")
        if isinstance(heads, dict) and is_digest(heads.get(device)):
            visits.append(Visit(str(heads[device]), total))
    return History(str(account.genesis.get("federation")), device, thinned(tuple(visits)), total)


def reservation(body: Mapping[str, Json]) -> Reservation:
    """Return the event in the body of a RESERVE; raises LedgerError unless its parts agree with its query."""
    try:
        query = Query.from_bytes(canonical_json(body["query"]))
        device, invited = body["device"], body.get("invited", [])
        if not isinstance(device, str) or not isinstance(invited, list) or set(map(type, invited)) - {str}:
            raise WireError("device and invited must be names")
        names = tuple(cast("list[str]", invited))
        if dict(body) != reserve_body(query, device, names):
            raise WireError("event, query and device disagree")
    except (ConfigError, WireError, KeyError) as error:
        raise LedgerError(f"a RESERVE that cannot be read: {error}") from error
    return Reservation(query.event_id(device).hex(), device, query, names, SPENT, {})


def reserve_body(query: Query, device: str, invited: Sequence[str]) -> dict[str, Json]:
    """Return the body of the RESERVE of one event: the whole query and whom it is asked of."""
    body: dict[str, Json] = {
        "device": device,
        "event": query.event_id(device).hex(),
        "query": parse_canonical(query.to_bytes()),
        "query_sha256": query.sha256,
    }
    return {**body, "invited": list[Json](sorted(invited))} if invited else body


def _place(event: Reservation) -> tuple[str, ...]:
    query = event.query
    return query.federation, query.campaign, str(query.round), str(query.attempt), query.purpose, event.device


def _figures(query: Query) -> Figures:
    private = query.rho is not None
    return Figures(1, int(not private), query.rho or Fraction(0), sybil_rho(query) if private else Fraction(0))


def _may_follow(seen: Checkpoint, shown: Checkpoint) -> bool:
    longer = shown.size > seen.size
    return shown.origin == seen.origin and (longer or (shown.size, shown.root) == (seen.size, seen.root))
