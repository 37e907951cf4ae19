"""RUN/: one run's files. What must survive a crash is written before it is needed; secrets close with the run."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.errors import ConfigError
from privacy.files import write_atomic
from simulation.config import RunConfig

MANIFEST = "run.json"
REPORT = "report.json"


@dataclass(frozen=True)
class RunSecrets:
    """The keys of a run: the federation's, one a device, and the root of the simulated devices' noise keys."""

    federation: Ed25519PrivateKey
    devices: dict[str, Ed25519PrivateKey]
    noise_root: bytes


class RunFolder:
    """The paths of a run, its manifest and its secrets. Raises ConfigError where the folder is another run's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledgers = path / "ledger"
        self.release = path / "release"
        self.checkpoints = path / "checkpoints"
        self.noise_file = self.checkpoints / "noise.root"
        self.key_file = self.checkpoints / "keys.json"

    def begin(self, config: RunConfig, overwrite: bool) -> None:
        """Make the folder ready: a new run, or the same run to go on with after a crash.

        `overwrite` removes an earlier run (never a folder that holds something else).
        """
        manifest = self.path / MANIFEST
        if self.path.exists() and any(self.path.iterdir()) and not manifest.exists():
            raise ConfigError(f"{self.path} holds files of something else; choose another --out")
        if manifest.exists() and overwrite:
            shutil.rmtree(self.path)
        if manifest.exists():
            known = json.loads(manifest.read_text(encoding="utf-8"))
            if known.get("campaign") != config.campaign:
                raise ConfigError(
                    f"{self.path} holds a run with another configuration; use --overwrite or another --out"
                )
            if (self.path / REPORT).exists():
                raise ConfigError(f"{self.path} holds a finished run; use --overwrite or another --out")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.write_manifest({"campaign": config.campaign, "config": config.flat(), "state": "running"})

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write run.json: configuration, versions, hashes, seeds; no secret."""
        data = json.dumps(manifest, indent=1, sort_keys=True, default=str) + "\n"
        write_atomic(self.path / MANIFEST, data.encode())

    def secrets(self, users: Sequence[str], replay_noise: Path | None) -> RunSecrets:
        """Return the run's keys, made by the operating system on the first call and kept (mode 0600) until `close`.

        `replay_noise` names a file whose 32 bytes replace the noise root: for tests; such a run is NOT PRIVATE.
        """
        if not self.key_file.exists():
            keys = {name: secrets.token_bytes(32).hex() for name in ("federation", *(f"device:{u}" for u in users))}
            write_atomic(self.key_file, json.dumps(keys, sort_keys=True).encode(), mode=0o600)
        keys = json.loads(self.key_file.read_text(encoding="ascii"))
        if not self.noise_file.exists():
            write_atomic(self.noise_file, _noise_root(replay_noise), mode=0o600)
        private = {name: Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw)) for name, raw in keys.items()}
        devices = {user: private[f"device:{user}"] for user in users}
        return RunSecrets(private["federation"], devices, self.noise_file.read_bytes())

    def close(self) -> None:
        """Destroy the noise root and kept answers: from here on nobody, the server included, can redraw any noise."""
        self.noise_file.unlink(missing_ok=True)
        shutil.rmtree(self.checkpoints / "answers", ignore_errors=True)


def _noise_root(replayed: Path | None) -> bytes:
    if replayed is None:
        return secrets.token_bytes(32)
    try:
        root = replayed.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the noise key {replayed}: {error.strerror}") from error
    if len(root) != 32:
        raise ConfigError(f"{replayed.name} must hold exactly 32 bytes")
    return root
