"""From the accountant's statement to `report["privacy"]`: one place that knows both shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from simulation.report_schema import Adversary, Privacy, RecordPrivacy
from simulation.wording import not_protected


def privacy_section(
    statement: Mapping[str, Any],
    deltas: Iterable[float],
    *,
    clip_fraction: float | None,
    snr: float | None,
    noise_ratio: float | None,
    record: RecordPrivacy | None = None,
) -> Privacy:
    """Return the report's privacy section for a `privacy.accounting.statement` made at the same `deltas`.

    Adversaries stand in the order released, server, sybils. The server's row is that of the released sums where all
    were masked, and that of the Sybils where none was. Where the statement claims nothing, or a figure is infinite, the
    section says None at every delta: an absent bound is shown as such, never as a number.
    """
    keys = [repr(float(delta)) for delta in deltas]

    def at_deltas(name: str) -> dict[str, float | None]:
        return {key: _finite((statement[name] or {}).get(key)) for key in keys}

    count = int(statement["participations"])
    rho, server, alone = (_finite(statement[name]) for name in ("rho", "server_rho", "sybil_floor_rho"))
    transport = ", ".join(statement["transport"])
    section: Privacy = {
        "unit": statement["unit"],
        "adjacency": statement["adjacency"],
        "mechanism": statement["mechanism"],
        "private": statement["private"],
        "rho": rho,
        "rho_exact": statement["rho_exact"],
        "epsilon": at_deltas("epsilon"),
        "epsilon_gdp": at_deltas("epsilon_gdp"),
        "epsilon_pld": at_deltas("epsilon_pld"),
        "participations": count,
        "cohort_floor": statement["cohort_floor"],
        "honest_floor": statement["honest_floor"],
        "noise_multiplier": min(statement["noise_multiplier"], default=None),
        "amplification": statement["amplification"],
        "transport": transport,
        "clip_fraction": clip_fraction,
        "snr": snr,
        "noise_ratio": noise_ratio,
        "adversaries": [
            _adversary("released", count, rho, at_deltas("epsilon")),
            _adversary("server", count, server, at_deltas("epsilon_server")),
            _adversary("sybils", count, alone, at_deltas("sybil_floor_epsilon")),
        ],
        "not_protected": list(not_protected(transport)),
    }
    if record is not None:
        section["record"] = record
    return section


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _adversary(who: str, participations: int, rho: float | None, epsilon: dict[str, float | None]) -> Adversary:
    """The noise multiplier is that of `participations` equal answers which cost `rho` together: rho = P / (2 z^2)."""
    noise = math.sqrt(participations / (2 * rho)) if rho else None
    return {"who": who, "noise_multiplier": noise, "rho": rho, "epsilon": epsilon}
