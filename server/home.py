"""A campaign's folder as its server finds it: the plan, the keys, the policy, the basis, the ledger, the sums.

    ledger/policy.json, federation.jsonl      ledger/directory.json, where it may change
    checkpoints/campaign.json, server.key, basis.safetensors, rounds/

Whoever prepares a campaign (`confide simulate`, an operator) writes it once; the server, here or inside Flower, reads
it and goes on from the last flushed sum.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from privacy.adapter import Basis, rows_sha256
from privacy.directory import read_directory
from privacy.errors import ConfigError
from privacy.files import write_atomic
from privacy.ledger import Ledger
from privacy.query import Limits
from server.campaign import Campaign, CampaignPlan, Unlisted, note_directory
from server.optimizer import OPTIMIZERS, FedAvg
from server.publish import ReleaseOf
from server.rounds import Courier, Deadlines, Rounds, Watch, scheduled_dropouts

PLAN, KEY, BASIS, ROUNDS = "campaign.json", "server.key", "basis.safetensors", "rounds"
DIRECTORY = "directory.json"


EXTERNAL = "external"  # a researcher's own step: in the process that made it alone, no server loads it


@dataclass(frozen=True)
class ServerHome:
    """One campaign on the server's disk. `simulated`: a node may speak for many people, and `dropout` of the answers
    are lost by schedule. `crowd`, in the process that made it alone: its devices, too many to be listed.
    """

    folder: Path
    plan: CampaignPlan
    release: ReleaseOf
    deadlines: Deadlines = field(default_factory=Deadlines)
    simulated: bool = False
    dropout: float = 0.0
    crowd: Unlisted | None = None

    def save(self, key: Ed25519PrivateKey) -> None:
        """Write the campaign's file and the federation's key, mode 0600."""
        checkpoints = self.folder / "checkpoints"
        facts = {
            "plan": _plain(asdict(self.plan)),
            "optimizer": next(
                (name for name, kind in OPTIMIZERS.items() if type(self.plan.optimizer) is kind), EXTERNAL
            ),
            "release": asdict(self.release),
            "deadlines": asdict(self.deadlines),
            "simulated": self.simulated,
            "dropout": self.dropout,
        }
        write_atomic(checkpoints / PLAN, json.dumps(facts, indent=1, sort_keys=True).encode())
        write_atomic(checkpoints / KEY, key.private_bytes_raw(), mode=0o600)

    @classmethod
    def load(cls, folder: Path) -> ServerHome:
        """Return the campaign in `folder`. Raises ConfigError for a folder that holds none."""
        try:
            facts = json.loads((folder / "checkpoints" / PLAN).read_bytes())
            plan = facts["plan"]
            plan |= {name: Fraction(plan[name]) for name in ("clip_norm", "noise_multiplier")}
            plan["declared"] = tuple(plan.get("declared", ()))
            plan["noise"] = {purpose: Fraction(noise) for purpose, noise in plan["noise"].items()}
            plan |= {
                "limits": Limits(**plan["limits"]),
                "optimizer": OPTIMIZERS[facts["optimizer"]](**plan["optimizer"]),
                "persona_optimizer": FedAvg(**plan["persona_optimizer"]),
            }
            release, deadlines = ReleaseOf(**facts["release"]), Deadlines(**facts["deadlines"])
            simulated, dropout = bool(facts["simulated"]), float(facts["dropout"])
            return cls(folder, CampaignPlan(**plan), release, deadlines, simulated, dropout)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder.name} holds no campaign for a server ({type(error).__name__})") from error

    @property
    def key(self) -> Ed25519PrivateKey:
        """Return the federation's key."""
        return Ed25519PrivateKey.from_private_bytes((self.folder / "checkpoints" / KEY).read_bytes())

    @property
    def basis(self) -> Basis:
        """Return the frozen basis of the campaign's adapters."""
        return Basis.load(self.folder / "checkpoints" / BASIS)

    @contextmanager
    def rounds(self, courier_to: Callable[[Mapping[str, Ed25519PublicKey]], Courier], watch: Watch) -> Iterator[Rounds]:
        """Yield the rounds that are left, with the ledger open and locked; `courier_to` gets the directory.

        Of real devices an attempt that an earlier process began is lost, see `Campaign.lose_begun`; simulated ones live
        and die with their server and answer the same question with the same bytes.
        """
        key, basis = self.key, self.basis
        with Ledger(self.folder / "ledger" / "federation.jsonl", key) as ledger:
            campaign = self.campaign(ledger, basis)
            if self.plan.transport == "masked" and not self.simulated:
                campaign.lose_begun()
            yield Rounds(
                campaign,
                courier_to(campaign.keys),
                basis.to_bytes(),
                lambda start: start.signed(key),
                self.deadlines,
                watch,
                lambda asked: scheduled_dropouts(self.plan.seed, self.dropout, asked),
                self.directory,
            )

    def campaign(self, ledger: Ledger, basis: Basis) -> Campaign:
        """Return the campaign in this folder, begun or gone on with."""
        folder = self.folder / "checkpoints" / ROUNDS
        return open_campaign(self.plan, folder, ledger, basis, self.directory(), self.crowd)

    def directory(self) -> bytes:
        """Return the file of the signed directory as it stands now, b"" where the federation keeps none.

        A simulated federation ends with its campaign and nobody joins it: its devices got their directory at the start.
        """
        if self.simulated:
            return b""
        path = self.folder / "ledger" / DIRECTORY
        return path.read_bytes() if path.exists() else b""


def open_campaign(
    plan: CampaignPlan,
    folder: Path,
    ledger: Ledger,
    basis: Basis,
    directory: bytes = b"",
    crowd: Unlisted | None = None,
) -> Campaign:
    """Return the campaign in `folder`, begun or gone on with, for the devices of the signed `directory`.

    Where there is none they stand in the first entry of the ledger, or are a `crowd`.
    """

    def state(slots: NDArray[np.float64]) -> str:
        return rows_sha256(plan.basis_sha256, slots)

    if crowd is not None:
        return Campaign(plan, folder, ledger, crowd.names, state, crowd.keys, listed=False)
    if directory:
        members = read_directory(directory)
        note_directory(ledger, members)
        keys = dict(members)
    else:
        keys = directory_of(ledger)
    return Campaign(plan, folder, ledger, list(keys), state, keys)


def directory_of(ledger: Ledger) -> dict[str, Ed25519PublicKey]:
    """Return the devices' public keys, as the federation's ledger began with them."""
    devices: Any = ledger.entries()[0].body.get("devices", {})
    return {name: Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for name, key in devices.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    return f"{value.numerator}/{value.denominator}" if isinstance(value, Fraction) else value
