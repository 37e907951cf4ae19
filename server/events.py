"""What a campaign's server notes for its operator: one JSON object a line, counts and times, nobody's name.

    {"ts": "2026-…Z", "event": "stage", "campaign": …, "round": 0, "attempt": 0, "stage": "mask", "devices": 16}

Events: begun, stage, answered (of a stage, when it is over), vectors, lost, sum, released, failed. All of it follows
from what the server learns anyway; which devices answered stands in the ledger alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from server.campaign import Asked, RoundSum
from server.rounds import Watch

FILE = "events.jsonl"
MAX_BYTES = 8 * 2**20  # then the file moves to events.jsonl.1, in the place of an older one


class EventLog(Watch):
    """Writes to `folder`/events.jsonl. A line that cannot be written (a full disk) is dropped: sums matter more."""

    def __init__(self, folder: Path, campaign: str) -> None:
        self._path, self._campaign = folder / FILE, campaign
        self._stage, self._heard = "", 0

    def note(self, event: str, **facts: Any) -> None:
        """Write one line."""
        line = {"ts": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        data = json.dumps(line | {"campaign": self._campaign, **facts}).encode() + b"\n"
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
                self._path.replace(self._path.with_name(f"{FILE}.1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError:
            return

    def stage(self, asked: Asked, name: str, devices: int) -> None:
        """Note that a stage begins, and how many answered the one before."""
        self._close(asked)
        self._stage, self._heard = name, 0
        self.note("stage", **_place(asked), stage=name, devices=devices)

    def answered(self, asked: Asked, name: str, device_id: str) -> None:
        """Count an answer."""
        self._heard += 1

    def closed(self, asked: Asked, survivors: Sequence[str], seconds: float) -> None:
        """Note how many answered with a vector, and how long it took."""
        self._close(asked)
        facts = {"invited": len(asked.invited), "survivors": len(survivors), "seconds": round(seconds, 3)}
        self.note("vectors", **_place(asked), **facts)

    def lost(self, asked: Asked, reason: str) -> None:
        """Note that an attempt came to nothing, and why."""
        self._close(asked)
        self.note("lost", **_place(asked), reason=reason)

    def summed(self, asked: Asked, result: RoundSum) -> None:
        """Note a sum: its answers, and the noise in it against what is left of the signal."""
        self._close(asked)
        self.note("sum", **_place(asked), survivors=result.survivors, purpose=asked.query.purpose, **signal(result))

    def _close(self, asked: Asked) -> None:
        if self._stage:
            self.note("answered", **_place(asked), stage=self._stage, answers=self._heard)
        self._stage = ""


def signal(result: RoundSum) -> dict[str, float | None]:
    """Return the norm of a round's noisy mean, of the noise in it (expected), and noise to signal; None where unknown.

        noise = sqrt(d) sigma / (scale sqrt(n)),   signal^2 = max(0, |mean|^2 - noise^2)

    All three follow from the released sum.
    """
    query, norm = result.query, float(np.linalg.norm(result.mean))
    if not query.private:
        return {"mean_norm": norm, "noise_norm": 0.0, "noise_to_signal": 0.0}
    noise = float(np.sqrt(result.mean.size) * query.sigma / (float(query.scale) * np.sqrt(result.survivors)))
    left = float(np.sqrt(max(0.0, norm**2 - noise**2)))
    ratio = round(noise / left, 3) if left > 0 else None
    return {"mean_norm": round(norm, 6), "noise_norm": round(noise, 6), "noise_to_signal": ratio}


def events(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the events in `folder`, oldest first; lines that a crash cut off are passed over."""
    for name in (f"{FILE}.1", FILE):
        try:
            lines = (folder / name).read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "event" in found:
                yield found


def _place(asked: Asked) -> dict[str, int]:
    return {"round": asked.query.round, "attempt": asked.query.attempt}
