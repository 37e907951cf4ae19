"""From a finished campaign to its signed release: what is published, with the claim that the ledger bears out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting import statement
from privacy.adapter import AdapterLayout, Basis, Cores, merge_cores
from privacy.release import ReleaseFacts, privacy_claim
from server.campaign import Campaign
from server.registry import write_release


@dataclass(frozen=True)
class ReleaseOf:
    """What a release is of: the base model's name and the SHA-256 of its weights."""

    base_model: str
    base_model_sha256: str


def publish(campaign: Campaign, basis: Basis, of: ReleaseOf, key: Ed25519PrivateKey, folder: Path) -> str:
    """Write the signed release and its ledger entry, once; return its hash."""
    ledger, plan = campaign.ledger, campaign.plan
    known = [entry for entry in ledger.entries() if entry.kind == "RELEASE"]
    if known:
        return str(known[-1].body["release_sha256"])
    queries = list(ledger.account.busiest())
    facts = ReleaseFacts(
        federation=plan.federation,
        campaign=plan.campaign,
        round=len(campaign.sums),
        base_model=of.base_model,
        base_model_sha256=of.base_model_sha256,
        policy_sha256=plan.policy_sha256,
        ledger_head=ledger.head,
        private=all(query.private for query in queries),
        privacy=privacy_claim(statement(queries)),
    )
    release = write_release(folder, basis, released_cores(campaign, basis.layout), facts, key)
    ledger.append("RELEASE", {"release_sha256": release.sha256})
    return release.sha256


def released_cores(campaign: Campaign, layout: AdapterLayout) -> dict[str, Cores]:
    """Return what is published: global, every persona large enough (as an offset), and each composed with global."""
    state = campaign.state
    cores: dict[str, Cores] = {"global": layout.unflatten(state.core)}
    for k in campaign.published_personas():
        cores[f"persona-{k}"] = layout.unflatten(state.personas[k])
        cores[f"composed-{k}"] = merge_cores([(1.0, cores["global"]), (1.0, cores[f"persona-{k}"])])
    return cores
