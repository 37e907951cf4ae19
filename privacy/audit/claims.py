"""What a release and a report claim, against what the ledgers give; and the figures that the officer's page shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from statistics import median
from typing import Any

from privacy.account import Account, Reservation
from privacy.accounting import DELTAS, epsilon_zcdp, statement
from privacy.audit.document import percentile
from privacy.audit.evidence import Evidence
from privacy.audit.verdict import Finding, judged, unchecked
from privacy.chain import Entry
from privacy.errors import LedgerError
from privacy.ledger import LedgerView
from privacy.query import Query, fraction_text, parse_fraction
from privacy.record import RecordCharge
from privacy.release import Release, privacy_claim
from privacy.sampling import sampled_rounds

TOLERANCE = 1e-3  # a report may round; a release may not (its rho is compared exactly)
RECORD_TOLERANCE = 0.01  # a numerical accountant against a closed bound
ALWAYS = ("unit", "adjacency", "amplification", "participations", "rho", "epsilon", "epsilon_gdp", "epsilon_pld")


def check_release_claim(release: Release | None, federation: LedgerView) -> Finding:
    """Return whether the release's claim is the statement of the ledger up to the state that the release names."""
    if release is None:
        return unchecked("claims.release", "there is no valid release")
    account = account_until(federation.entries, release.facts.ledger_head)
    if account is None:
        return judged("claims.release", ["the release names a state that this ledger does not have"], "")
    claimed = release.facts.privacy
    expected = privacy_claim(stated(account.busiest(), _claimed_deltas(claimed), _released(account)))
    problems = list(_differences(claimed, expected, tuple(expected), exact=True))
    if "sampled" in claimed and "sampled" not in expected:
        problems.append("it claims amplification by sampling, the ledger's rounds were not sampled by devices")
    if release.facts.private and account.unprotected():
        problems.append("it says private, the ledger shows charges without fresh noise")
    rho = expected["rho_exact"]
    checked = f"rho {rho} and every epsilon recomputed and equal" if rho else "it claims no figure, as it must not"
    return judged("claims.release", problems, checked)


def check_report_claim(report: Mapping[str, Any] | None, federation: LedgerView) -> Finding:
    """Return whether report.json states the ledger's figures: the statement, the adversaries, the rounds."""
    if report is None:
        return unchecked("claims.report", "there is no report.json")
    claimed = report.get("privacy")
    if not isinstance(claimed, dict):
        return judged("claims.report", ["it has no privacy section"], "")
    expected = stated(federation.account.busiest(), _claimed_deltas(claimed), _released(federation.account))
    problems = [*_round_problems(report, federation)]
    if report.get("not_private"):
        return judged("claims.report", problems, "it claims no privacy; its rounds are those of the ledger")
    problems += _differences(claimed, expected, ALWAYS, exact=False)
    floor, noise = expected["cohort_floor"], min(_numbers(expected["noise_multiplier"]), default=None)
    problems += _differences(
        claimed, {"cohort_floor": floor, "noise_multiplier": noise}, ("cohort_floor",), exact=False
    )
    problems += _differences(claimed, {"noise_multiplier": noise}, ("noise_multiplier",), exact=False)
    problems += _adversary_problems(claimed, expected)
    if "sampled" in claimed:
        problems += _differences(claimed, {"sampled": expected.get("sampled")}, ("sampled",), exact=False)
    return judged("claims.report", problems, "rho, every epsilon, participations, floors and rounds are the ledger’s")


def check_accountants(federation: LedgerView) -> Finding:
    """Return whether rho from the raw ledger text, zCDP, exact GDP and dp-accounting's PLD tell the same story."""
    queries = federation.account.busiest()
    if not queries or not all(query.private for query in queries):
        return unchecked("accountants", "nothing private was charged")
    figures = stated(queries)
    problems = []
    raw = sum((_raw_rho(entry) for entry in federation.entries if _is_charge(entry, federation)), Fraction(0))
    counted = federation.account.spent_rho()
    if raw != counted:
        problems.append(f"rho over all rounds is {raw} by the entries’ text, {counted} by the account")
    for delta in map(repr, DELTAS):
        zcdp, gdp, pld = (_at(figures[name], delta) for name in ("epsilon", "epsilon_gdp", "epsilon_pld"))
        if not math.isclose(gdp, pld, rel_tol=0.01, abs_tol=0.01):
            problems.append(f"at delta {delta} exact Gaussian gives {gdp:.4f}, PLD {pld:.4f}")
        if max(gdp, pld) > zcdp * (1 + 1e-6) + 1e-3:
            problems.append(f"at delta {delta} the enforced {zcdp:.4f} is below another accountant’s")
    return judged(
        "accountants", problems, "zCDP (enforced) ≥ exact Gaussian DP ≈ PLD of dp-accounting, at three deltas"
    )


