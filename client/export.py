"""An own adapter on its way out of the vault: only one trained with record-level privacy, and counted.

Every adapter that leaves tells about the same documents anew, so their epsilons add up: the vault's ledger of exports
keeps the sum, which forgetting an adapter does not lower.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors

from client.own import DOCUMENT, RecordPrivacy, save_own
from client.personal import active
from client.vault import Vault
from privacy.canonical import sha256_hex
from privacy.errors import ConfigError, ExportRefused

SETTING = "exports"


@dataclass(frozen=True)
class Exported:
    """What left: the adapter, the release it stands on, its guarantee for one `unit`, and that of all exports together.

    `unit` is a document, or a choice (see `client.own.RecordPrivacy`); totals are over exports of the same unit.
    """

    number: int
    release: str
    epsilon: float
    delta: float
    total_epsilon: float
    total_delta: float
    unit: str = DOCUMENT

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return vars(self)


def export(vault: Vault, folder: Path, base_model: str, number: int | None = None) -> Exported:
    """Write an own adapter, the active one by default, as the PEFT folder `folder`, and note it before.

    Stock PEFT loads the folder; one that stands on a release wants that release's `global` beside it. Raises
    ExportRefused without record-level privacy, ConfigError where there is no such adapter or a folder is there.
    """
    if folder.exists():
        raise ConfigError(f"{folder.name} is there already: choose another folder")
    if number is None:
        now = active(vault)
        if now is None:
            raise ConfigError("there is no own adapter to export: `confide device train --record-epsilon E` makes one")
        number = now[0]
    rows = vault.select("SELECT kind, release, facts, tensors FROM adapter WHERE id = ?", (number,))
    if not rows or json.loads(rows[0][2]).get("unfinished"):
        raise ConfigError(f"the vault has no finished own adapter {number}")
    _, release, facts, tensors = rows[0]
    known = json.loads(facts)["privacy"]
    if known is None:
        raise ExportRefused(
            f"own adapter {number} was trained without record-level privacy and may know your texts by heart: it stays "
            "here; `confide device export --record-epsilon E` trains one that may leave"
        )
    privacy = RecordPrivacy(**known)
    before, mark = exports(vault), sha256_hex(bytes(tensors))
    if mark not in {each["sha256"] for each in before}:  # the same numbers again tell nothing new
        left = {"sha256": mark, "epsilon": privacy.epsilon, "delta": privacy.delta, "unit": privacy.unit}
        before.append(left | {"time": time.time()})
        vault.set_setting(SETTING, json.dumps(before))
    save_own(folder, load_tensors(bytes(tensors)), privacy, base_model)
    same = [each for each in before if each.get("unit", DOCUMENT) == privacy.unit]
    epsilon, delta = sum(e["epsilon"] for e in same), sum(e["delta"] for e in same)
    return Exported(number, release, privacy.epsilon, privacy.delta, epsilon, delta, privacy.unit)


def exports(vault: Vault) -> list[dict[str, Any]]:
    """Return every adapter that left: its hash, epsilon, delta, time, and of what the epsilon is (else documents)."""
    found: list[dict[str, Any]] = json.loads(vault.setting(SETTING, "[]"))
    return found
