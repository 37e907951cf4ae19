"""What this device gave to federations and what it may still give, by its own signed ledger and policy.

Epsilon is the zCDP conversion that is enforced, at delta 1e-6, for one person: all that the device ever answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from client.agent_home import AgentHome
from client.dial import DELTA, allowed
from privacy.accounting import epsilon_zcdp, rho_of
from privacy.ledger import now_ms, read_ledger
from privacy.policy import Policy

FOLDER = "ledger"


@dataclass(frozen=True)
class Given:
    """What one ledger says: the federation, how many answers, zCDP ever and within 365 days, answers without noise."""

    federation: str
    answers: int
    rho: Fraction
    year_rho: Fraction
    unprotected: int

    @property
    def epsilon(self) -> float:
        """Return the epsilon of everything."""
        return epsilon_of(self.rho)

    @property
    def year_epsilon(self) -> float:
        """Return the epsilon of the last 365 days."""
        return epsilon_of(self.year_rho)


def epsilon_of(rho: Fraction) -> float:
    """Return epsilon at delta 1e-6; 0 where nothing was spent."""
    return epsilon_zcdp(rho, DELTA) if rho else 0.0


def given(folder: Path, clock: Callable[[], int] = now_ms) -> list[Given]:
    """Return what each ledger in a device's folder says, read without its lock. Raises LedgerError for a broken one."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        view = read_ledger(path)
        spent = view.account.spent(max(clock(), view.entries[-1].ts_ms))
        federation = str(view.genesis.get("federation", ""))
        unprotected = view.account.unprotected()
        found.append(Given(federation, spent.participations, spent.rho, spent.year_rho, unprotected))
    return found


def policy_of(folder: Path) -> Policy | None:
    """Return the policy of the federation that was joined in a device's folder, None if none was."""
    home = AgentHome(folder)
    return home.policy if home.joined else None


def year_cap(policy: Policy | None, stop: str) -> float:
    """Return the largest epsilon that a year at a stop of the dial may cost under a policy.

    The least of the yearly allowance, the lifetime budget, and as many answers as the policy lets a device give, each
    at the least noise. One allowance is for all purposes together: every stop that lets anything be asked may spend it
    all. 0 where nothing can be asked.
    """
    if policy is None or not set(policy.purposes) & allowed(stop):
        return 0.0
    caps = [policy.budget_rho]
    if policy.yearly_rho is not None:
        caps.append(policy.yearly_rho)
    if policy.min_noise_multiplier > 0:
        caps.append(policy.max_participations * rho_of(policy.min_noise_multiplier))
    return epsilon_of(min(caps))


def releases_hold(answers: list[Given]) -> str:
    """Return in words what past releases still hold of a person after forgetting, and within which bound."""
    if not any(each.answers for each in answers):
        return "This device has answered no federation: no release holds anything of it."
    lines = []
    for each in answers:
        if each.unprotected:
            lines.append(
                f"{each.unprotected} of {each.answers} answers to {each.federation} carried no fresh noise: what its"
                " releases hold has no bound."
            )
        elif each.answers:
            lines.append(
                f"{each.answers} answers went to {each.federation}. Its releases keep what they learned from them, and"
                " cannot be made to forget: with all of this device's text or none of it, what they show differs by at"
                f" most epsilon {each.epsilon:.2f} at delta {DELTA:g}, the forgotten text included."
            )
    return " ".join(lines)
