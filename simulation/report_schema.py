"""The shape of `report.json`, key by key. Whoever writes a report fills these; whoever reads one may rely on them.

Every figure on the page `report.html` is a leaf of this file (a test holds that), so a script never needs the page.
Floats are finite: what has no bound or was not measured is `None`, never `inf` or `nan`. Units are in the names;
`bits` are bits per token of the model's own tokenizer, so two reports compare only where the model is the same.
Epsilons are keyed by their delta, written as in `"1e-06"`.
"""

from __future__ import annotations

from typing import NotRequired, TypeAlias, TypedDict

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


class Interval(TypedDict):
    """A share (0.061 = 6.1 %) with its 95 % interval; `low` and `high` are None for fewer than two people."""

    value: float
    low: float | None
    high: float | None


class ArmGain(TypedDict):
    """An `Interval` as scripts read it beside the other keys of an arm."""

    relative_gain: float | None
    low: float | None
    high: float | None


class Arm(ArmGain):
    """One way to write the same text: a model with what it was given.

    `relative_gain` is the share of base's bits saved on the tokens that both arms scored (`base_bits_per_token` is
    base's own figure on those tokens, since an arm may be scored on fewer people than base).
    `users_improved` is the share, `users_worse` the number, of the `users_compared` people who are strictly better or
    worse than with `compared_with`: global, and base for global itself.
    """

    bits_per_token: float
    base_bits_per_token: float | None
    tokens: int
    users: int
    compared_with: str | None
    users_compared: int
    users_improved: float | None
    users_worse: int


def interval_of(arm: Arm) -> Interval | None:
    """Return the gain of an arm as an interval."""
    gain = arm["relative_gain"]
    return None if gain is None else {"value": gain, "low": arm["low"], "high": arm["high"]}


class Comparison(TypedDict):
    """`arm` against `against` on the tokens that both scored: share of bits saved, positive = `arm` better."""

    arm: str
    against: str
    users: int
    users_improved: float
    users_worse: int
    tokens: int
    relative_gain: Interval


class PersonRow(TypedDict):
    """One person (a pseudonym): own words to learn from, and bits per token in each arm on the same `test_tokens`."""

    user: str
    tokens: int
    test_tokens: int
    bits: dict[str, float]


class RoundBits(TypedDict):
    """Bits per token of the global model after a round: as released, and what the same sum without noise would give."""

    noiseless: float | None
    released: float | None


class Round(TypedDict):
    """One query. `noise_ratio` is |noise| / |signal| of the released mean, `snr` its inverse, `alpha` the norm of the
    mean of the clipped unit updates (1 = all devices pull the same way); all three are of training rounds alone. `rho`
    is what one answer cost."""

    round: int
    purpose: str
    invited: int
    survivors: int
    clip_fraction: float
    snr: float | None
    noise_ratio: float | None
    alpha: float | None
    seconds: float
    bits_per_token: NotRequired[RoundBits]
    objective: NotRequired[str]
    noise_multiplier: NotRequired[float]
    rho: NotRequired[float | None]


class Adversary(TypedDict):
    """What one adversary can learn at most about one person. `who` is "released", "server" or "sybils"."""

    who: str
    noise_multiplier: float | None
    rho: float | None
    epsilon: dict[str, float | None]


class RecordPrivacy(TypedDict):
    """The separate, record-level statement: never added to the user-level one.

    For `own_record_dp`; with `shared` for all shared training of organisations, and then it is the headline.
    """

    unit: str
    people: int
    epsilon: float | None
    delta: float
    noise_multiplier: float
    clip_norm: float
    shared: NotRequired[bool]


class Privacy(TypedDict):
    """The user-level claim: `privacy.accounting.statement` and what was measured beside it.

    `epsilon` is the enforced zCDP conversion at three deltas; gdp and pld are other readings of the same noise.
    `noise_multiplier` is the smallest of the campaign, `cohort_floor` the fewest answers a sum was released from.
    """

    unit: str
    adjacency: str
    mechanism: str
    private: bool
    rho: float | None
    rho_exact: str | None
    epsilon: dict[str, float | None]
    epsilon_gdp: dict[str, float | None]
    epsilon_pld: dict[str, float | None]
    participations: int
    cohort_floor: int | None
    honest_floor: int | None
    noise_multiplier: float | None
    amplification: str
    transport: str
    clip_fraction: float | None
    snr: float | None
    noise_ratio: float | None
    adversaries: list[Adversary]
    not_protected: list[str]
    record: NotRequired[RecordPrivacy]


