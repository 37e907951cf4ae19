"""A RUN folder as an engine would write it, for the tests of the auditor: right, or wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.account import FEDERATION
from privacy.accounting import statement
from privacy.adapter import Basis
from privacy.ledger import Ledger
from privacy.policy import Policy, signed_policy
from privacy.query import Cohort, Limits, Query, Sampling
from privacy.record import RecordCharge
from privacy.release import ReleaseFacts, privacy_claim
from server.registry import write_release

FED_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RELEASE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
DEVICES = tuple(f"device-{i:02d}" for i in range(12))
INVITED = DEVICES[:10]
SURVIVORS = DEVICES[:9]
RECORD = RecordCharge("own_record_dp", 1.1, 0.25, 12, 1.0, 1e-5)


def device_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"."))


def basis() -> Basis:
    rng = np.random.default_rng(3)
    shapes = {"model.layers.0.q_proj": (2, 4, 4), "model.layers.1.q_proj": (3, 4, 4)}
    return Basis(
        {
            name: (rng.normal(size=(r, i)).astype(np.float32), rng.normal(size=(o, r)).astype(np.float32))
            for name, (r, i, o) in shapes.items()
        }
    )


def policy(**changes: Any) -> Policy:
    settings: dict[str, Any] = {
        "federation": "meadow",
        "purposes": ("train.global",),
        "min_noise_multiplier": Fraction(1),
        "max_clip_norm": Fraction(1),
        "min_invited": 10,
        "min_survivor_fraction": Fraction(2, 3),
        "max_participations": 4,
        "budget_rho": Fraction(3),
        "max_dim": 10_000,
        "limits": Limits(512, 4),
        "basis_sha256": basis().sha256,
        "release_signer": RELEASE_KEY.public_key().public_bytes_raw().hex(),
        "allow_unprotected": True,
    }
    return Policy(**settings | changes)


def query(number: int, head: str, policy_sha256: str, **changes: Any) -> Query:
    settings: dict[str, Any] = {
        "federation": "meadow",
        "campaign": "spring",
        "round": number,
        "attempt": 0,
        "purpose": "train.global",
        "slots": 1,
        "slot_dim": basis().layout.dim,
        "clip_norm": Fraction(1, 10),
        "noise_multiplier": Fraction(1),
        "cohort": Cohort(len(INVITED)),
        "transport": "ideal",
        "release_sha256": "1" * 64,
        "basis_sha256": basis().sha256,
        "policy_sha256": policy_sha256,
        "ledger_head": head,
        "objective": "next-token",
        "limits": Limits(512, 2),
    }
    return Query(**settings | changes)


POLICY = policy()
MANY = policy(min_noise_multiplier=Fraction(0), budget_rho=Fraction(10))


def as_it_is(value: dict[str, Any]) -> dict[str, Any]:
    return value


@dataclass
class Sample:
    """How to make a RUN; every field that differs from its default is a way to be wrong."""

    rounds: int = 2
    transport: str = "ideal"
    policy: Policy = POLICY
    survivors: Sequence[str] = SURVIVORS
    survivors_by_name: bool = True
    skip_reserve: str = ""  # a device whose charge is not written
    device_noise: Fraction = Fraction(1)  # what the devices were asked, if it differs from the federation's ledger
    sampling: Sampling | None = None  # devices flip their own coins; all invited said yes
    claimed: Callable[[dict[str, Any]], dict[str, Any]] = as_it_is
    reported: Callable[[dict[str, Any]], dict[str, Any]] = as_it_is

    def make(self, run: Path) -> Path:
        """Write the RUN as an engine would: ledgers of both sides, policy, release, report."""
        ledgers = {
            name: Ledger(
                run / "ledger" / "devices" / f"{name}.jsonl",
                device_key(name),
                {"federation": "meadow", "owner": name},
                clock=clock(),
            )
            for name in DEVICES
        }
        keys = {name: device_key(name).public_key().public_bytes_raw().hex() for name in DEVICES}
        genesis = {"federation": "meadow", "owner": FEDERATION, "devices": keys}
        with Ledger(run / "ledger" / "federation.jsonl", FED_KEY, genesis, clock=clock()) as federation:
            (run / "ledger" / "policy.json").write_bytes(signed_policy(self.policy, FED_KEY))
            for number in range(self.rounds):
                self._round(number, federation, ledgers)
            ledgers[DEVICES[0]].append("RECORD_DP", RECORD.body())
            used = [r.query for r in federation.account.reservations.values() if self.sampling is not None]
            figures = statement(federation.account.busiest(), released=used)
            facts = ReleaseFacts(
                federation="meadow",
                campaign="spring",
                round=self.rounds,
                base_model="tiny",
                base_model_sha256="0" * 64,
                policy_sha256=self.policy.sha256,
                ledger_head=federation.head,
                private=bool(figures["private"]),
                privacy=privacy_claim(self.claimed(dict(figures))),
            )
            layout = basis().layout
            cores = layout.unflatten(np.random.default_rng(5).normal(size=layout.dim))
            release = write_release(run / "release", basis(), {"global": cores}, facts, RELEASE_KEY)
            federation.append("RELEASE", {"release_sha256": release.sha256, "round": self.rounds})
            federation.write_checkpoint()
        for ledger in ledgers.values():
            ledger.close()
        report = self.reported(self._report(figures))
        (run / "report.json").write_text(json.dumps(report))
        return run

    def _round(self, number: int, federation: Ledger, ledgers: dict[str, Ledger]) -> None:
        asked = query(number, federation.head, self.policy.sha256, transport=self.transport, sampling=self.sampling)
        federation.reserve(asked, FEDERATION, INVITED)
        on_device = replace(asked, noise_multiplier=self.device_noise)
        heads = {}
        for name in INVITED:
            if name != self.skip_reserve:
                ledgers[name].reserve(on_device, name)
                heads[name] = ledgers[name].head
                if name in self.survivors:
                    ledgers[name].commit(on_device.event_id(name), answer_sha256="a" * 64)
        named = list(self.survivors) if self.survivors_by_name else len(self.survivors)
        heads = {name: head for name, head in heads.items() if name in self.survivors}
        federation.commit(asked.event_id(FEDERATION), survivors=named, heads=heads)

    def _report(self, figures: dict[str, Any]) -> dict[str, Any]:
        adversaries = [
            {"who": who, "epsilon": figures[name]}
            for who, name in (("released", "epsilon"), ("server", "epsilon_server"), ("sybils", "sybil_floor_epsilon"))
        ]
        noise = min(figures["noise_multiplier"])
        return {
            "not_private": [] if figures["private"] else ["transport off"],
            "privacy": {
                **figures,
                "noise_multiplier": noise,
                "adversaries": adversaries,
                "record": {"unit": "document", "epsilon": RECORD.epsilon(), "delta": 1e-5},
            },
            "rounds": [
                {"round": number, "invited": len(INVITED), "survivors": len(self.survivors)}
                for number in range(self.rounds)
            ],
        }


def clock() -> Callable[[], int]:
    ticks = iter(range(1_763_900_000_000, 1_763_999_000_000, 1000))
    return lambda: next(ticks)
