"""What an operator sees of a federation at one glance, read from its folder alone."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from privacy.accounting import epsilon_zcdp
from privacy.canonical import sha256_hex
from privacy.errors import ConfideError
from privacy.ledger import read_ledger
from privacy.query import fraction_text
from server.certificates import days_left
from server.events import events
from server.folder import OperatorFolder
from server.found import floor
from server.home import ServerHome
from server.members import members
from server.rounds import HANDED_OVER

DELTA = 1e-6
SHOWN = 200  # events of the past that are looked at
STAGES = ("release", "fit", "advertise", "shares", *HANDED_OVER, "confirm", "unmask")


def overview(operator: OperatorFolder) -> dict[str, Any]:
    """Return the federation as numbers and words: members in counts, campaign, rounds, spent budget, certificates."""
    settings, rows = operator.settings, members(operator)
    inside, invited, least = floor(operator)
    directory = operator.directory
    return {
        "federation": settings.federation,
        "safety_number": operator.safety_number,
        "address": settings.address,
        "runs": operator.running(),
        "devices": inside,
        "vetted": sum(each.vetted and not each.revoked for each in rows),
        "revoked": sum(each.revoked for each in rows),
        "cohort": {"invited": invited, "least_answers": least, "met": inside >= invited},
        "directory": directory.serial if directory is not None else None,
        "certificate_days": days_left(operator.folder / "tls" / "server.crt"),
        "campaign": campaign(operator),
        "budget": budget(operator),
        "releases": releases(operator),
    }


def releases(operator: OperatorFolder) -> list[dict[str, Any]]:
    """Return what was released, the newest first: campaign, rounds, epsilon claimed, personas with their noisy counts.

    As the manifests say; `confide audit release` is what checks them.
    """
    home = operator.home
    found = [home / "release", *sorted((home / "archive").glob("*/release"), reverse=True)]
    rows = []
    for folder in found:
        try:
            document = (folder / "release.json").read_bytes()
            told = json.loads(document)
        except (OSError, ValueError):
            continue
        learned = told.get("learned") or {}
        personas = {name: each.get("noisy_count") for name, each in learned.get("personas", {}).items()}
        claim = (told.get("privacy") or {}).get("epsilon") or {}
        rows.append(
            {
                "campaign": told.get("campaign"),
                "round": told.get("round"),
                "epsilon": claim.get(repr(DELTA)),
                "personas": personas,
                "sha256": sha256_hex(document),
            }
        )
    return rows


def campaign(operator: OperatorFolder) -> dict[str, Any] | None:
    """Return how the present campaign stands, None before the first."""
    home = operator.home
    if not (home / "checkpoints" / "campaign.json").exists():
        return None
    plan = ServerHome.load(home).plan
    seen = [event for event in events(home) if event.get("campaign") == plan.campaign]
    sums = [event for event in seen if event["event"] == "sum"]
    last = seen[-1] if seen else {}
    return {
        "name": plan.campaign,
        "rounds": len(plan.steps),
        "done": len(list((home / "checkpoints" / "rounds").glob("*.sum"))),
        "released": (home / "release" / "release.json").exists(),
        "lost_attempts": sum(event["event"] == "lost" for event in seen),
        "last": {name: last.get(name) for name in ("ts", "event", "round", "attempt", "stage", "reason")},
        "sums": [{name: each.get(name) for name in ("ts", "round", "survivors", "noise_to_signal")} for each in sums],
    }


def budget(operator: OperatorFolder) -> dict[str, Any] | None:
    """Return what the busiest device may have spent, by the federation's ledger, against the policy; None before."""
    path = operator.home / "ledger" / "federation.jsonl"
    if not path.exists():
        return None
    try:
        account, policy = read_ledger(path).account, operator.policy
    except ConfideError as error:
        return {"error": str(error)}
    rho = sum((query.rho or Fraction(0) for query in account.busiest()), Fraction(0))
    return {
        "rho": fraction_text(rho),
        "budget_rho": fraction_text(policy.budget_rho),
        "share": float(rho / policy.budget_rho) if policy.budget_rho else 0.0,
        "epsilon": epsilon_zcdp(rho, DELTA) if rho else 0.0,
        "epsilon_cap": epsilon_zcdp(policy.budget_rho, DELTA),
        "delta": DELTA,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the overview for people."""
    cohort, going, spent = facts["cohort"], facts["campaign"], facts["budget"]
    told = [
        f"{facts['federation']}, {facts['address']}: {'runs' if facts['runs'] else 'does not run'}",
        f"safety number {facts['safety_number']}",
        f"{facts['devices']} devices ({facts['vetted']} vetted, {facts['revoked']} revoked); a round invites"
        f" {cohort['invited']} and needs {cohort['least_answers']} answers"
        + ("" if cohort["met"] else ": TOO FEW DEVICES"),
        f"server certificate: {facts['certificate_days']} days left",
    ]
    if going is None:
        told.append("no campaign yet")
    else:
        state = "released" if going["released"] else f"last: {going['last']['event']} {going['last']['reason'] or ''}"
        told.append(f"campaign {going['name']}: {going['done']} of {going['rounds']} rounds, {state}".rstrip())
        told += [
            f"  round {each['round']}: {each['survivors']} answers, noise to signal {each['noise_to_signal']}"
            for each in going["sums"]
        ]
    if spent is not None and "error" not in spent:
        told.append(
            f"spent at most epsilon {spent['epsilon']:.2f} of {spent['epsilon_cap']:.2f} (delta {spent['delta']:g})"
        )
    return told