def check_record(evidence: Evidence) -> Finding:
    """Return whether record-level lines can be read, and whether the report's record-level epsilon covers them."""
    rows, problems = record_rows(evidence)
    section = (evidence.report or {}).get("privacy")
    claimed = section.get("record") if isinstance(section, dict) else None
    if not rows and not problems and not isinstance(claimed, dict):
        return unchecked("record", "no record-level training is noted")
    if isinstance(claimed, dict):
        largest = max((row["epsilon"] for row in rows), default=None)
        told = claimed.get("epsilon")
        if largest is None:
            problems.append("the report claims a record-level epsilon, no ledger holds its line")
        elif not isinstance(told, int | float) or not told >= largest * (1 - RECORD_TOLERANCE):
            problems.append(f"the report claims {told} per document, the ledgers give up to {largest:.4f}")
    return judged("record", problems, f"{len(rows)} record-level lines recomputed; never added to the user level")


def record_rows(evidence: Evidence) -> tuple[list[dict[str, Any]], list[str]]:
    """Return device, artefact and epsilon of each RECORD_DP entry, and what could not be read."""
    rows, problems = [], []
    for device, view in evidence.devices.items():
        for entry in view.entries:
            if entry.kind != "RECORD_DP":
                continue
            try:
                charge = RecordCharge.from_body(entry.body)
            except LedgerError as error:
                problems.append(f"{device}: entry {entry.seq}: {error}")
                continue
            rows.append(
                {"device": device, "artefact": charge.artefact, "epsilon": charge.epsilon(), "delta": charge.delta}
            )
    return rows, problems


@lru_cache(maxsize=16)
def stated(
    queries: tuple[Query, ...], deltas: tuple[float, ...] = DELTAS, released: tuple[Query, ...] = ()
) -> Mapping[str, Any]:
    """Return the accountant's statement, computed once for the same queries and deltas; read only."""
    return statement(queries, deltas, released=released)


def _released(account: Account) -> tuple[Query, ...]:
    """Return the queries whose sums were taken if devices sampled themselves in them, else none."""
    found = tuple(r.query for r in account.reservations.values() if r.state == "committed")
    return found if sampled_rounds(found) else ()


def account_until(entries: Sequence[Entry], head: str) -> Account | None:
    """Return the account of the entries up to the one whose hash is `head`, None if there is none."""
    account = Account()
    for entry in entries:
        account.apply(entry)
        if entry.sha256 == head:
            return account
    return None


def facts_of(evidence: Evidence, federation: LedgerView) -> dict[str, object]:
    """Return what the page and the JSON show beside the findings: plain values, all from ledgers and release."""
    figures = stated(federation.account.busiest(), DELTAS, _released(federation.account))
    first = next(iter(federation.account.reservations.values()), None)
    rows, _ = record_rows(evidence)
    return {
        "federation": federation.genesis.get("federation"),
        "ended_ms": federation.entries[-1].ts_ms,
        "statement": figures,
        "private": bool(figures["private"]) and not federation.account.unprotected(),
        "deltas": [repr(delta) for delta in DELTAS],
        "mechanism": _mechanism(first.query) if first is not None else None,
        "rounds": list(_round_rows(federation)),
        "devices": _device_summary(evidence, federation),
        "record": rows,
        "integrity": {
            "federation_key": federation.genesis.get("public_key"),
            "ledger_size": len(federation.entries),
            "ledger_head": federation.head,
            "release_sha256": evidence.release.sha256 if evidence.release is not None else None,
            "policy_sha256": evidence.policy.sha256 if evidence.policy is not None else None,
            "basis_sha256": evidence.release.basis.sha256 if evidence.release is not None else None,
        },
    }


def _differences(
    claimed: Mapping[str, Any], expected: Mapping[str, Any], names: Sequence[str], *, exact: bool
) -> Iterator[str]:
    for name in names:
        if name not in claimed:
            yield f"{name} is not stated"
        elif isinstance(expected[name], Mapping) and isinstance(claimed[name], Mapping):
            inner = _differences(claimed[name], expected[name], tuple(expected[name]), exact=exact)
            yield from (f"{name} at {problem}" for problem in inner)
        elif not _same(claimed[name], expected[name], exact=exact):
            yield f"{name}: claimed {_shown(claimed[name])}, the ledger gives {_shown(expected[name])}"


def _same(claimed: object, expected: object, *, exact: bool) -> bool:
    if exact:
        return claimed == expected or _close(claimed, expected, 1e-9)
    return claimed == expected or _close(claimed, expected, TOLERANCE)


def _close(claimed: object, expected: object, tolerance: float) -> bool:
    try:
        return math.isclose(float(str(claimed)), float(str(expected)), rel_tol=tolerance)
    except ValueError:
        return False


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]


