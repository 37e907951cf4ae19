"""Every bound of a policy refuses with its own code, and nothing lifts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import canonical_json
from privacy.errors import BudgetExhausted, ConfigError, PolicyRefused, SignatureInvalid, WireError
from privacy.policy import Policy, open_policy, signed_policy
from privacy.query import Cohort, Limits, Query
from privacy.wire import RefusalCode

Ask = Callable[..., Query]
Grant = Callable[..., Policy]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))

# what the policy says, what the query says instead, what was spent before, the code
REFUSALS: list[tuple[dict[str, Any], dict[str, Any], tuple[Fraction, int], RefusalCode]] = [
    ({}, {"federation": "other"}, (Fraction(0), 0), RefusalCode.FEDERATION),
    ({}, {"policy_sha256": "0" * 64}, (Fraction(0), 0), RefusalCode.POLICY),
    ({}, {"basis_sha256": "0" * 64}, (Fraction(0), 0), RefusalCode.BASIS),
    ({"purposes": ("train.global",)}, {"purpose": "train.persona"}, (Fraction(0), 0), RefusalCode.PURPOSE),
    ({}, {"transport": "off"}, (Fraction(0), 0), RefusalCode.UNPROTECTED),
    ({}, {"replayed_noise": True}, (Fraction(0), 0), RefusalCode.REPLAYED_NOISE),
    ({}, {"cohort": Cohort(9)}, (Fraction(0), 0), RefusalCode.COHORT),
    ({"min_survivor_fraction": Fraction(68, 100)}, {}, (Fraction(0), 0), RefusalCode.SURVIVORS),
    ({}, {"noise_multiplier": Fraction(49, 100)}, (Fraction(0), 0), RefusalCode.NOISE),
    ({}, {"clip_norm": Fraction(101, 100)}, (Fraction(0), 0), RefusalCode.CLIP),
    ({}, {"slot_dim": 10_001}, (Fraction(0), 0), RefusalCode.DIM),
    ({}, {"limits": Limits(513, 2)}, (Fraction(0), 0), RefusalCode.WORK),
    ({}, {"limits": Limits(512, 9)}, (Fraction(0), 0), RefusalCode.WORK),
    ({}, {"limits": Limits(512, 2, 3601)}, (Fraction(0), 0), RefusalCode.WORK),
    ({}, {}, (Fraction(0), 4), RefusalCode.PARTICIPATIONS),
    ({}, {"objective": "reply-only"}, (Fraction(0), 0), RefusalCode.OBJECTIVE),
    ({}, {"objective": "reply-only"}, (Fraction(2), 3), RefusalCode.OBJECTIVE),
    ({"objectives": ("reply-only",)}, {}, (Fraction(0), 0), RefusalCode.OBJECTIVE),
    ({}, {}, (Fraction(3, 2) + Fraction(1, 10**15), 3), RefusalCode.BUDGET),
    ({"yearly_rho": Fraction(1)}, {}, (Fraction(1, 2) + Fraction(1, 10**15), 3), RefusalCode.YEARLY),
    ({"yearly_rho": Fraction(0)}, {}, (Fraction(0), 0), RefusalCode.YEARLY),
    ({"yearly_rho": Fraction(1)}, {}, (Fraction(3, 2) + Fraction(1, 10**15), 3), RefusalCode.BUDGET),
]
MADE_BY_THE_DEVICE = {  # known to its agent or its ledger, not to a policy
    RefusalCode.STALE,
    RefusalCode.RELEASE,
    RefusalCode.UNABLE,
    RefusalCode.HISTORY,
    RefusalCode.RESTORED,
    RefusalCode.NOT_SAMPLED,
    RefusalCode.BUSY,
    RefusalCode.DIRECTORY,
    RefusalCode.SUM,
}


@pytest.mark.parametrize(("policy", "query", "spent", "code"), REFUSALS, ids=lambda value: str(value)[:40])
def test_each_bound_refuses_with_its_code(
    asked: Ask, granted: Grant, policy: dict[str, Any], query: dict[str, Any], spent: tuple[Fraction, int], code: str
) -> None:
    grant = granted(**policy)
    with pytest.raises(PolicyRefused) as refusal:
        grant.check(asked(**{"policy_sha256": grant.sha256, **query}), *spent)
    assert refusal.value.code == code
    assert isinstance(refusal.value, BudgetExhausted) == (code in (RefusalCode.BUDGET, RefusalCode.YEARLY))


def test_every_code_is_tested() -> None:
    assert {code for *_, code in REFUSALS} | MADE_BY_THE_DEVICE == set(RefusalCode)


def test_at_every_bound_the_device_answers(asked: Ask, granted: Grant) -> None:
    grant = granted(min_survivor_fraction=Fraction(7, 10), limits=Limits(512, 2), max_dim=50)
    query = asked(policy_sha256=grant.sha256, cohort=Cohort(10), noise_multiplier=Fraction(1, 2), clip_norm=Fraction(1))
    grant.check(query, Fraction(0), 3)
    with pytest.raises(BudgetExhausted):
        grant.check(query, Fraction(1, 10**15), 3)


@pytest.mark.parametrize(
    ("grant", "ask"),
    [({"allow_unprotected": True}, {"transport": "off"}), ({"allow_replayed_noise": True}, {"replayed_noise": True})],
)
def test_what_is_for_simulation_is_allowed_only_by_name_and_charges_nothing(
    asked: Ask, granted: Grant, grant: dict[str, Any], ask: dict[str, Any]
) -> None:
    policy = granted(**grant)
    query = asked(policy_sha256=policy.sha256, **ask)
    policy.check(query, policy.budget_rho, 0)
    assert not query.private


def test_off_needs_no_noise_where_off_is_allowed(asked: Ask, granted: Grant) -> None:
    policy = granted(allow_unprotected=True)
    policy.check(asked(policy_sha256=policy.sha256, transport="off", noise_multiplier=Fraction(0)), Fraction(0), 0)


OTHER: dict[str, Any] = {
    "federation": "other",
    "purposes": ("train.global",),
    "min_noise_multiplier": Fraction(1),
    "max_clip_norm": Fraction(2),
    "min_invited": 11,
    "min_survivor_fraction": Fraction(1, 2),
    "max_participations": 5,
    "budget_rho": Fraction(3),
    "max_dim": 9,
    "limits": Limits(1, 1),
    "basis_sha256": "0" * 64,
    "release_signer": "0" * 64,
    "allow_replayed_noise": True,
    "allow_unprotected": True,
    "yearly_rho": Fraction(1),
    "witness_key": "a" * 64,
    "serial": 1,
    "objectives": ("next-token", "word-counts"),
    "public_sha256": "b" * 64,
}


def test_every_field_changes_the_hash_and_survives_the_file(granted: Grant) -> None:
    assert set(OTHER) == {field.name for field in fields(Policy)}
    policies = [granted(), *(granted(**{name: value}) for name, value in OTHER.items())]
    assert len({policy.sha256 for policy in policies}) == len(policies)
    for policy in policies:
        assert Policy.from_bytes(policy.to_bytes()) == policy
        assert open_policy(signed_policy(policy, KEY), KEY.public_key()) == policy


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": ""},
        {"purposes": ("train.persona", "train.global")},
        {"purposes": ("train.global", "train.global")},
        {"purposes": ("eval",)},
        {"purposes": ["train.global"]},
        {"objectives": ("causal-lm",)},
        {"objectives": ("word-counts", "next-token")},
        {"public_sha256": "B" * 64},
        {"min_noise_multiplier": 0.5},
        {"max_clip_norm": Fraction(-1)},
        {"budget_rho": Fraction(1, 10**18)},
        {"min_survivor_fraction": Fraction(3, 2)},
        {"min_invited": 0},
        {"max_participations": True},
        {"max_dim": 2**25},
        {"limits": None},
        {"release_signer": "E" * 64},
        {"allow_unprotected": 1},
        {"yearly_rho": Fraction(5, 2)},
        {"yearly_rho": 1},
        {"witness_key": "A" * 64},
        {"serial": -1},
        {"serial": True},
    ],
)
def test_refused_policies(granted: Grant, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        granted(**changes)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "confide-policy/1"},
        {"objectives": "next-token"},
        {"public_sha256": None},
        {"extra": 1},
        {"purposes": "train.global"},
        {"purposes": [[]]},
        {"budget_rho": "4/2"},
        {"budget_rho": 2},
        {"limits": {}},
        {"yearly_rho": None},
        {"serial": 0},
        {"witness_key": None},
    ],
)
def test_bytes_of_no_policy_are_refused(granted: Grant, change: dict[str, Any]) -> None:
    with pytest.raises((WireError, ConfigError)):
        Policy.from_bytes(canonical_json(json.loads(granted().to_bytes()) | change))


@given(st.data())
def test_no_changed_byte_of_the_signed_file_passes(granted: Grant, data: st.DataObject) -> None:
    good = signed_policy(granted(), KEY)
    at = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[at]))
    with pytest.raises((WireError, SignatureInvalid)):
        open_policy(good[:at] + bytes([value]) + good[at + 1 :], KEY.public_key())


def test_another_key_another_form_and_length_are_refused(granted: Grant) -> None:
    good = signed_policy(granted(), KEY)
    with pytest.raises(SignatureInvalid):
        open_policy(good, Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key())
    policy = json.loads(good)["policy"]
    for signature in ("", "0" * 126, "0" * 128 + "0", "G" * 128, 0):
        with pytest.raises(WireError):
            open_policy(canonical_json({"policy": policy, "signature": signature}), KEY.public_key())
    for data in (b"", b"{}", good + b"\n", b'"' + b"x" * 20_000 + b'"'):
        with pytest.raises(WireError):
            open_policy(data, KEY.public_key())
    with pytest.raises(WireError):
        Policy.from_bytes(b'"' + b"x" * 20_000 + b'"')
