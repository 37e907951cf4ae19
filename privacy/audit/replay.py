"""Replays a RUN: both sides' ledgers against each other, against the policy, and against what was claimed.

Floors, charges and sums are judged here by rules of their own, from both sides' entries: an audit that asked the code
which enforces them would find nothing. The policy alone is replayed with the device's own `Policy.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.account import FEDERATION, Reservation
from privacy.audit.claims import check_accountants, check_record, check_release_claim, check_report_claim, facts_of
from privacy.audit.evidence import Evidence, read_evidence
from privacy.audit.spread import Spread, in_turn
from privacy.audit.verdict import Finding, Verdict, judged, unchecked
from privacy.canonical import Json, canonical_json
from privacy.chain import GENESIS_PREV
from privacy.checkpoint import verify_checkpoint
from privacy.errors import PolicyRefused, SignatureInvalid
from privacy.history import open_history
from privacy.ledger import LedgerView
from privacy.query import fraction_text

AFTER = (
    "ledger.history",
    "policy.bounds",
    "round.cohort",
    "round.charged",
    "release.ledger",
    "claims.release",
    "claims.report",
    "accountants",
    "stamp",
    "record",
)


def audit_run(
    run: Path,
    federation_key: Ed25519PublicKey | None = None,
    witness: Ed25519PublicKey | None = None,
    spread: Spread = in_turn,
) -> Verdict:
    """Return the verdict on a RUN folder; raises ConfigError where there is nothing that can be read.

    `spread` calls what reads one device's ledger for all of them, see `privacy.audit.spread.over_cores`.
    """
    evidence = read_evidence(run, federation_key, witness, spread)
    federation = evidence.federation
    if federation is None:
        why = "the federation’s ledger does not hold, so there is nothing to compare with"
        return Verdict(run.name, (*evidence.findings, *(unchecked(check, why) for check in AFTER)))
    findings = (
        *evidence.findings,
        _history(evidence, federation),
        _bounds(evidence),
        _cohorts(federation),
        _charged(evidence, federation),
        _release_ledger(evidence, federation),
        check_release_claim(evidence.release, federation),
        check_report_claim(evidence.report, federation),
        check_accountants(federation),
        _stamp(evidence, federation),
        check_record(evidence),
    )
    return Verdict(run.name, findings, facts_of(evidence, federation))


def _history(evidence: Evidence, federation: LedgerView) -> Finding:
    """Each query names a head that the ledger had before it asked; each noted device head is in that device's chain."""
    return judged(
        "ledger.history",
        _history_problems(evidence, federation),
        "every query names an earlier state of the federation’s ledger, every noted state of a device is in its own",
    )


def _history_problems(evidence: Evidence, federation: LedgerView) -> Iterator[str]:
    seen = {GENESIS_PREV}
    for entry in federation.entries:
        query = entry.body.get("query")
        if entry.kind == "RESERVE" and isinstance(query, dict) and query["ledger_head"] not in seen:
            yield f"entry {entry.seq}: its query names a state that this ledger never had"
        seen.add(entry.sha256)
    for reserved in federation.account.reservations.values():
        heads = reserved.facts.get("heads")
        for device, head in heads.items() if isinstance(heads, dict) else ():
            view = evidence.devices.get(device)
            if view is not None and head not in {entry.sha256 for entry in view.entries} | _adopted_heads(view):
                yield f"{device}: its ledger lost the state that it signed in round {reserved.query.round}"
    judge = lru_cache(maxsize=1024)(partial(_judged_note, federation))  # people saw the same few states
    for device, view in evidence.devices.items():
        yield from _seen_problems(device, view, judge)


def _adopted_heads(view: LedgerView) -> set[str]:
    """Return the heads of the past that a restored device took over by the word of a witness or server."""
    found = [open_history(canonical_json(entry.body))[0] for entry in view.entries if entry.kind == "ADOPT"]
    return {visit.head for history in found for visit in history.visits}


def _judged_note(federation: LedgerView, note: bytes) -> tuple[bool, bool]:
    """Return whether the federation signed `note`, and whether its ledger still begins with that state."""
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(federation.genesis["public_key"])))
    try:
        return True, verify_checkpoint(note, key).is_kept_by(federation.chain)
    except SignatureInvalid:
        return False, False


