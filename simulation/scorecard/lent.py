"""What a person's host is given to make a card: the settings and what is lent from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.documents import Document
from privacy.errors import ConfigError
from simulation.scorecard.tasks import DEFAULT, task_named

Vector = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class CardSettings:
    """What the scorecard costs: own tokens learned from, test documents (the newest) and tokens of each that are read.

    `tuning_documents` at most decide what is chosen, `passage_tokens` are allowed for each memory that is shown,
    `written_tokens` for a text that the model writes; the arm `preference` learns from `preference_pairs`.
    `planted_people` are invented for criteria, which also ask `bias_questions` facts under invented attributes (0:
    none); `cold_start` scores also with few of a person's texts; `baseline_people` train the baselines for
    `baseline_rounds`.

    `retriever`, `prompt`, `adapter` and `metric` name a researcher's own classes, see `simulation.extension`; the first
    three are arms of their own then. `task` is one of `simulation.scorecard.tasks`.
    """

    own_tokens: int = 1280
    test_documents: int = 3
    document_tokens: int = 192
    tuning_documents: int = 6
    passage_tokens: int = 96
    written_tokens: int = 32
    preference_pairs: int = 8
    planted_people: int = 20
    bias_questions: int = 12
    cold_start: bool = False
    baseline_people: int = 16
    baseline_rounds: int = 2
    retriever: str = ""
    prompt: str = ""
    adapter: str = ""
    metric: str = ""
    encoder: str = "minilm"
    task: str = DEFAULT

    def __post_init__(self) -> None:
        task_named(self.task)
        for name, value in vars(self).items():
            least = int(name not in ("tuning_documents", "bias_questions"))
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ConfigError(f"the scorecard's {name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class Learned:
    """What a person's host trained for the card: the own adapter, its tokens, an extension's, that of pairs.

    `cpu_s` is what the own adapter alone took.
    """

    own: Tensors
    tokens: int
    extended: Tensors | None = None
    preferred: Tensors | None = None
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Loan:
    """What a person is lent for the arms: flat cores by name, their own adapter, and the controls' from another.

    `probes` are documents of nobody's that are scored beside the person's own with the arms `probed`; with the arms
    `write_with` the test texts are also written. `dated`: a document's order is its day. `extended`: the own adapter of
    a given class; `preferred`: the own adapter after preference optimisation. `labels` are what a classification
    chooses from, `tuned` the rows of tuning documents that another seed has scored already.
    """

    cores: Mapping[str, Vector]
    own: Tensors
    wrong_own: Tensors | None
    wrong_history: tuple[Document, ...]
    probes: tuple[Document, ...] = ()
    write_with: tuple[str, ...] = ()
    dated: bool = False
    extended: Tensors | None = None
    preferred: Tensors | None = None
    labels: tuple[str, ...] = ()
    probed: tuple[str, ...] = ()
    tuned: Mapping[str, list[tuple[str, float, int]]] = field(default_factory=dict)
