"""Releases of a federation that a device took over: verified, kept beside the vault, put under the own adapter.

A release is public and holds nothing of this person, so it lies in the open, in `releases/` of the device's folder.
Which one serves is in the vault.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.model import GLOBAL, LanguageModel
from client.vault import Vault
from privacy.canonical import is_digest
from privacy.errors import ConfigError, ReleaseInvalid
from privacy.files import new_folder
from privacy.release import Release, signer_of, verify_release

FOLDER = "releases"
SIGNER = "release_signer"
LATEST = "release_latest"
GLOBAL_CORE = "global"


def take_over(vault: Vault, folder: Path, signer: str = "") -> Release:
    """Verify the release in `folder`, keep it on the device and return it.

    `signer` is 64 hexadecimal digits, asked for once and kept. Raises ConfigError without it, ReleaseInvalid for files
    that the signer did not sign.
    """
    if not (folder / "release.json").is_file():
        raise ConfigError(f"{folder.name}: no release here, which is a folder with release.json")
    wanted = signer or vault.setting(SIGNER)
    if not wanted:
        claims = signer_of(folder)
        raise ConfigError(f"say by whom it is signed: --signer KEY; it says {claims}, which proves nothing by itself")
    if not is_digest(wanted):
        raise ConfigError("a signer is 64 hexadecimal digits")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(wanted))
    release = verify_release(folder, key)
    place = vault.folder / FOLDER / release.sha256
    if not place.exists():
        with new_folder(place) as beside:
            shutil.copytree(folder, beside, dirs_exist_ok=True)
        verify_release(place, key)
    if signer:
        vault.set_setting(SIGNER, signer)
    return release


def kept(vault: Vault, name: str) -> Release | None:
    """Return the release by its hash, None for the bare base model. Raises ReleaseInvalid where its files are gone."""
    if not is_digest(name):
        return None
    place = vault.folder / FOLDER / name
    if not place.is_dir():
        raise ReleaseInvalid(f"release {name[:12]} is not on this device any more: adopt it again")
    return verify_release(place, Ed25519PublicKey.from_public_bytes(bytes.fromhex(vault.setting(SIGNER))))


def put_under(model: LanguageModel, release: Release | None) -> None:
    """Put a release's global core into the model, the own adapter out; None puts the bare base model there.

    What lies below the own adapter's layers is frozen with the core in it and runs once a document, whatever layers
    the core reaches. Raises ModelError where the release is of another model.
    """
    model.drop_own()
    if release is not None:
        first, model.first = model.first, 0
        try:
            model.attach(release.basis)
        finally:
            model.first = first
        model.set_cores(release.adapters[GLOBAL_CORE])
    elif model.layout is not None:
        model.set_cores(model.layout.zero_cores())
    model.activate(GLOBAL)