def _seen_problems(device: str, view: LedgerView, judge: Callable[[bytes], tuple[bool, bool]]) -> Iterator[str]:
    """What a device saw of the federation's ledger must be signed by it and still be there."""
    for entry in view.entries:
        notes = {"SEEN": ("note",), "FORK": ("second",)}.get(entry.kind, ())
        for note in (str(entry.body[name]).encode() for name in notes):
            signed, kept = judge(note)
            if not signed:
                yield f"{device}: entry {entry.seq} notes a state that the federation did not sign"
                continue
            if not kept:
                yield f"{device}: saw a state of the federation's ledger that this ledger does not continue"


def _bounds(evidence: Evidence) -> Finding:
    """Every device's charges, replayed in order against the policy as the device should have applied it."""
    if evidence.policy is None or not evidence.devices:
        return unchecked("policy.bounds", "needs a valid policy and the devices’ own ledgers")
    problems, charges = [], 0
    for device, view in evidence.devices.items():
        spent = Fraction(0)
        times = 0
        dated: list[tuple[int, Fraction]] = []
        for entry in view.entries:
            if entry.kind == "ADOPT":
                lost = view.account.adoptions[entry.seq]
                spent, times = spent + lost.rho, times + lost.participations
                dated.append((entry.ts_ms, lost.rho))
            if entry.kind != "RESERVE" or not view.account.reservations[str(entry.body["event"])].counts:
                continue
            query = view.account.reservations[str(entry.body["event"])].query
            witnessed = view.account.meter.witnessed  # then each year was judged when the ledger was read
            year = Fraction(0) if witnessed else _within_a_year(dated, entry.ts_ms)
            try:
                evidence.policy.check(query, spent, times, year, witnessed)
            except PolicyRefused as refused:
                problems.append(f"{device}: round {query.round} breaks its policy ({refused})")
            spent, times = spent + (query.rho or 0), times + 1
            dated.append((entry.ts_ms, query.rho or Fraction(0)))
        charges += times
    checked = f"{charges} charges of {len(evidence.devices)} devices, each within bounds and budget when it was made"
    return judged("policy.bounds", problems, checked)


def _within_a_year(dated: list[tuple[int, Fraction]], now_ms: int) -> Fraction:
    return sum((rho for date, rho in dated if date > now_ms - 365 * 24 * 3600 * 1000), Fraction(0))


def _cohorts(federation: LedgerView) -> Finding:
    rounds = list(federation.account.reservations.values())
    problems = [problem for reserved in rounds for problem in _cohort_problems(reserved)]
    done = sum(each.state == "committed" for each in rounds)
    return judged("round.cohort", problems, f"{done} sums of {len(rounds)} rounds asked, none below its floor")


def _cohort_problems(reserved: Reservation) -> Iterator[str]:
    query, where = reserved.query, f"round {reserved.query.round}"
    if reserved.device != FEDERATION:
        yield f"{where}: the federation’s ledger holds a charge of {reserved.device}"
    if len(set(reserved.invited)) != query.cohort.invited:
        yield f"{where}: {len(set(reserved.invited))} devices invited, the query says {query.cohort.invited}"
    if reserved.state != "committed":
        return
    names, count = survivors(reserved)
    if count < query.cohort.min_survivors:
        yield f"{where}: a sum of {count} answers, the floor is {query.cohort.min_survivors}"
    if count > query.cohort.invited or not set(names) <= set(reserved.invited) or len(set(names)) != len(names):
        yield f"{where}: its sum holds devices that were not invited, or one twice"


def survivors(reserved: Reservation) -> tuple[tuple[str, ...], int]:
    """Return the devices in a committed sum (none, if only their number was noted) and how many they are."""
    noted = reserved.facts.get("survivors")
    if isinstance(noted, list):
        return tuple(map(str, noted)), len(noted)
    return (), noted if isinstance(noted, int) else 0


def _charged(evidence: Evidence, federation: LedgerView) -> Finding:
    if not evidence.devices_given:
        return unchecked("round.charged", "needs the devices’ own ledgers")
    problems = [*_asked_problems(evidence, federation), *_sum_problems(evidence, federation)]
    charges = sum(view.account.participations() for view in evidence.devices.values())
    return judged("round.charged", problems, f"{charges} charges on devices, each for the very query that was asked")


