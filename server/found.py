"""From an operator's choices to a federation's folder: keys, certificates, policy, bundle, invitation."""

from __future__ import annotations

import hashlib
import shutil
import tomllib
from fractions import Fraction
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting import rho_of
from privacy.adapter import Basis
from privacy.enrolment import Invitation
from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.ledger import Ledger
from privacy.objective import DECLARED, LEAST_LOSS
from privacy.policy import Policy, signed_policy
from privacy.query import NO_DIRECTORY, Cohort, Limits
from server import members
from server.campaign import MAX_ATTEMPTS, CampaignPlan
from server.certificates import new_authority, new_server_certificate
from server.folder import OperatorFolder, Settings
from server.home import BASIS, KEY, ServerHome
from server.optimizer import FedAvg
from server.publish import ReleaseOf
from server.rounds import Deadlines

SOURCE = Path(__file__).resolve().parents[1]
LOCAL_STEPS = 2


def found(operator: OperatorFolder, settings: Settings, basis: Basis) -> None:
    """Write a new federation into the operator's folder, which is empty or not there. Raises ConfigError.

    federation.json is written last: a folder that holds it is whole.
    """
    folder = operator.folder
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: a federation begins in a folder of its own")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for place in (folder / "root", operator.keys):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (operator.keys / "root.key").exists():
        raise ConfigError(f"{operator.keys} holds the root key of a federation already")
    root, signer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    root_hex = root.public_key().public_bytes_raw().hex()
    write_atomic(operator.keys / "root.key", root.private_bytes_raw(), mode=0o600)
    write_atomic(folder / "root" / "root.pub", root_hex.encode())
    write_atomic(operator.home / "checkpoints" / KEY, signer.private_bytes_raw(), mode=0o600)
    authority = folder / "tls" / "ca.crt"
    new_authority(operator.keys / "ca.key", authority, settings.federation)
    new_server_certificate(folder / "tls", operator.keys / "ca.key", authority, settings.names)
    policy = signed_policy(policy_of(settings, signer.public_key().public_bytes_raw().hex()), root)
    write_atomic(folder / "policy.json", policy)
    write_atomic(operator.home / "ledger" / "policy.json", policy)
    basis.save(operator.home / "checkpoints" / BASIS)
    invitation = Invitation(
        federation=settings.federation,
        address=settings.address,
        root_key=root_hex,
        authority=authority.read_text(),
        bundle_sha256=settings.bundle_sha256,
        policy=policy.decode(),
        model=settings.model,
        model_sha256=settings.model_sha256,
        layers=settings.layers,
        hold_s=settings.hold_s,
        personas=settings.declared,
    )
    write_atomic(folder / "invitation.json", invitation.signed(root))
    stage_bundle(folder / "bundle")
    if bundle_sha256(folder / "bundle") != settings.bundle_sha256:
        raise ConfigError("the bundle changed while the federation was made: begin again")
    operator.save(settings)


def policy_of(settings: Settings, signer: str) -> Policy:
    """Return the policy of the choices: budget for one campaign in which every attempt but the last of each is lost."""
    attempts = settings.rounds * MAX_ATTEMPTS
    return Policy(
        federation=settings.federation,
        purposes=("train.global", "train.persona") if settings.personas else ("train.global",),
        min_noise_multiplier=settings.noise,
        max_clip_norm=settings.clip_norm,
        min_invited=settings.cohort,
        min_survivor_fraction=Fraction(2, 3),
        max_participations=attempts,
        budget_rho=attempts * rho_of(settings.noise),
        max_dim=max(settings.dim, settings.personas * (settings.dim + 1)),
        limits=Limits(settings.own_tokens, LOCAL_STEPS),
        basis_sha256=settings.basis_sha256,
        release_signer=signer,
    )


