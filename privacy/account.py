"""What the entries of a ledger add up to: events charged, committed, aborted, and the budget they spent.

The same rules bind the owner who writes (an entry that breaks one is refused before a byte is written) and whoever
reads the ledger later. Amounts are exact fractions of zCDP; the query itself stands in each RESERVE, epsilon nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, cast

from privacy.canonical import Json, canonical_json, parse_canonical
from privacy.errors import ConfigError, LedgerError, WireError
from privacy.query import Query

KINDS: Final = frozenset(
    ["GENESIS", "POLICY", "RESERVE", "COMMIT", "ABORT", "RELEASE", "RECORD_DP", "EVAL", "CHECKPOINT"]
)
FEDERATION: Final = "federation"  # the device name under which the federation's own ledger writes a round
SPENT, DONE, VOID = "reserved", "committed", "aborted"


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
    """What the entries so far add up to; a new entry that contradicts them raises LedgerError and changes nothing."""

    reservations: dict[str, Reservation] = field(default_factory=dict)
    asked: dict[tuple[str, ...], str] = field(default_factory=dict)

    def apply(self, kind: str, body: Mapping[str, Json]) -> None:
        """Take one entry into the account."""
        if kind not in KINDS:
            raise LedgerError(f"unknown kind of entry: {kind[:40]!r}")
        if kind == "RESERVE":
            self._reserve(body)
        elif kind in ("COMMIT", "ABORT"):
            self._settle(kind, body)

    def charged(self, device: str | None = None) -> Iterator[Reservation]:
        """Yield the events that count as spent, in the order of the ledger; of `device` only, if one is named."""
        return (r for r in self.reservations.values() if r.counts and r.concerns(device))

    def spent_rho(self, device: str | None = None) -> Fraction:
        """Return the zCDP charged, the sum of 1/(2 z^2) over events not aborted.

        An event that is not private adds nothing here, because no number would do: see `unprotected`.
        """
        return sum((r.query.rho for r in self.charged(device) if r.query.rho is not None), Fraction(0))

    def participations(self, device: str | None = None) -> int:
        """Return how many events were charged and not aborted."""
        return sum(1 for _ in self.charged(device))

    def unprotected(self, device: str | None = None) -> int:
        """Return how many charged events carry no fresh noise: above zero, no epsilon holds."""
        return sum(not r.query.private for r in self.charged(device))

    def busiest(self) -> tuple[Query, ...]:
        """Return the queries charged to the device that was charged most, in order: what a campaign's claim is about.

        In a federation's ledger every invited device is charged, whether or not it answered.
        """
        devices = {name for r in self.charged() for name in (r.invited or (r.device,))}
        ranked = min(devices, key=lambda name: (-self.unprotected(name), -self.spent_rho(name), name), default=None)
        return tuple(r.query for r in self.charged(ranked)) if ranked is not None else ()

    def pending(self) -> tuple[Reservation, ...]:
        """Return the events reserved and neither committed nor aborted, oldest first: where to go on after a crash."""
        return tuple(r for r in self.reservations.values() if r.state == SPENT)

    def _reserve(self, body: Mapping[str, Json]) -> None:
        new = reservation(body)
        if new.event in self.reservations:
            raise LedgerError(f"event {new.event[:16]} is reserved twice")
        if self.asked.get(_place(new), new.event) != new.event:
            raise LedgerError(
                f"round {new.query.round} attempt {new.query.attempt} was asked with another query before"
            )
        self.reservations[new.event] = new
        self.asked[_place(new)] = new.event

    def _settle(self, kind: str, body: Mapping[str, Json]) -> None:
        event = str(body.get("event"))
        known = self.reservations.get(event)
        if known is None:
            raise LedgerError(f"{kind} of event {event[:16]}, which was never reserved")
        if known.state != SPENT:
            raise LedgerError(f"{kind} of event {event[:16]}, which is {known.state} already")
        facts = {name: value for name, value in body.items() if name != "event"}
        self.reservations[event] = replace(known, state=DONE if kind == "COMMIT" else VOID, facts=facts)


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