def _asked_problems(evidence: Evidence, federation: LedgerView) -> Iterator[str]:
    """What devices answered must be what the federation says it asked, to the last byte of the query."""
    asked = {reserved.query.sha256: reserved for reserved in federation.account.reservations.values()}
    places = {_place(reserved): reserved for reserved in asked.values()}
    for device, view in evidence.devices.items():
        for own in view.account.charged():
            theirs, where = asked.get(own.query.sha256), f"{device}: round {own.query.round}"
            if theirs is not None:
                if device not in theirs.invited:
                    yield f"{where}: charged, but the federation did not invite it"
            elif (other := places.get(_place(own))) is not None:
                yield f"{where}: was asked another query than the federation’s ledger shows ({_difference(own, other)})"
            else:
                yield f"{where}: charged for a query that the federation’s ledger does not show"


def _sum_problems(evidence: Evidence, federation: LedgerView) -> Iterator[str]:
    """Every answer in a sum must stand in its device's own ledger."""
    for reserved in federation.account.reservations.values():
        if reserved.state != "committed":
            continue
        query, (names, count) = reserved.query, survivors(reserved)
        charged = {device for device in reserved.invited if _is_charged(evidence.devices.get(device), reserved)}
        for device in names:
            if device not in charged:
                yield f"round {query.round}: {device} is in the sum, its ledger holds no RESERVE for it"
        if len(charged) < count and not names:
            yield f"round {query.round}: a sum of {count} answers, only {len(charged)} ledgers hold a RESERVE for it"


def _is_charged(view: LedgerView | None, asked: Reservation) -> bool:
    if view is None:
        return False
    own = view.account.reservations.get(asked.query.event_id(str(view.genesis.get("owner"))).hex())
    return own is not None and own.counts and own.query.sha256 == asked.query.sha256


def _place(reserved: Reservation) -> tuple[str, str, int, int, str]:
    query = reserved.query
    return query.federation, query.campaign, query.round, query.attempt, query.purpose


def _difference(own: Reservation, other: Reservation) -> str:
    for name in ("noise_multiplier", "clip_norm", "cohort", "transport"):
        mine, theirs = getattr(own.query, name), getattr(other.query, name)
        if mine != theirs:
            words = [fraction_text(each) if hasattr(each, "numerator") else str(each) for each in (mine, theirs)]
            return f"{name.replace('_', ' ')} {words[0]} on the device, {words[1]} there"
    return "other than noise, clip, cohort and transport"


def _release_ledger(evidence: Evidence, federation: LedgerView) -> Finding:
    release = evidence.release
    if release is None:
        return unchecked("release.ledger", "there is no valid release")
    heads = {entry.sha256: entry.seq for entry in federation.entries}
    said = [entry for entry in federation.entries if entry.kind == "RELEASE"]
    problems = []
    if release.facts.ledger_head not in heads:
        problems.append("the release names a state that this ledger does not have: it was rolled back or rewritten")
    if not any(entry.body.get("release_sha256") == release.sha256 for entry in said):
        problems.append(f"no RELEASE entry names this release ({release.sha256[:16]})")
    elif said[-1].body.get("release_sha256") != release.sha256:
        problems.append("a later release stands in the ledger: this one is out of date")
    if evidence.policy is not None and release.facts.policy_sha256 != evidence.policy.sha256:
        problems.append("the release was made under another policy")
    if evidence.policy is not None and release.basis.sha256 != evidence.policy.basis_sha256:
        problems.append("the release has another basis than the policy allows")
    return judged("release.ledger", problems, f"release {release.sha256[:16]} after entry {_at(heads, release.facts)}")


def _at(heads: Mapping[str, int], facts: object) -> object:
    return heads.get(str(getattr(facts, "ledger_head", "")), "?")


def _stamp(evidence: Evidence, federation: LedgerView) -> Finding:
    views = [federation, *evidence.devices.values()]
    bare = sum(view.account.unprotected() for view in views)
    report: Mapping[str, Json] = evidence.report or {}
    if not bare:
        return judged("stamp", (), "every charge is of a query with fresh noise; no stamp is needed")
    problems = []
    if evidence.release is not None and evidence.release.facts.private:
        problems.append("the release does not say NOT PRIVATE")
    if evidence.report is not None and not report.get("not_private"):
        problems.append("the report does not say NOT PRIVATE")
    return judged("stamp", problems, f"NOT PRIVATE: {bare} charges carry no fresh noise, and it is said")