def begin(operator: OperatorFolder, campaign: str) -> ServerHome:
    """Write a new campaign of the federation and return it. Raises CohortBelowFloor-like ConfigError, see `floor`.

    The federation's ledger goes on: what devices saw of it must continue. An earlier campaign moves to archive/.
    """
    settings, policy, directory = operator.settings, operator.policy, operator.directory
    if directory is None:
        raise ConfigError("nobody was admitted yet: `confide server invite`, then `confide server admit`")
    archive(operator)
    checkpoints, ledger_file = operator.home / "checkpoints", operator.home / "ledger" / "federation.jsonl"
    key = Ed25519PrivateKey.from_private_bytes((checkpoints / KEY).read_bytes())
    plan = CampaignPlan(
        federation=settings.federation,
        campaign=campaign,
        rounds=settings.rounds,
        cohort=settings.cohort,
        personas=settings.personas,
        slot_dim=settings.dim,
        clip_norm=settings.clip_norm,
        noise_multiplier=settings.noise,
        transport="masked",
        limits=policy.limits,
        optimizer=FedAvg(),
        basis_sha256=settings.basis_sha256,
        policy_sha256=policy.sha256,
        seed=0,
        directory_sha256=directory.sha256 or NO_DIRECTORY,
        persona_floor=Cohort(settings.cohort).min_survivors,
        persona_choice=DECLARED if settings.declared else LEAST_LOSS,
        declared=settings.declared,
    )
    stage = float(settings.stage_s)
    deadlines = Deadlines(stage=stage, window=float(settings.hold_s), training=600.0, greeting=stage)
    if not ledger_file.exists():
        devices = {member.device_id: member.public_key for member in directory.members}
        genesis = {"federation": settings.federation, "owner": "federation", "devices": devices}
        with Ledger(ledger_file, key, genesis) as ledger:
            ledger.append("POLICY", {"policy_sha256": policy.sha256})
    home = ServerHome(operator.home, plan, ReleaseOf(settings.model, settings.model_sha256), deadlines)
    home.save(key)
    return home


def archive(operator: OperatorFolder) -> None:
    """Move the sums and the release of a campaign that is over into archive/CAMPAIGN."""
    home = operator.home
    if not (home / "checkpoints" / "campaign.json").exists():
        return
    old = home / "archive" / ServerHome.load(home).plan.campaign
    old.mkdir(parents=True, exist_ok=True)
    for name in ("release", "checkpoints/rounds", "checkpoints/campaign.json"):
        if (home / name).exists():
            shutil.move(home / name, old / Path(name).name)


def names_taken(operator: OperatorFolder) -> set[str]:
    """Return the names of all campaigns so far."""
    earlier = operator.home / "archive"
    names = {path.name for path in earlier.iterdir()} if earlier.is_dir() else set()
    if (operator.home / "checkpoints" / "campaign.json").exists():
        names.add(ServerHome.load(operator.home).plan.campaign)
    return names


def floor(operator: OperatorFolder) -> tuple[int, int, int]:
    """Return how many devices are admitted, how many a round invites, and how many of them must answer."""
    inside = sum(not each.revoked for each in members.members(operator))
    cohort = Cohort(operator.settings.cohort)
    return inside, cohort.invited, cohort.min_survivors


def stage_bundle(folder: Path) -> None:
    """Copy what the bundle is made of out of the installed confide, in the bundle's own places.

    Later releases of confide may be installed beside a campaign that goes on: devices answer the bundle that they
    pinned. Raises ConfigError where this is an installation without the bundle's list.
    """
    listed = SOURCE / "pyproject.toml"
    if not listed.exists():
        raise ConfigError("this installation has no pyproject.toml beside its packages: start from a checkout")
    names = tomllib.loads(listed.read_text())["tool"]["flwr"]["app"]["fab-include"]
    for name in ("pyproject.toml", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, (SOURCE / name).read_bytes())


def bundle_sha256(folder: Path = SOURCE) -> str:
    """Return the SHA-256 of the bundle that Flower builds of `folder`: what devices pin."""
    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(build_fab_from_disk(folder)).hexdigest()
