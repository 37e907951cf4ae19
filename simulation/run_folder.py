"""RUN/: one run's files. What must survive a crash is written before it is needed; secrets close with the run."""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import ConfigError
from privacy.files import write_atomic
from simulation.config import RunConfig
from simulation.report_schema import Round

MANIFEST = "run.json"


@dataclass(frozen=True)
class DeviceKeys:
    """The keys of simulated devices, each made from the run's `root` when somebody asks: a million take no room.

    key(user) = HKDF-SHA256(root, info = "confide/simulated-device/1" || 0x00 || user)

    A real device makes its key itself; here all of them are one process's, whatever they are made from.
    """

    root: bytes

    def __getitem__(self, user: str) -> Ed25519PrivateKey:
        info = b"confide/simulated-device/1\x00" + user.encode()
        return Ed25519PrivateKey.from_private_bytes(HKDF(hashes.SHA256(), 32, None, info).derive(self.root))

    def public(self, user: str) -> Ed25519PublicKey:
        """Return the public key of a user's device."""
        return self[user].public_key()


@dataclass(frozen=True)
class PublicKeys(Mapping[str, Ed25519PublicKey]):
    """The public keys of the devices of `names`, each made when it is looked at."""

    devices: DeviceKeys
    names: Sequence[str]

    def __getitem__(self, user: str) -> Ed25519PublicKey:
        if user not in self.names:
            raise KeyError(user)
        return self.devices.public(user)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class RunSecrets:
    """The keys of a run: the federation's, the devices', and the root of the simulated devices' noise keys."""

    federation: Ed25519PrivateKey
    devices: DeviceKeys
    noise_root: bytes


class RunFolder:
    """The paths of a run, its manifest and its secrets. Raises ConfigError where the folder is another run's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledgers = path / "ledger"
        self.policy_file = self.ledgers / "policy.json"
        self.directory_file = self.ledgers / "directory.json"
        self.release = path / "release"
        self.checkpoints = path / "checkpoints"
        self.basis_file = self.checkpoints / "basis.safetensors"
        self.noise_file = self.checkpoints / "noise.root"
        self.key_file = self.checkpoints / "keys.json"

    def begin(self, config: RunConfig, overwrite: bool, *, people_sha256: str, replayed: bool) -> None:
        """Make the folder ready: a new run, or the same run to go on with after a crash.

        `overwrite` removes a finished or another run (never a folder that holds something else, nor a run that is going
        on); an unfinished one of the same configuration goes on all the same. What a run is, is its configuration, its
        people and whether its noise is replayed: going on with another of these would claim for old rounds what holds
        for new ones.
        """
        facts = {
            "campaign": config.campaign,
            "config": config.flat(),
            "people_sha256": people_sha256,
            "replayed_noise": replayed,
        }
        known = self._manifest()
        self._require_idle()
        if known is not None:
            try:
                self._require_same(known, facts)
            except ConfigError:
                if not overwrite:
                    raise
                self._clear()
        self.write_manifest({**facts, "state": "running"})
        self.checkpoints.mkdir(exist_ok=True)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write run.json: configuration, versions, hashes, seeds; no secret."""
        data = json.dumps(manifest, indent=1, sort_keys=True, default=str) + "\n"
        write_atomic(self.path / MANIFEST, data.encode())

    def finish(self, facts: dict[str, Any]) -> None:
        """Mark the run as finished, with more `facts` in its manifest, and destroy its secrets."""
        self.write_manifest({**(self._manifest() or {}), **facts, "state": "finished"})
        self.close()

    def secrets(self, replay_noise: Path | None) -> RunSecrets:
        """Return the run's keys, made by the operating system on the first call and kept with mode 0600.

        The noise root is kept until `close`. `replay_noise` names a file whose 32 bytes replace it: for tests; such a
        run is NOT PRIVATE.
        """
        if not self.key_file.exists():
            keys = {name: secrets.token_bytes(32).hex() for name in ("federation", "devices")}
            write_atomic(self.key_file, json.dumps(keys, sort_keys=True).encode(), mode=0o600)
        keys = json.loads(self.key_file.read_text(encoding="ascii"))
        if not self.noise_file.exists():
            write_atomic(self.noise_file, _noise_root(replay_noise), mode=0o600)
        federation = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys["federation"]))
        return RunSecrets(federation, DeviceKeys(bytes.fromhex(keys["devices"])), self.noise_file.read_bytes())

    def rows(self) -> list[Round]:
        """Return the report's rows of the rounds so far, in their order."""
        path = self.checkpoints / "rows.json"
        rows: list[Round] = json.loads(path.read_text(encoding="ascii")) if path.exists() else []
        return rows

    def keep_row(self, row: Round) -> None:
        """Keep the row of a round, in place of an earlier one of the same round (an attempt that was lost)."""
        rows = [known for known in self.rows() if known["round"] != row["round"]]
        write_atomic(self.checkpoints / "rows.json", json.dumps([*rows, row]).encode())

    def close(self) -> None:
        """Destroy the noise root, kept answers and updates: from here on nobody can redraw or take off any noise."""
        self.noise_file.unlink(missing_ok=True)
        for kept in ("answers", "updates"):
            shutil.rmtree(self.checkpoints / kept, ignore_errors=True)

    def _manifest(self) -> dict[str, Any] | None:
        """Return run.json, None where a run may begin; raises ConfigError for a folder of something else."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.path.exists() and any(not p.name.startswith(f".{MANIFEST}.") for p in self.path.iterdir()):
                raise ConfigError(f"{self.path} holds files of something else; choose another --out") from None
            return None
        except ValueError:
            raise ConfigError(f"{self.path / MANIFEST} cannot be read; choose another --out") from None
        if not isinstance(manifest, dict) or "campaign" not in manifest:
            raise ConfigError(f"{self.path} holds files of something else; choose another --out")
        return manifest

    def _require_idle(self) -> None:
        """Raise ConfigError while another process runs here: it holds the lock of the federation's ledger."""
        try:
            with (self.ledgers / "federation.jsonl").open("rb") as ledger:
                fcntl.flock(ledger, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise ConfigError(f"another process is running in {self.path}; wait for it or stop it") from None

    def _require_same(self, known: dict[str, Any], facts: dict[str, Any]) -> None:
        if known.get("state") == "finished":
            self.close()  # in case the run was cut off between its last file and this
            raise ConfigError(f"{self.path} holds a finished run; use --overwrite or another --out")
        for key, what in (
            ("campaign", "another configuration"),
            ("people_sha256", "other people"),
            ("replayed_noise", "noise of another origin"),
        ):
            if known.get(key) != facts[key]:
                raise ConfigError(f"{self.path} holds a run with {what}; use --overwrite or another --out")

    def _clear(self) -> None:
        """Remove an earlier run, its manifest last: a folder half removed is still known as a run's."""
        for path in self.path.iterdir():
            if path.name != MANIFEST:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (self.path / MANIFEST).unlink()


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
