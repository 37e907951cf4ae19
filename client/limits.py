"""What training on this device may use, set by its person and kept in the vault: time, memory, hours, text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from client.vault import Vault
from privacy.errors import ConfigError, TrainingPaused

SETTING = "limits"
LEAST_MEMORY_MB = 128
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Limits:
    """What training may use: seconds, the hours of the day from `first_hour` to before `last_hour`, memory, text.

    `memory_mb` is of the whole process, model included; 0 sets no limit. `documents` are the newest, none longer than
    `document_tokens`.
    """

    seconds: float = 180.0
    first_hour: int = 0
    last_hour: int = 24
    memory_mb: int = 0
    documents: int = 100
    document_tokens: int = 256

    def __post_init__(self) -> None:
        if not (0 <= self.first_hour <= 24 and 0 <= self.last_hour <= 24):
            raise ConfigError("hours are whole numbers from 0 to 24")
        if self.memory_mb and self.memory_mb < LEAST_MEMORY_MB:
            raise ConfigError(f"a model needs more than {LEAST_MEMORY_MB} MB of memory")

    def allow(self, now: datetime) -> bool:
        """Return whether training may go on at this hour; hours may run over midnight."""
        if self.first_hour <= self.last_hour:
            return self.first_hour <= now.hour < self.last_hour
        return now.hour >= self.first_hour or now.hour < self.last_hour

    def check_hour(self, now: datetime) -> None:
        """Raise TrainingPaused outside the allowed hours."""
        if not self.allow(now):
            raise TrainingPaused(f"training is allowed from {self.first_hour} to {self.last_hour} o'clock")

    def check_memory(self, used_mb: float) -> None:
        """Raise ConfigError where more memory is used than allowed."""
        if self.memory_mb and used_mb > self.memory_mb:
            raise ConfigError(
                f"training takes {used_mb:.0f} MB of memory and may take {self.memory_mb}: "
                "raise --memory-mb, or choose a smaller model"
            )


def kept_limits(vault: Vault) -> Limits:
    """Return the limits that the vault keeps, else the usual ones."""
    return Limits(**json.loads(vault.setting(SETTING, "{}")))


def keep_limits(vault: Vault, limits: Limits) -> None:
    """Keep the limits for every later training."""
    vault.set_setting(SETTING, json.dumps(dataclasses.asdict(limits)))


def peak_memory_mb() -> float:
    """Return the most resident memory of this process since `forget_peak_memory`, in MB of 2^20 bytes; 0 if unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def forget_peak_memory() -> None:
    """Let the peak count from now on, where the system allows it: what loading a model took is over."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return
