"""Where the server puts signed releases: whole or not at all, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.adapter import Basis, Cores
from privacy.errors import ReleaseInvalid
from privacy.files import fsync_folder, new_folder, write_flushed
from privacy.learned import NOTHING, Learned
from privacy.release import Release, ReleaseFacts, release_files, verify_release

__all__ = ["latest_release", "verify_release", "write_release"]


def write_release(
    folder: Path,
    basis: Basis,
    adapters: Mapping[str, Cores],
    facts: ReleaseFacts,
    signing_key: Ed25519PrivateKey,
    learned: Learned = NOTHING,
) -> Release:
    """Write a signed release as `folder`, in place of an older one, and return it as read back and verified.

    Whoever reads finds all files of one release. The same input gives the same bytes, so that a release interrupted by
    a crash is simply written again. Raises ReleaseInvalid, ModelError or EncodingError, and then `folder` is as it was.
    """
    files = release_files(basis, adapters, facts, signing_key, learned)
    with new_folder(folder) as beside:
        for name in sorted(adapters):
            (beside / name).mkdir()
        for path, data in files.items():
            write_flushed(beside / path, data)
        for name in sorted(adapters):
            fsync_folder(beside / name)
        return verify_release(beside, signing_key.public_key())


def latest_release(folder: Path, public_key: Ed25519PublicKey) -> Release | None:
    """Return the verified release in `folder`, None if there is none; raises ReleaseInvalid for a damaged one."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ReleaseInvalid(f"{folder.name} is not a folder")
    return verify_release(folder, public_key)
