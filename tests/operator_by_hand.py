"""An operator's folder and what goes with it, made in a moment: no model, no network."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.enrolment import Enrolment, Invitation, open_invitation
from privacy.policy import Policy, signed_policy
from privacy.query import Limits
from server.certificates import new_authority
from server.folder import OperatorFolder, Settings
from server.found import bundle_sha256, found
from tests.agents_by_hand import BASIS, SERVER_KEY

ROOT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(100, 132)))
ROOT = ROOT_KEY.public_key().public_bytes_raw().hex()


@cache
def authority() -> str:
    with TemporaryDirectory() as folder:
        new_authority(Path(folder) / "ca.key", Path(folder) / "ca.crt", "trial")
        return (Path(folder) / "ca.crt").read_text()


def policy_of(federation: str = "trial", serial: int = 0) -> Policy:
    return Policy(
        federation=federation,
        purposes=("train.global",),
        min_noise_multiplier=Fraction(1),
        max_clip_norm=Fraction(1, 10),
        min_invited=2,
        min_survivor_fraction=Fraction(2, 3),
        max_participations=6,
        budget_rho=Fraction(3),
        max_dim=BASIS.layout.dim,
        limits=Limits(96, 2),
        basis_sha256=BASIS.sha256,
        release_signer=SERVER_KEY.public_key().public_bytes_raw().hex(),
        serial=serial,
    )


def invitation_of(**changes: Any) -> Invitation:
    values: dict[str, Any] = {
        "federation": "trial",
        "address": "example.org:9092",
        "root_key": ROOT,
        "authority": authority(),
        "bundle_sha256": "0" * 64,
        "policy": signed_policy(policy_of(), ROOT_KEY).decode(),
        "model": "tiny",
        "model_sha256": "1" * 64,
        "layers": 2,
        "hold_s": 1,
    }
    return Invitation(**values | changes)


def node_key() -> str:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def enrolment_of(key: Ed25519PrivateKey, name: str = "ann", root: str = ROOT, nonce: str = "ab" * 32) -> Enrolment:
    public = key.public_key().public_bytes_raw().hex()
    return Enrolment("trial", root, name, "home", public, node_key(), nonce)


@cache
def this_bundle() -> str:
    return bundle_sha256()


def operator_in(folder: Path, **choices: Any) -> OperatorFolder:
    """Return a founded federation in `folder`."""
    settings = Settings(
        federation="trial",
        address="127.0.0.1:9092",
        model="tiny",
        model_sha256="1" * 64,
        basis_sha256=BASIS.sha256,
        bundle_sha256=this_bundle(),
        layers=2,
        dim=BASIS.layout.dim,
        **{"cohort": 2, "rounds": 1, "names": ("127.0.0.1",), **choices},
    )
    operator = OperatorFolder(folder)
    found(operator, settings, BASIS)
    return operator


def enrolled_with(operator: OperatorFolder, name: str, code: str, key: Ed25519PrivateKey | None = None) -> bytes:
    """Return the enrolment's file of a device that knows the code."""
    offered = open_invitation((operator.folder / "invitation.json").read_bytes())
    made = key or Ed25519PrivateKey.generate()
    return enrolment_of(made, name, offered.root_key).signed(made, code)


def settings_of(operator: OperatorFolder) -> dict[str, Any]:
    found_there: dict[str, Any] = json.loads((operator.folder / "federation.json").read_text())
    return found_there
