"""The folder of one person's agent: what is in it, and who put it there.

    agent.json                    settings                                    the person
    root.pub                      the federation's root key, pinned           the person, on joining
    policy.json, directory.json   signed by the root key                      the federation
    bundle.sha256                 the one Flower bundle that is answered      the federation
    invitation.json, authority.crt, supernode, supernode.pub                  `confide device join` (`client.join`)
    device.key, noise.key         mode 0600, made here from the system        this program, once
    people.jsonl, text/           the person's text                           the person
    vault.db, vault.key           in place of the four above, see below       the person
    ledger/, answers/             what was spent; what must not be lost       this program
    basis.safetensors             frozen factors, once delivered              this program
    relay.sock, person.sock, person.token                                     this program, while it runs

Where the folder holds a vault (`client.vault`), the text comes out of it and nowhere else, the two keys lie in it, and
so does the dial: there is one place for each, and `agent.json` may say nothing of them. A folder without a vault is for
trials and simulation. Keys are never made a second time beside a ledger: a device that lost its keys is another device.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import is_digest, is_name
from privacy.directory import Directory, newer_directory, open_directory
from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.policy import Policy, open_policy

if TYPE_CHECKING:
    from client.train import CoreTraining
    from client.vault import Vault

KEY_BYTES = 32
SETTINGS, DIRECTORY = "agent.json", "directory.json"
IN_THE_VAULT = ("person", "scrub", "dial")  # settings that a vault has the say in
VAULT_FILE = "vault.db"


@dataclass(frozen=True)
class AgentSettings:
    """What a person's agent needs to know; raises ConfigError for what cannot be meant.

    `device` is its name in the directory, `person` the `user` of its records. `hold_s` is the fixed time after which a
    trained answer is ready; the same for everybody, above what training takes. `layers` is the federation's.
    """

    device: str
    model: str
    person: str = ""
    layers: int = 10
    scrub: bool = True
    max_document_tokens: int = 512
    steps: int = 2
    step: float = 0.06
    sampling_rate: float = 0.5
    document_clip: float = 1.0
    hold_s: float = 60.0
    tick_s: float = 0.25
    quantize: str = "none"  # the base model's layers in memory, see `client.network`
    dial: str = "all"  # joining is the owner's choice; less than all is one more (`client.dial`)
    relay: str = ""  # the folder of the relay's own user, see `client.relay_user`; none: it runs as the person

    def __post_init__(self) -> None:
        if not is_name(self.device) or not self.model:
            raise ConfigError("agent.json: device is a name of a directory, model a folder")
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            number = kind is float and type(value) is int
            if field.name not in ("device", "model") and type(value) is not kind and not number:
                raise ConfigError(f"agent.json: {field.name} is not {kind.__name__}")
        if self.layers < 1 or self.steps < 1 or self.tick_s < 0 or self.hold_s < 0:
            raise ConfigError("agent.json: layers and steps are at least 1, tick_s and hold_s at least 0")

    @property
    def training(self) -> CoreTraining:
        """Return the settings of local training."""
        from client.train import CoreTraining  # torch loads here, and who only asks for a key needs none

        return CoreTraining(self.steps, float(self.step), float(self.sampling_rate), float(self.document_clip))


@dataclass(frozen=True)
class AgentHome:
    """One agent's folder, mode 0700; `vault` is the one that lies in it, open."""

    folder: Path
    vault: Vault | None = None

    @property
    def joined(self) -> bool:
        """Return whether its owner has joined a federation here."""
        return (self.folder / SETTINGS).exists()

    @property
    def has_vault(self) -> bool:
        """Return whether a vault lies in the folder, open or not."""
        return (self.folder / VAULT_FILE).exists()

    @property
    def settings(self) -> AgentSettings:
        """Return the settings. Raises ConfigError where they are missing, or hold anything unknown or the vault's."""
        try:
            values: Any = json.loads((self.folder / SETTINGS).read_bytes())
            found = AgentSettings(**values)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{SETTINGS}: no settings ({type(error).__name__})") from None
        if self.has_vault and (twice := sorted(set(values) & set(IN_THE_VAULT))):
            raise ConfigError(f"{SETTINGS}: {', '.join(twice)} is for the vault to say: take it out there")
        return found

    def save(self, settings: AgentSettings) -> None:
        """Write the settings into a folder that is made where it is missing."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        left_out = IN_THE_VAULT if self.has_vault else ()
        values = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in left_out}
        write_atomic(self.folder / SETTINGS, json.dumps(values, indent=1).encode())

    @property
    def root_key(self) -> Ed25519PublicKey:
        """Return the pinned root key of the federation."""
        try:
            digits = (self.folder / "root.pub").read_text().strip()
        except OSError:
            raise ConfigError("root.pub is missing: a device pins its federation's root key when it joins") from None
        if not is_digest(digits):
            raise ConfigError("root.pub is not 64 hexadecimal digits")
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(digits))

    @property
    def policy(self) -> Policy:
        """Return the policy that the pinned root key signed."""
        return open_policy(self._signed("policy.json"), self.root_key)

    @property
    def directory(self) -> Directory:
        """Return the directory that the pinned root key signed."""
        return open_directory(self._signed(DIRECTORY), self.root_key)

    @property
    def held_directory(self) -> Directory | None:
        """Return the directory, None where the federation has not delivered one yet."""
        return self.directory if (self.folder / DIRECTORY).exists() else None

    def take_directory(self, file: bytes) -> Directory:
        """Keep a signed directory that is newer than the one held, and return it. Raises ConfideError for another."""
        held = self.held_directory
        found = newer_directory(file, self.root_key, held)
        if found.federation != self.policy.federation:
            raise ConfigError("a directory of another federation")
        if found != held:
            write_atomic(self.folder / DIRECTORY, file)
        return found

    @property
    def device_key(self) -> Ed25519PrivateKey:
        """Return the device's signing key, made on first use."""
        return Ed25519PrivateKey.from_private_bytes(self._secret("device.key"))

    @property
    def noise_key(self) -> bytes:
        """Return the device's noise key, 32 bytes, made on first use."""
        return self._secret("noise.key")

    @property
    def ledger_file(self) -> Path:
        """Return where the device's ledger lies."""
        return self.folder / "ledger" / f"{self.settings.device}.jsonl"

    def new_token(self) -> bytes:
        """Return a fresh token for the person's socket, written for this user alone to read."""
        token = secrets.token_bytes(KEY_BYTES)
        write_atomic(self.folder / "person.token", token, mode=0o600)
        return token

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder's lock. Raises ConfigError if another agent runs in it; a dead one's lock is free."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError("another agent runs in this folder") from None
            yield
        finally:
            os.close(descriptor)

    def _signed(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            raise ConfigError(f"{name} is missing: get it from the federation") from None

    def _secret(self, name: str) -> bytes:
        if self.vault is not None:
            return self._in_vault(self.vault, name)
        if self.has_vault:
            raise ConfigError(f"{name} lies in the vault of this folder: open it")
        path = self.folder / name
        if not path.exists():
            self._refuse_beside_a_ledger(name)
            write_atomic(path, secrets.token_bytes(KEY_BYTES), mode=0o600)
        key = path.read_bytes()
        if len(key) != KEY_BYTES or path.stat().st_mode & 0o077:
            raise ConfigError(f"{name} is not {KEY_BYTES} bytes that this user alone can read")
        return key

    def _in_vault(self, vault: Vault, name: str) -> bytes:
        """Return a key that the vault keeps. One that lay in a file before the vault was made is moved into it."""
        setting, path = f"agent.{name}", self.folder / name
        if not vault.setting(setting):
            if path.exists():
                vault.set_setting(setting, path.read_bytes().hex())
            else:
                self._refuse_beside_a_ledger(name)
                vault.set_setting(setting, secrets.token_hex(KEY_BYTES))
        path.unlink(missing_ok=True)
        key = bytes.fromhex(vault.setting(setting))
        if len(key) != KEY_BYTES:
            raise ConfigError(f"{name} is not {KEY_BYTES} bytes")
        return key

    def _refuse_beside_a_ledger(self, name: str) -> None:
        if self.ledger_file.exists():
            raise ConfigError(f"{name} is gone, but the ledger is there: enrol again, as another device")