class Persona(TypedDict):
    """A shared persona: its noisy count of members, and whether it was large enough to publish."""

    name: str
    noisy_count: float
    published: bool
    description: NotRequired[str]


class Personas(TypedDict):
    """`assignment` (person -> persona number) exists in simulation only: in a campaign it never leaves the device.

    `count_deviation` is the deviation of the noise on each count; published is what is at least four of them and at
    least `floor`. `collapsed`: one persona holds nearly everybody. `events`: merged and split personas, in order.
    """

    k: int
    rows: list[Persona]
    count_deviation: NotRequired[float]
    floor: NotRequired[int]
    collapsed: NotRequired[bool]
    events: NotRequired[list[str]]
    without_persona: NotRequired[float | None]
    assignment: NotRequired[dict[str, int]]


class Measured(TypedDict):
    """What the federation measured of itself, as noisy means over the members of a persona, or over everybody.

    `bits_chosen` is under the persona's adapter where there is one; `gains` the share of people by the share of base's
    bits that it saves them; `without_persona` the share whom no persona serves better than the global adapter;
    `compared` the share who made blind choices, `preferred` the mean share of these that the shared adapters won.
    """

    name: str
    noisy_count: float
    bits_base: float
    bits_global: float
    bits_chosen: float
    accuracy: float
    gains: dict[str, float]
    without_persona: float | None
    compared: float
    preferred: float


class Retriever(TypedDict):
    """How the retriever's core ranks people's own documents for `questions` of their test text, and the frozen encoder.

    `recall`: the document that helps the model most is among the first three; `ndcg` of the first three by the model's
    gain; `gain` of the first in nats. `rounds` and `objective` are what it was taught by.
    """

    rounds: int
    objective: str
    numbers: int
    questions: int
    recall_frozen: float
    recall_taught: float
    ndcg_frozen: float
    ndcg_taught: float
    gain_frozen: float
    gain_taught: float


class Cost(TypedDict):
    """`seconds` in all and by phase; `tokens_per_second` of training; bytes per device over the whole campaign."""

    seconds: float
    phases: dict[str, float]
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    bytes_up_per_device: int
    bytes_down_per_device: int


class Scrub(TypedDict):
    """Placeholders put in by entity, and the cost of scrubbing: bits per token saved by `scrubbed` against `raw`."""

    entities: dict[str, int]
    documents: int
    raw_bits_per_token: NotRequired[float | None]
    scrubbed_bits_per_token: NotRequired[float | None]


class BasisRow(TypedDict):
    """One way to make the frozen basis, and what the same training gains on it."""

    name: str
    bits_per_token: float
    relative_gain: Interval | None


class Basis(TypedDict):
    """The basis in use, and the comparison with others where it was made."""

    name: str
    numbers: int
    comparison: NotRequired[list[BasisRow]]


class What(TypedDict):
    """What was run. `people` took part in training or evaluation; `people_scored` have test tokens."""

    name: str
    created: str
    data: str
    people: int
    people_scored: int
    model: str
    engine: str
    rounds: int
    shared_numbers: int
    training_tokens: int
    test_tokens: int
    seed: int


class Report(TypedDict):
    """All of `report.json`. `not_private` lists the reasons why no privacy may be claimed; empty = none."""

    what: What
    lines: list[str]
    not_private: list[str]
    arms: dict[str, Arm]
    comparisons: list[Comparison]
    people: list[PersonRow]
    rounds: list[Round]
    privacy: Privacy
    personas: NotRequired[Personas]
    measured: NotRequired[list[Measured]]
    retriever: NotRequired[Retriever]
    scrub: NotRequired[Scrub]
    basis: NotRequired[Basis]
    cost: Cost
    config: dict[str, Json]
    versions: dict[str, str]
    hashes: dict[str, str]
