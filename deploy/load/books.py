"""What a load's server wrote, read once more: its sums and its ledger. Run in the end-to-end test (tests/deploy)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from privacy.canonical import parse_canonical
from privacy.ledger import read_ledger
from privacy.query import Query
from server.folder import OperatorFolder


def flushed(home: Path) -> Iterator[tuple[Query, NDArray[np.int64], Sequence[str]]]:
    """Yield the query of each sum of all campaigns in `home`, the sum, int64 [dim], and whose answers are in it."""
    for path in [*home.glob("archive/*/rounds/*.sum"), *home.glob("checkpoints/rounds/*.sum")]:
        facts: Any = parse_canonical(path.read_bytes())
        total = load_tensors(bytes.fromhex(facts["sum"]))["total"]
        yield Query.from_bytes(path.with_suffix(".query").read_bytes()), total, sorted(facts["heads"])


def books_agree(operator: OperatorFolder, ledgers: Path) -> bool:
    """Return whether the federation's ledger says of each device at least what its own charged, within its cap."""
    path = operator.home / "ledger" / "federation.jsonl"
    if not path.exists():
        return True
    federation, cap = read_ledger(path).account, operator.policy.budget_rho
    found = [(file.stem, read_ledger(file).account.spent_rho()) for file in sorted(ledgers.glob("*.jsonl"))]
    return all(spent <= min(cap, federation.spent_rho(name)) for name, spent in found)
