"""A second accountant for record-level lines: Opacus, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence

from privacy.audit.verdict import Outcome
from privacy.record import RecordCharge

TITLE = "Record-level lines, by Opacus"
AGREES = 0.02  # of epsilon: two numerical accountants, each with an error of its own
Row = tuple[str, str, str]


def record_lines_by_opacus(charges: Sequence[RecordCharge]) -> Row | None:
    """Return title, outcome and detail of the comparison with Opacus' two accountants, None where there is no line.

    Privacy random variables (Gopi, Lee, Wutschitz 2021) must agree with dp-accounting's loss distributions; Renyi DP,
    which is an upper bound, must not be below them.
    """
    if not charges:
        return None
    try:
        from opacus.accountants import PRVAccountant, RDPAccountant
    except ImportError:
        return TITLE, Outcome.UNCHECKED.value, "Opacus is not installed: pip install 'confide[client]'"
    problems, worst = [], 0.0
    for charge in dict.fromkeys(charges):
        found = []
        for accountant in (PRVAccountant(), RDPAccountant()):
            accountant.history = [(charge.noise_multiplier, charge.sampling_rate, charge.steps)]
            found.append(float(accountant.get_epsilon(charge.delta)))
        ours, (prv, rdp) = charge.epsilon(), found
        worst = max(worst, abs(prv / ours - 1))
        if abs(prv / ours - 1) > AGREES or rdp < ours * (1 - 1e-3):
            problems.append(f"{charge.artefact}: {ours:.4f} here, Opacus says {prv:.4f} (PRV), {rdp:.4f} (Renyi)")
    if problems:
        return TITLE, Outcome.VIOLATED.value, "; ".join(problems[:4])
    detail = f"{len(set(charges))} different lines; privacy random variables within {100 * worst:.2f} %, Renyi above"
    return TITLE, Outcome.HOLDS.value, detail
