"""Which code was audited: one hash over every line of Python that a run may execute."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import simulation

PACKAGES: Final = ("privacy", "client", "server", "simulation")


def code_sha256() -> str:
    """Return SHA-256 over names and hashes of all .py files of the packages as they lie on this machine, in order."""
    root, whole = Path(simulation.__file__).parent.parent, hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        whole.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()
