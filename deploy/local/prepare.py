# Run in the end-to-end test (tests/deploy).
"""Everything that a federation on this machine needs before its first process: keys, certificates, policy, campaign.

tls/                     a certificate authority of this folder, the SuperLink's certificate for 127.0.0.1
root/root.key            signs policy and directory; on nobody's server
server/                  the campaign as `server.home` reads it, with the key that signs releases
devices/device-N/        an agent's folder as `client.agent_home` reads it, and the SuperNode's own key
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from flwr.cli.build import build_fab_from_disk

from client.agent_home import AgentHome, AgentSettings
from client.base_model import base_model_path
from client.basis import BasisSettings, own_samples, whitened_basis
from client.model import LanguageModel
from deploy.local.choice import Choice
from privacy.accounting import rho_of
from privacy.adapter import Basis
from privacy.directory import Directory, Member, signed_directory
from privacy.enrolment import weights_sha256
from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.ledger import Ledger
from privacy.policy import Policy, signed_policy
from privacy.query import Limits
from server.campaign import MAX_ATTEMPTS, CampaignPlan
from server.home import BASIS, ServerHome
from server.optimizer import FedAvg
from server.publish import ReleaseOf
from server.rounds import Deadlines

ROOT = Path(__file__).resolve().parents[2]
FEDERATION = "local"
EXAMPLE = {
    "ada": ("The kettle sings before I do.", "I walked to the mill and back in the rain.", "No letters today."),
    "ben": ("We fixed the roof at last.", "My brother still owes me a ladder.", "Soup again, and I do not mind."),
}


def prepare(folder: Path, choice: Choice) -> list[AgentHome]:
    """Write the federation of `choice` into an empty `folder` and return the homes of its agents."""
    people = people_of(choice.people)
    model = base_model_path(choice.model)
    basis = made_basis(model, choice)
    certificates(folder / "tls")
    homes = [enrolled(folder / "devices" / f"device-{n}", user, model, choice) for n, user in enumerate(people, 1)]
    members = [Member(home.settings.device, public_key_of(home), "local") for home in homes]
    directory = Directory.of(FEDERATION, members)
    root, server = new_key(folder / "root" / "root.key"), Ed25519PrivateKey.generate()
    policy = policy_of(choice, basis, len(homes), server.public_key().public_bytes_raw().hex())
    bundle = hashlib.sha256(build_fab_from_disk(ROOT)).hexdigest()
    for home, lines in zip(homes, people.values(), strict=True):
        write_atomic(home.folder / "root.pub", root.public_key().public_bytes_raw().hex().encode())
        write_atomic(home.folder / "policy.json", signed_policy(policy, root))
        write_atomic(home.folder / "directory.json", signed_directory(directory, root))
        write_atomic(home.folder / "bundle.sha256", bundle.encode())
        write_atomic(home.folder / "people.jsonl", "".join(f"{line}\n" for line in lines).encode(), mode=0o600)
        node_key(home.folder / "supernode")
    campaign(folder / "server", choice, model, basis, directory, policy, server, signed_policy(policy, root))
    return homes


def people_of(path: Path | None) -> Mapping[str, Sequence[str]]:
    """Return the lines of each of the first two people in the file, or of two invented ones."""
    if path is None:
        return {u: [json.dumps({"user": u, "text": t, "split": "history"}) for t in ts] for u, ts in EXAMPLE.items()}
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.strip():
            found.setdefault(str(json.loads(line)["user"]), []).append(line)
    if len(found) < len(EXAMPLE):
        raise ConfigError(f"{path.name}: two people at least")
    return dict(list(found.items())[: len(EXAMPLE)])


def made_basis(model: Path, choice: Choice) -> Basis:
    """Return a basis from the base model's own samples, at the layers of `choice`."""
    loaded = LanguageModel.load(model, top_layers=choice.layers)
    texts = own_samples(loaded, choice.samples, choice.sample_tokens, seed=0)
    return whitened_basis(loaded, texts, BasisSettings(rank=choice.rank))


