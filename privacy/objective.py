"""The closed list of what a device may be asked to compute, and what a query of each kind looks like.

An *objective* names the computation on the person's own text, a *purpose* what the sum is for; a policy grants both. A
name that is not here does not exist: no query can carry it and no policy can grant it.

    objective              slot_dim                             row of the start that each slot goes with
    next-token             numbers of the adapter d             cores [d], or cores | centroid where `choice` is nearest
    reply-only             d                                    the same
    preference-pairs       d                                    the same
    centroid-sums          width of an embedding e              centroid [e]
    word-counts            words of the public vocabulary       cores [d]
    evaluation-metrics     `METRICS`, in order                  row 0: global cores [d]; one row more for each persona
    retriever-distillation numbers of the retriever's core      core | frozen directions
    retriever-contrast     numbers of the retriever's core      core | frozen directions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PURPOSES: Final = (
    "cluster.persona",
    "describe.persona",
    "measure.adapters",
    "train.global",
    "train.persona",
    "train.retriever",
)
NEXT_TOKEN: Final = "next-token"  # noqa: S105 - the name of an objective
REPLY_ONLY: Final = "reply-only"
PREFERENCE: Final = "preference-pairs"
CENTROIDS: Final = "centroid-sums"
WORDS: Final = "word-counts"
METRICS_OBJECTIVE: Final = "evaluation-metrics"
RETRIEVER: Final = "retriever-distillation"
RETRIEVER_CONTRAST: Final = "retriever-contrast"

# Which purposes an objective may serve.
OBJECTIVES: Final[Mapping[str, tuple[str, ...]]] = {
    CENTROIDS: ("cluster.persona",),
    METRICS_OBJECTIVE: ("measure.adapters",),
    NEXT_TOKEN: ("train.global", "train.persona"),
    PREFERENCE: ("train.global", "train.persona"),
    REPLY_ONLY: ("train.global", "train.persona"),
    RETRIEVER: ("train.retriever",),
    RETRIEVER_CONTRAST: ("train.retriever",),
    WORDS: ("describe.persona",),
}
TRAINS_A_CORE: Final = (NEXT_TOKEN, REPLY_ONLY, PREFERENCE)
# What these compute depends on an encoder or a word list that everybody must have the same (`Policy.public_sha256`).
# What a learner under record-level noise covers: training of one core on single documents.
RECORD_LEVEL: Final = (NEXT_TOKEN, REPLY_ONLY)
TRAINS_A_RETRIEVER: Final = (RETRIEVER, RETRIEVER_CONTRAST)
NEEDS_PUBLIC_TABLES: Final = (CENTROIDS, WORDS, *TRAINS_A_RETRIEVER)

# How a device chooses the slot that it answers in: by its loss under each row's cores, by the distance of its mean
# embedding to each row's centroid, by what its owner declared (nothing declared: it answers zeros, in no slot).
LEAST_LOSS: Final = "least-loss"
NEAREST: Final = "nearest"
DECLARED: Final = "declared"
CHOICES: Final = (DECLARED, LEAST_LOSS, NEAREST)

# One device's figures in an evaluation, each in [0, 1]; one of the gain_* figures is 1, the others 0.
GAIN_EDGES: Final = (-0.05, -0.01, 0.0, 0.01, 0.03, 0.1)  # share of the base's nats saved by the chosen adapter
METRICS: Final = (
    "present",
    "loss_base",
    "loss_global",
    "loss_chosen",
    "accuracy",
    *(f"gain_{place}" for place in range(len(GAIN_EDGES) + 1)),
    "without_persona",
    "compared",
    "preferred",
)
LOSS_UNIT: Final = 8.0  # nats per token that a loss figure of 1 stands for; a larger loss counts as 8
METRICS_NORM: Final = 3  # no device's figures are longer: 1 + 3 losses + accuracy + one gain + three = 9 = 3^2


def rows_of(objective: str, slots: int) -> int:
    """Return how many rows the start of such a query has: one for each slot; an evaluation has the global one too."""
    return slots + 1 if objective == METRICS_OBJECTIVE and slots > 1 else slots
