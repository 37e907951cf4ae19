"""Joining a federation: what a device pins, the keys it makes, the enrolment it hands in; and leaving again.

    invitation.json, root.pub, policy.json, bundle.sha256, authority.crt    pinned out of the invitation
    supernode, supernode.pub                                             the SuperNode's key pair, made here
    agent.json                                                           device name, model, layers, hold_s
    enrolment.json                                                       public keys, for the operator

Nothing is written before the person has compared the federation's safety number. The device's own two keys lie where
`client.agent_home` says: in the vault where there is one.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from client.agent_home import DIRECTORY, SETTINGS, AgentHome, AgentSettings
from privacy.enrolment import Enrolment, Invitation, code_key, open_invitation, persona_name, weights_sha256
from privacy.errors import ConfigError
from privacy.files import write_atomic

INVITATION, ENROLMENT, NODE_KEY, AUTHORITY, PIN = (
    "invitation.json",
    "enrolment.json",
    "supernode",
    "authority.crt",
    "bundle.sha256",
)
PINNED = (INVITATION, "root.pub", "policy.json", PIN, AUTHORITY, NODE_KEY, f"{NODE_KEY}.pub", ENROLMENT, DIRECTORY)
PERSONA = "agent.persona"  # a setting of the vault


def join(
    home: AgentHome, invitation: bytes, code: str, model: Path, device: str = "", organisation: str = "none"
) -> Enrolment:
    """Pin a federation in `home`, make the keys, and return the enrolment, which lies in enrolment.json too.

    Call after the person compared `safety_number`. `device` names the device for everybody in the federation: drawn by
    chance if left out. Called again with the same invitation before the device was admitted, it enrols anew under the
    same keys. Raises ConfideError, and changes nothing then, for another federation's invitation, a model whose weights
    are not the federation's, or a text that is no code.
    """
    offered = open_invitation(invitation)
    code_key(code)
    _refuse_another(home, offered)
    if weights_sha256(model) != offered.model_sha256:
        raise ConfigError(
            f"the weights in {model.name} are not those of the federation's {offered.model}: adapters would fit neither"
        )
    name = device or (home.settings.device if home.joined else f"device-{secrets.token_hex(4)}")
    if home.joined and home.settings.device != name:
        raise ConfigError(f"this device joined as {home.settings.device}: `confide device leave` first")
    settings = AgentSettings(
        device=name, model=str(model.resolve()), person=home.settings.person if home.joined else "",
        layers=offered.layers, hold_s=float(offered.hold_s),
    )  # fmt: skip
    home.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not home.joined:
        home.save(settings)
        try:
            _ = home.device_key, home.noise_key
        except ConfigError:  # a ledger without its keys: it joins under this name no more
            (home.folder / SETTINGS).unlink()
            raise
    if not (home.folder / NODE_KEY).exists():
        new_node_key(home.folder / NODE_KEY)
    pin(home.folder, offered, invitation)
    enrolment = Enrolment(
        federation=offered.federation,
        root_key=offered.root_key,
        device=name,
        organisation=organisation,
        public_key=home.device_key.public_key().public_bytes_raw().hex(),
        node_key=(home.folder / f"{NODE_KEY}.pub").read_text().strip(),
        nonce=secrets.token_hex(32),
    )
    write_atomic(home.folder / ENROLMENT, enrolment.signed(home.device_key, code))
    return enrolment


def pin(folder: Path, offered: Invitation, file: bytes) -> None:
    """Write what an invitation pins."""
    write_atomic(folder / "root.pub", offered.root_key.encode())
    write_atomic(folder / "policy.json", offered.policy.encode())
    write_atomic(folder / PIN, offered.bundle_sha256.encode())
    write_atomic(folder / AUTHORITY, offered.authority.encode())
    write_atomic(folder / INVITATION, file)


def renew(home: AgentHome, file: bytes) -> Invitation:
    """Take a newer invitation of the federation that this device is in: another address, authority or bundle.

    Its root key must be the pinned one, which signed it. Raises ConfideError for another.
    """
    offered = open_invitation(file)
    _refuse_another(home, offered)
    if not home.joined:
        raise ConfigError("this device has joined no federation")
    if offered.opened_policy.serial < home.policy.serial:
        raise ConfigError("this invitation is older than what this device holds: its policy has a lower number")
    pin(home.folder, offered, file)
    return offered


def count_to(home: AgentHome, name: str) -> str:
    """Keep which declared persona its owner counts themselves to, "" for none, in the vault alone; return its name.

    It holds from the next question on. Raises ConfigError where the federation declares no such persona.
    """
    names = [persona_name(text) for text in joined_invitation(home).personas]
    if home.vault is None:
        raise ConfigError("a persona is kept in a vault, and this device has none")
    if not names:
        raise ConfigError("this federation declares no personas: nobody is asked for one")
    found = next((each for each in names if each.casefold() == name.strip().casefold()), "")
    if name and not found:
        raise ConfigError(f"no persona of this federation is called {name[:40]!r}; there are: {', '.join(names)}")
    home.vault.set_setting(PERSONA, found)
    return found


def slot_of(home: AgentHome) -> int | None:
    """Return the slot of the persona that its owner counts themselves to; None for none, or where none is declared."""
    named = home.vault.setting(PERSONA) if home.vault is not None else ""
    if not named:
        return None
    names = [persona_name(text) for text in joined_invitation(home).personas]
    return names.index(named) if named in names else None


def leave(home: AgentHome) -> None:
    """Forget the federation: what was pinned, the SuperNode's key, the settings. The ledger and the vault stay.

    The ledger says what was given and bounds any later joining; releases that this device helped to make remain.
    """
    if not home.joined:
        raise ConfigError("this device has joined no federation")
    if home.vault is not None:
        home.vault.set_setting(PERSONA, "")
    for name in (SETTINGS, *PINNED):
        (home.folder / name).unlink(missing_ok=True)


def new_node_key(path: Path) -> None:
    """Write a SuperNode's key pair in the form that Flower reads: NIST P-384, OpenSSH; the private half mode 0600."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_atomic(path.with_name(f"{path.name}.pub"), public + b"\n")


def joined_invitation(home: AgentHome) -> Invitation:
    """Return the invitation that this device joined by. Raises ConfigError where it joined by none."""
    try:
        return open_invitation((home.folder / INVITATION).read_bytes())
    except OSError:
        raise ConfigError("this device has joined no federation: `confide device join INVITATION`") from None


def _refuse_another(home: AgentHome, offered: Invitation) -> None:
    pinned = home.folder / "root.pub"
    if pinned.exists() and pinned.read_text().strip() != offered.root_key:
        raise ConfigError("this device has pinned another federation's root key: `confide device leave` first")