def enrolled(folder: Path, user: str, model: Path, choice: Choice) -> AgentHome:
    """Return an agent's home with its settings."""
    home = AgentHome(folder)
    home.save(
        AgentSettings(
            device=folder.name,
            model=str(model.resolve()),
            person=user,
            layers=choice.layers,
            scrub=choice.scrub,
            sampling_rate=1.0,
            hold_s=choice.hold_s,
        )
    )
    return home


def public_key_of(home: AgentHome) -> str:
    """Return the public key that the device's own program made and printed; its private half is never read here."""
    command = [sys.executable, "-P", "-m", "client.resident", "--home", str(home.folder), "--enrol"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{home.folder.name} could not enrol: {done.stderr.strip()[-200:]}")
    return str(json.loads(done.stdout)["public_key"])


def policy_of(choice: Choice, basis: Basis, devices: int, signer: str) -> Policy:
    """Return a policy that lets every attempt of every round be lost but the last."""
    attempts = choice.rounds * MAX_ATTEMPTS
    return Policy(
        federation=FEDERATION,
        purposes=("train.global",),
        min_noise_multiplier=choice.noise_multiplier,
        max_clip_norm=choice.clip,
        min_invited=devices,
        min_survivor_fraction=Fraction(2, 3),
        max_participations=attempts,
        budget_rho=attempts * rho_of(choice.noise_multiplier),
        max_dim=basis.layout.dim,
        limits=Limits(choice.own_tokens, 2),
        basis_sha256=basis.sha256,
        release_signer=signer,
    )


def campaign(
    folder: Path,
    choice: Choice,
    model: Path,
    basis: Basis,
    directory: Directory,
    policy: Policy,
    key: Ed25519PrivateKey,
    policy_file: bytes,
) -> None:
    """Write the campaign and begin the federation's ledger."""
    plan = CampaignPlan(
        federation=FEDERATION,
        campaign="rehearsal",
        rounds=choice.rounds,
        cohort=len(directory),
        personas=0,
        slot_dim=basis.layout.dim,
        clip_norm=choice.clip,
        noise_multiplier=choice.noise_multiplier,
        transport="masked",
        limits=policy.limits,
        optimizer=FedAvg(),
        basis_sha256=basis.sha256,
        policy_sha256=policy.sha256,
        seed=0,
        directory_sha256=directory.sha256,
    )
    deadlines = Deadlines(stage=choice.stage_s, window=choice.hold_s, training=600.0, greeting=choice.stage_s)
    home = ServerHome(folder, plan, ReleaseOf(model.name, weights_sha256(model)), deadlines)
    home.save(key)
    basis.save(folder / "checkpoints" / BASIS)
    write_atomic(folder / "ledger" / "policy.json", policy_file)
    devices = {member.device_id: member.public_key for member in directory.members}
    genesis = {"federation": FEDERATION, "owner": "federation", "devices": devices}
    with Ledger(folder / "ledger" / "federation.jsonl", key, genesis) as ledger:
        ledger.append("POLICY", {"policy_sha256": policy.sha256})


def new_key(path: Path) -> Ed25519PrivateKey:
    """Return a new Ed25519 key, kept at `path` for this user alone."""
    key = Ed25519PrivateKey.generate()
    write_atomic(path, key.private_bytes_raw(), mode=0o600)
    return key


def node_key(path: Path) -> None:
    """Write a SuperNode's key pair in the form that Flower reads: NIST P-384, OpenSSH."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomic(path.with_suffix(".pub"), public + b"\n")


def certificates(folder: Path) -> None:
    """Write ca.crt, server.crt and server.key: an authority whose key is dropped at once, and 127.0.0.1."""
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide local authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: x509.Name, key: ec.EllipticCurvePublicKey, is_authority: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    root = certificate(issuer, authority.public_key(), True).add_extension(usage, critical=True)
    leaf = certificate(subject, server.public_key(), False).add_extension(names, critical=False)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
    for name, builder in (("ca.crt", root), ("server.crt", leaf)):
        write_atomic(folder / name, builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    private = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(folder / "server.key", private, mode=0o600)
