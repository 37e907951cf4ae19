"""Waiting for a run of a campaign to be over: its server's events tell of life and of the end, Flower of the status.

Flower's own command takes three seconds of a processor, so it is asked when the events say that a run ended, and where
they say nothing for long, ever more rarely: a run that died notes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from server.events import events
from server.folder import OperatorFolder

POLL_S = 1.0
ASK_S = (30.0, 300.0)  # without an event before Flower is asked: at first, and the longest


def finished(
    operator: OperatorFolder,
    status: Callable[[], str],
    since: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Return Flower's `status` of the run that began at `since`, seconds since 1970, once it is over."""
    noted, looked, pause = -1, clock(), ASK_S[0]
    while True:
        found = _since(operator, since)
        if len(found) != noted:
            noted, looked, pause = len(found), clock(), ASK_S[0]
        if any(map(_ends, found)) or clock() - looked > pause:
            if (told := status()).startswith("finished"):
                return told
            looked, pause = clock(), min(2 * pause, ASK_S[1])
        sleep(POLL_S)


def reason(operator: OperatorFolder, since: float) -> str:
    """Return the line of the failure that the campaign's server noted since then, "" for none."""
    ends = [each for each in _since(operator, since) if _ends(each)]
    return next((str(each.get("reason", "")) for each in reversed(ends) if each["event"] == "failed"), "")


def _ends(event: Mapping[str, Any]) -> bool:
    return event["event"] in ("failed", "released")


def _since(operator: OperatorFolder, since: float) -> list[Mapping[str, Any]]:
    return [e for e in events(operator.home) if datetime.fromisoformat(str(e["ts"])).timestamp() >= since]
