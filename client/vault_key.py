"""The key of a vault: 32 random bytes, kept only under a second key that a keyring or a passphrase gives.

    master  = 32 bytes of the operating system           opens the SQLCipher file
    outer   = Argon2id(passphrase, salt)  or  32 bytes in the person's keyring
    vault.key = AES-256-GCM(outer, master), with how `outer` is made as associated data, mode 0600

Two halves on purpose: without the file `vault.key` the passphrase opens nothing, so deleting that file is enough to
make the vault unreadable for good, whoever knows the passphrase. What flash storage keeps of a deleted file is outside
this program's reach (docs/device.md); one who has both an old copy of the file and the passphrase can still read.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from privacy.canonical import canonical_json
from privacy.errors import VaultError
from privacy.files import fsync_folder, write_atomic

VERSION = 1
KEY_FILE = "vault.key"
KEY_BYTES = SALT_BYTES = 32
NONCE_BYTES = 12
SERVICE = "confide"
PASSPHRASE_VARIABLE = "CONFIDE_PASSPHRASE"  # noqa: S105 - a name
PASSPHRASE, KEYRING = "passphrase", "keyring"
# RFC 9106, section 4, second recommended option: 64 MiB, three passes, four lanes.
ARGON2ID = {"iterations": 3, "lanes": 4, "memory_kib": 64 * 1024}
MOST_MEMORY_KIB = 2 * 1024 * 1024


class Keyring(Protocol):
    """The part of a keyring that a vault needs."""

    def get_password(self, service: str, name: str) -> str | None:
        """Return what is kept under the name, None if nothing is."""

    def set_password(self, service: str, name: str, password: str) -> None:
        """Keep it."""

    def delete_password(self, service: str, name: str) -> None:
        """Drop it."""


@dataclass(frozen=True)
class Opener:
    """What a person brings to open a vault: a passphrase, or a keyring of their own."""

    passphrase: str | None = None
    keyring: Keyring | None = None


def opener_from(environment: Mapping[str, str] = os.environ) -> Opener:
    """Return the opener of the environment: its passphrase if it has one, else the system's keyring if that works."""
    if passphrase := environment.get(PASSPHRASE_VARIABLE):
        return Opener(passphrase=passphrase)
    return Opener(keyring=system_keyring())


def system_keyring() -> Keyring | None:
    """Return the system's keyring, None where there is none that encrypts."""
    import keyring
    from keyring.backends import fail, null

    backend = keyring.get_keyring()
    useless = isinstance(backend, fail.Keyring | null.Keyring) or "plaintext" in type(backend).__name__.lower()
    return None if useless or backend.priority <= 0 else backend


def create_key(folder: Path, opener: Opener) -> bytes:
    """Return a fresh master key, kept in `folder` under the opener. Raises VaultError where one is already."""
    path = folder / KEY_FILE
    if path.exists():
        raise VaultError(f"{path.name} exists: this folder has a vault")
    master = secrets.token_bytes(KEY_BYTES)
    how: dict[str, Any] = {"version": VERSION, "by": PASSPHRASE, "salt": secrets.token_bytes(SALT_BYTES).hex()}
    if opener.passphrase:
        how |= {"kdf": "argon2id", **ARGON2ID}
    elif opener.keyring is not None:
        how["by"] = KEYRING
        opener.keyring.set_password(SERVICE, how["salt"], secrets.token_bytes(KEY_BYTES).hex())
    else:
        raise VaultError(f"no keyring here: give a passphrase, or set {PASSPHRASE_VARIABLE}")
    nonce = secrets.token_bytes(NONCE_BYTES)
    sealed = AESGCM(_outer_key(how, opener)).encrypt(nonce, master, canonical_json(how))
    write_atomic(path, json.dumps({**how, "nonce": nonce.hex(), "sealed": sealed.hex()}).encode(), mode=0o600)
    return master


def open_key(folder: Path, opener: Opener) -> bytes:
    """Return the master key. Raises VaultError, the same one for a wrong passphrase and a changed file."""
    try:
        kept = json.loads((folder / KEY_FILE).read_bytes())
        nonce, sealed = bytes.fromhex(kept.pop("nonce")), bytes.fromhex(kept.pop("sealed"))
        known = kept["version"] == VERSION and kept["by"] in (PASSPHRASE, KEYRING)
    except FileNotFoundError:
        raise VaultError("there is no vault here, or its key was destroyed: `confide device init` makes one") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise VaultError(f"{KEY_FILE} cannot be read") from None
    if not known:
        raise VaultError(f"{KEY_FILE} is of a version that this program does not know")
    try:
        return AESGCM(_outer_key(kept, opener)).decrypt(nonce, sealed, canonical_json(kept))
    except InvalidTag:
        raise VaultError("this passphrase or keyring does not open the vault; nothing was changed") from None


def opens_by(folder: Path) -> str:
    """Return "passphrase" or "keyring", "" where there is no readable key file."""
    try:
        return str(json.loads((folder / KEY_FILE).read_bytes())["by"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def destroy_key(folder: Path, opener: Opener) -> None:
    """Delete both halves of the key that can be deleted; the vault is noise from then on."""
    path = folder / KEY_FILE
    try:
        kept = json.loads(path.read_bytes())
    except (OSError, ValueError):
        kept = {}
    if kept.get("by") == KEYRING and opener.keyring is not None:
        with contextlib.suppress(Exception):  # a locked keyring must not keep the file alive
            opener.keyring.delete_password(SERVICE, str(kept.get("salt")))
    if path.exists():
        # Over the old bytes first: on a disk that writes in place they are gone. Flash may keep them (docs/device.md).
        with path.open("r+b") as file:
            file.write(secrets.token_bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        fsync_folder(folder)


def _outer_key(how: Mapping[str, Any], opener: Opener) -> bytes:
    try:
        if how["by"] == KEYRING:
            if opener.keyring is None:
                raise VaultError("this vault opens with a keyring, and none answers here")
            kept = opener.keyring.get_password(SERVICE, how["salt"])
            if kept is None:
                raise VaultError("the keyring does not hold this vault's key")
            return bytes.fromhex(kept)
        if not opener.passphrase:
            raise VaultError(f"this vault opens with a passphrase: type it, or set {PASSPHRASE_VARIABLE}")
        if how["kdf"] != "argon2id" or not 0 < how["memory_kib"] <= MOST_MEMORY_KIB:
            raise VaultError(f"{KEY_FILE} asks for a key derivation that this program does not do")
        kdf = Argon2id(
            salt=bytes.fromhex(how["salt"]),
            length=KEY_BYTES,
            iterations=how["iterations"],
            lanes=how["lanes"],
            memory_cost=how["memory_kib"],
        )
        return kdf.derive(opener.passphrase.encode())
    except (ValueError, KeyError, TypeError):
        raise VaultError(f"{KEY_FILE} cannot be read") from None
