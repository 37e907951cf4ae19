"""What reaches training is scrubbed: looked at in the agent's own folder, with the agent's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from client.agent_home import AgentHome, AgentSettings
from simulation.mechanism.layer import Check

# Nobody's: from ranges that are kept free for examples (RFC 2606, NANP 555-01xx) or with a valid check digit by chance.
PLANTED: Final = ("zebedee.quillfeather@example.org", "GB29 NWBK 6016 1331 9268 19")


def scrubbed_text(folder: Path) -> Check:
    """Return whether `client.resident.own_history` takes planted identifiers out; unknown where no scrubber is there.

    Two forms that every version has found; how many others it finds is measured by `confide scrub --evaluate`.
    """
    name = "scrub before training"
    try:
        from client.resident import own_history
    except ImportError as missing:
        return Check(name, None, f"needs {missing.name}: pip install 'confide[client]'")
    home = AgentHome(folder)
    home.save(AgentSettings("ann", "no-model"))
    record = {"user": "ann", "i": 0, "split": "history", "text": f"Write to {PLANTED[0]} or wire to {PLANTED[1]}."}
    (folder / "people.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    text = " ".join(document.text for document in own_history(home))
    left = [planted for planted in PLANTED if planted in text]
    return Check(name, bool(text) and not left, f"{len(left)} of {len(PLANTED)} planted identifiers reach training")
