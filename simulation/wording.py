"""The report's words: what an arm, an adversary and a figure mean, the same on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from privacy.plan import USABLE_SHARE
from privacy.schedule import gain_kept
from simulation.report_schema import Report, Round

ARM_LABELS: Mapping[str, str] = {
    "base": "base",
    "global": "global, released",
    "global_noiseless": "global without noise",
    "persona": "persona",
    "mixture": "mixture of personas",
    "own": "own adapter",
    "own_record_dp": "own, record-level DP",
    "retrieval": "retrieval",
    "all": "all together",
    "wrong_person": "wrong person",
}
ARM_SHORT: Mapping[str, str] = {
    "global_noiseless": "no noise",
    "own_record_dp": "own dp",
    "retrieval": "retr.",
    "wrong_person": "wrong",
    "mixture": "mixed",
}
ARM_MEANINGS: Mapping[str, str] = {
    "base": "the base model as it came",
    "global": "with the shared adapter that the federation releases",
    "global_noiseless": "the same training without noise: not private, never released, the cost of noise",
    "persona": "global and the shared adapter of the person’s persona",
    "mixture": "global and as much of each persona as half of the person’s text suggests and the other half confirms",
    "own": "global and an adapter trained on the person’s own text, which stays on the device",
    "own_record_dp": "the same, trained with noise that protects each single document",
    "retrieval": "global, reading passages of the person’s own text before it answers",
    "all": "global, own adapter and retrieval",
    "wrong_person": "global and somebody else’s own adapter: the control, should help nobody",
}
PERSON_ARMS = ("base", "global", "own", "own_record_dp", "retrieval", "all", "wrong_person")
MASKED = "masked"
ADVERSARIES: Mapping[str, tuple[str, str]] = {
    "released": ("whoever holds the released adapter", "the sum over all devices of a round, with everybody’s noise"),
    "server": ("the server itself", "each device’s own answer, with that device’s own share of the noise only"),
    "sybils": ("a server that runs all other devices", "the sum, with all noise but one device’s known to it"),
}
MASKED_SERVER = (
    "the server itself",
    "the same sum and nothing below it: answers come under masks. While at most a tenth of the invited work with it, "
    "and keys come from a directory that it does not write",
)
CLEAR_SERVER_LIMIT = (
    "One device’s answer from the server itself, beyond the row “the server itself”: sums of this run were added in "
    "the clear, so the server sees each answer with that device’s own share of the noise only."
)
MASKED_SERVER_LIMIT = (
    "One device’s answer from a server that invents devices, or that more than a tenth of the invited work with: the "
    "last row is all that holds then. In a simulation the one machine holds every key, mask and text."
)
NOT_PROTECTED = (
    "That a device took part, when, and from which address. The server and the network see it.",
    "What many people share. The unit is one person; a fact that a group writes is learnt, as it is meant to be.",
    "The own adapter and the index on the person’s own device. Whoever can open the device can read them.",
    "The right result. A device may send any vector, a server may publish anything: poisoning is not prevented.",
    "Names and numbers that the scrubber missed. Scrubbing is never counted in epsilon.",
    "This page. Its figures, person by person above all, are computed in the clear, which only a simulation can do; "
    "epsilon covers the released adapters, not this page.",
)


def adversaries(transport: str) -> Mapping[str, tuple[str, str]]:
    """Return who the adversaries are and what each sees, by the transport of all sums of a run."""
    return {**ADVERSARIES, "server": MASKED_SERVER} if transport == MASKED else ADVERSARIES


def not_protected(transport: str) -> tuple[str, ...]:
    """Return what a run does not protect, by the transport of all its sums."""
    limit = MASKED_SERVER_LIMIT if transport == MASKED else CLEAR_SERVER_LIMIT
    return (NOT_PROTECTED[0], limit, *NOT_PROTECTED[1:])


def arm_label(name: str, *, not_private: bool = False) -> str:
    """Return the arm's name for people; in a run that may claim no privacy, global is not called released."""
    if name == "global" and not_private:
        return "global, NOT PRIVATE"
    return ARM_LABELS.get(name, name.replace("_", " "))


def arms_in_order(names: Iterable[str]) -> list[str]:
    """Return the arms as they are told: base first, the control last, unknown ones after, by name."""
    known = list(ARM_LABELS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def best_arm(bits: Mapping[str, float]) -> str | None:
    """Return the arm with the fewest bits per token; the wrong person's adapter is a control and cannot win."""
    candidates = {name: value for name, value in bits.items() if name != "wrong_person"}
    return min(candidates, key=lambda name: (candidates[name], name)) if candidates else None


GAIN_LEFT = ((0.95, "nearly all"), (USABLE_SHARE, "most"), (0.5, "more than half"), (0.0, "less than half"))


def noise_meaning(rounds: Sequence[Round]) -> str:
    """Return in words how much of the gain the noise of these rounds leaves, by the forecast of `confide plan`.

    The global rounds with a signal count, and of them the noise of the first.
    """
    told = [row for row in rounds if row["purpose"] == "train.global" and row["noise_ratio"] and row["alpha"]]
    if not told:
        return "not measured, or no noise was added"
    kept = gain_kept(told[0]["noise_ratio"] or 0, len(told))
    left = next(words for least, words in GAIN_LEFT if kept >= least)
    said = f"noise points everywhere while steps add up; {left} of the gain without it is to be expected"
    return said if kept >= USABLE_SHARE else f"{said}: more people, fewer numbers or more epsilon would leave more"


def epsilon_meaning(epsilon: float | None) -> str:
    """Return a word for an epsilon, after the tiers of Ponomareva et al. 2023 (up to 1, up to 10, above)."""
    if epsilon is None:
        return "no bound"
    if epsilon <= 1.0:
        return "strong"
    if epsilon <= 10.0:
        return "reasonable"
    return "weak" if epsilon <= 20.0 else "hardly any"


def worse_lines(report: Report) -> list[tuple[str, str, int, int]]:
    """Return (arm, compared with, people worse off, people compared) for each arm that somebody was compared in."""
    skipped = ("base", "wrong_person")
    return [
        (name, arm["compared_with"], arm["users_worse"], arm["users_compared"])
        for name, arm in ((name, report["arms"][name]) for name in arms_in_order(report["arms"]))
        if arm["compared_with"] is not None and name not in skipped
    ]
