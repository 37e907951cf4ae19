"""From a finished campaign to its signed release: what is published, with the claim that the ledger bears out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting import statement
from privacy.adapter import AdapterLayout, Basis, Cores, merge_cores
from privacy.learned import Learned, PersonaFacts
from privacy.release import ReleaseFacts, privacy_claim
from server.campaign import Campaign
from server.personas import telling_words
from server.registry import write_release

MOST_WORDS = 12


@dataclass(frozen=True)
class ReleaseOf:
    """What a release is of: the base model's name and the SHA-256 of its weights."""

    base_model: str
    base_model_sha256: str


def publish(campaign: Campaign, basis: Basis, of: ReleaseOf, key: Ed25519PrivateKey, folder: Path) -> str:
    """Write the signed release and its ledger entry, once after the campaign's last sum; return its hash."""
    ledger, plan = campaign.ledger, campaign.plan
    last = next((entry for entry in reversed(ledger.entries()) if entry.kind in ("COMMIT", "RELEASE")), None)
    if last is not None and last.kind == "RELEASE":
        return str(last.body["release_sha256"])
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
    release = write_release(folder, basis, released_cores(campaign, basis.layout), facts, key, learned_by(campaign))
    ledger.append("RELEASE", {"release_sha256": release.sha256})
    return release.sha256


def learned_by(campaign: Campaign) -> Learned:
    """Return what else is published: each published persona's count, words and centroid; the retriever."""
    state, told = campaign.state, descriptions(campaign)
    kept = campaign.published_personas()
    # Adapters are listed by name, and so are their centroids.
    names = sorted((f"persona-{k}", k) for k in kept)
    tables = {}
    if names and len(state.centroids):
        tables["centroids"] = state.centroids[[k for _, k in names]].astype(np.float32)
    if campaign.plan.retriever_rounds:
        rank = campaign.plan.retriever_rank
        tables["retriever"] = state.retriever.reshape(rank, rank).astype(np.float32)
        tables["directions"] = state.directions.astype(np.float32)
    personas = {name: PersonaFacts(f"{state.persona_counts[k]:.1f}", told[k]) for name, k in names}
    return Learned(tables, personas, campaign.plan.public_sha256)


def descriptions(campaign: Campaign) -> list[str]:
    """Return a description of each persona: what was declared, and the public words that it uses more than the others.

    The words come from noisy counts alone, so they are as private as these; "" where nothing can be said.
    """
    state, declared = campaign.state, campaign.plan.declared
    if not len(state.words):
        return list(declared) or [""] * campaign.plan.personas
    words = campaign.public.words
    found = telling_words(state.words, state.word_counts, state.word_deviation, words, MOST_WORDS)
    texts = [", ".join(each) for each in found]
    if not declared:
        return texts
    return [f"{told} ({text})" if text else told for told, text in zip(declared, texts, strict=True)]


def released_cores(campaign: Campaign, layout: AdapterLayout) -> dict[str, Cores]:
    """Return what is published: global, every persona large enough (as an offset), and each composed with global."""
    core, personas = campaign.released
    cores: dict[str, Cores] = {"global": layout.unflatten(core)}
    for k in campaign.published_personas():
        cores[f"persona-{k}"] = layout.unflatten(personas[k])
        cores[f"composed-{k}"] = merge_cores([(1.0, cores["global"]), (1.0, cores[f"persona-{k}"])])
    return cores