def _adversary_problems(claimed: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    rows = claimed.get("adversaries")
    by_name = {str(row.get("who")): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}
    wanted = {"released": "epsilon", "server": "epsilon_server", "sybils": "sybil_floor_epsilon"}
    for who, name in wanted.items():
        if who not in by_name:
            yield f"the figure against {who} is not stated"
        else:
            problems = _differences(by_name[who], {"epsilon": expected[name]}, ("epsilon",), exact=False)
            yield from (f"against {who}: {problem}" for problem in problems)


def _round_problems(report: Mapping[str, Any], federation: LedgerView) -> Iterator[str]:
    """Compare the finished rounds in their order: how many, and invited and survivors of each."""
    rows = report.get("rounds")
    told = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    noted = [r for r in federation.account.reservations.values() if r.state == "committed"]
    if len(told) != len(noted):
        yield f"the report tells of {len(told)} rounds, the ledger of {len(noted)}"
        return
    for row, reserved in zip(told, noted, strict=True):
        for name, value in (("invited", len(reserved.invited)), ("survivors", _count(reserved))):
            if row.get(name) != value:
                yield f"round {reserved.query.round}: {row.get(name)} {name} in the report, {value} in the ledger"


def _claimed_deltas(claimed: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the deltas at which epsilon is claimed, so that it is recomputed there; the usual ones if none can be."""
    try:
        deltas = tuple(sorted((float(key) for key in claimed["epsilon"]), reverse=True))
    except (KeyError, TypeError, ValueError):
        return DELTAS
    usual = 1 <= len(deltas) <= 16 and all(1e-12 <= delta < 1 for delta in deltas) and deltas[-1] <= max(DELTAS)
    return deltas if usual else DELTAS


def _count(reserved: Reservation) -> int | None:
    noted = reserved.facts.get("survivors")
    return len(noted) if isinstance(noted, list) else noted if isinstance(noted, int) else None


def _raw_rho(entry: Entry) -> Fraction:
    """Return 1 / (2 z^2) from the text of a RESERVE alone, past every class that the engine uses."""
    query = entry.body["query"]
    if not isinstance(query, dict) or query["transport"] == "off" or query["replayed_noise"]:
        return Fraction(0)
    return 1 / (2 * parse_fraction(query["noise_multiplier"]) ** 2)


def _is_charge(entry: Entry, federation: LedgerView) -> bool:
    return entry.kind == "RESERVE" and federation.account.reservations[str(entry.body["event"])].counts


def _mechanism(query: Query) -> dict[str, object]:
    return {
        "clip_norm": fraction_text(query.clip_norm),
        "integer_clip": query.integer_clip,
        "noise_multiplier": float(query.noise_multiplier),
        "sigma": query.sigma,
        "slots": query.slots,
        "dim": query.dim,
        "invited": query.cohort.invited,
        "min_survivors": query.cohort.min_survivors,
        "max_colluding": query.cohort.max_colluding,
        "honest": query.cohort.honest,
        "transport": query.transport,
    }


def _round_rows(federation: LedgerView) -> Iterator[dict[str, object]]:
    total = Fraction(0)
    for reserved in federation.account.reservations.values():
        query = reserved.query
        total += (query.rho or 0) if reserved.counts else 0
        yield {
            "round": query.round,
            "attempt": query.attempt,
            "purpose": query.purpose,
            "transport": query.transport,
            "private": query.private,
            "noise_multiplier": float(query.noise_multiplier),
            "clip_norm": float(query.clip_norm),
            "invited": len(reserved.invited),
            "survivors": _count(reserved),
            "min_survivors": query.cohort.min_survivors,
            "state": reserved.state,
            "rho": float(query.rho) if query.rho is not None else None,
            "rho_total": float(total),
            "epsilon_total": epsilon_zcdp(total, DELTAS[1]),
        }


def _device_summary(evidence: Evidence, federation: LedgerView) -> dict[str, object]:
    """Return how the charges spread over the devices: by their own ledgers, else by the federation's invitations."""
    own = bool(evidence.devices)
    names = list(evidence.devices) or sorted({d for r in federation.account.charged() for d in r.invited})
    accounts = [evidence.devices[name].account if own else federation.account for name in names]
    spent = [float(a.spent_rho(None if own else name)) for a, name in zip(accounts, names, strict=True)]
    times = [a.participations(None if own else name) for a, name in zip(accounts, names, strict=True)]
    budget = evidence.policy.budget_rho if evidence.policy is not None else None
    yearly = evidence.policy.yearly_rho if evidence.policy is not None else None
    return {
        "count": len(names),
        "charged": sum(each > 0 for each in times),
        "by_own_ledgers": own,
        "rho": _spread(spent),
        "epsilon": {name: epsilon_zcdp(Fraction(rho), DELTAS[1]) for name, rho in (_spread(spent) or {}).items()},
        "participations": _spread(times),
        "budget_rho": float(budget) if budget is not None else None,
        "budget_epsilon": epsilon_zcdp(budget, DELTAS[1]) if budget is not None else None,
        "yearly_rho": float(yearly) if yearly is not None else None,
        "yearly_epsilon": epsilon_zcdp(yearly, DELTAS[1]) if yearly is not None else None,
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return least, quarters, 95th percentile and most, each somebody's own figure but for the median."""
    if not values:
        return None
    named = {"p25": 0.25, "p75": 0.75, "p95": 0.95}
    inner = {name: percentile(values, share) for name, share in named.items()}
    return {"min": min(values), "median": median(values), "max": max(values), **inner}


def _at(figures: object, delta: str) -> float:
    return float(figures[delta]) if isinstance(figures, Mapping) else math.nan


def _numbers(value: object) -> list[float]:
    return [float(each) for each in value] if isinstance(value, list) else []
