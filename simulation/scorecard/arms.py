"""The arms of the scorecard: which core, which own adapter, whose memories, how found, how many, how shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.prompt import CONTEXTUAL, PERSONA, PLAIN, PROFILE, REFINED
from client.retrieve import BM25, DENSE, METHODS, TFIDF
from privacy.errors import ConfigError

BASE, GLOBAL, PERSONA_CORE = "base", "global", "persona"
NOBODY, OWN, WRONG, EXTENDED, PREFERRED = "", "own", "wrong", "extended", "preferred"
PASSAGES = (1, 4, 8)
CHOSEN = "chosen"


@dataclass(frozen=True)
class Arm:
    """One way to serve a person.

    `core` is the shared adapter below it, `own` whose own adapter is on, `memories` whose history is searched (by
    `methods`, for `passages`), `prompt` how it is shown. `steer` is how much they weigh, 0 as they are
    (`client.steering`); with `trusted` as far as they foretell what is read (`client.trust`). `means` says it in words.
    `control` arms should help nobody.
    """

    name: str
    means: str
    core: str = GLOBAL
    own: str = NOBODY
    memories: str = NOBODY
    methods: tuple[str, ...] = ()
    passages: int = 0
    prompt: str = PLAIN
    control: bool = False
    steer: float = 0.0
    trusted: bool = False


STEERED = -0.5
_FAMILIES = (
    ("bm25", "found by their words (BM25)", (BM25,)),
    ("tfidf", "found by their words (TF-IDF)", (TFIDF,)),
    ("dense", "found by their meaning", (DENSE,)),
    ("hybrid", "found by words, meaning and date", METHODS),
)


def _retrieval() -> tuple[Arm, ...]:
    return tuple(
        Arm(f"{name}@{k}", f"own texts before it, {how}, {k} at most", GLOBAL, NOBODY, OWN, methods, k, CONTEXTUAL)
        for name, how, methods in _FAMILIES
        for k in PASSAGES
    )


ARMS: tuple[Arm, ...] = (
    Arm("base", "the base model as it came", BASE),
    Arm("global", "with the shared adapter that the federation releases"),
    Arm("persona", "global and the shared adapter of the person’s persona", PERSONA_CORE),
    *_retrieval(),
    Arm(
        "steered",
        "texts as hybrid@4, weighing half in every word (context steering)",
        GLOBAL,
        NOBODY,
        OWN,
        METHODS,
        4,
        CONTEXTUAL,
        steer=STEERED,
    ),
    Arm(
        "trusted",
        "texts as hybrid@4, trusted as far as they foretold the words before",
        GLOBAL,
        NOBODY,
        OWN,
        METHODS,
        4,
        CONTEXTUAL,
        trusted=True,
    ),
    Arm("persona_prompt", "a line on how the person writes, and texts", GLOBAL, NOBODY, OWN, METHODS, 4, PERSONA),
    Arm("profile", "a summary of what the person writes about, and texts", GLOBAL, NOBODY, OWN, METHODS, 4, PROFILE),
    Arm("refined", "texts, introduced as served the person best", GLOBAL, NOBODY, OWN, METHODS, 4, REFINED),
    Arm("own", "an adapter trained on the person’s own text", own=OWN),
    Arm("preference", "own, taught further to prefer own words to what the model writes (DPO)", own=PREFERRED),
    Arm(
        "all",
        "own adapter and texts, of the persona’s adapter where there is one",
        PERSONA_CORE,
        OWN,
        OWN,
        METHODS,
        4,
        CONTEXTUAL,
    ),
    Arm(
        "all_trusted",
        "all, its texts trusted as far as they foretold the words before",
        PERSONA_CORE,
        OWN,
        OWN,
        METHODS,
        4,
        CONTEXTUAL,
        trusted=True,
    ),
    Arm("extended_retriever", "texts, found by the retriever given", GLOBAL, NOBODY, OWN, (EXTENDED,), 4, CONTEXTUAL),
    Arm("extended_prompt", "texts, shown by the prompt given", GLOBAL, NOBODY, OWN, METHODS, 4, EXTENDED),
    Arm("extended_adapter", "the own adapter that the class given trains", own=EXTENDED),
    Arm("wrong_person", "somebody else’s own adapter", own=WRONG, control=True),
    Arm("wrong_memories", "somebody else’s texts", GLOBAL, NOBODY, WRONG, METHODS, 4, CONTEXTUAL, control=True),
    Arm(
        "own_changed_global",
        "the own adapter over another shared adapter than it was trained on",
        BASE,
        OWN,
        control=True,
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
PROBED = ("base", "global", "hybrid@4", "steered", "trusted", "own", "all", "all_trusted")  # by neutral questions
PROBED_PLANTED = (*PROBED, "wrong_person", "wrong_memories")  # by questions that only a history decides
WRITTEN = ("base", "global", "hybrid@4", "own", "all", "wrong_person")  # texts are written under these
LADDER = (
    "global",
    "persona",
    "bm25@4",
    "dense@4",
    "hybrid@4",
    "trusted",
    "persona_prompt",
    "profile",
    "own",
    "all",
    "all_trusted",
)
CHOSEN_MEANS = "what served the person best on a slice of their history that is neither trained on nor reported"
BASELINES = {
    "central": "LoRA trained on the pooled text of others: no federation could have it",
    "local_only": "own LoRA over the bare base: no federation",
    "full": "the person’s own copy of all weights of the top two layers, over global",
    "fedit": "LoRA of others, A and B averaged apart, in the clear",
    "ffa": "LoRA of others with A frozen, in the clear",
    "flora": "LoRA of others, stacked into the weights, in the clear",
    "fedex": "LoRA of others averaged, the residual in the weights, in the clear",
    "fedsa": "A of others averaged in the clear, B of one’s own",
    "feddpa": "fedit and an own LoRA, weighed by likeness",
    "oppu": "an own LoRA over fedit’s, as over a task adapter",
}
KNOWN = (*BY_NAME, CHOSEN, *BASELINES)
EXTENSIONS = ("extended_retriever", "extended_prompt", "extended_adapter")
DEFAULT = tuple(
    name for name in KNOWN if not name.startswith("tfidf") and name not in EXTENSIONS and name not in BASELINES
)


def arms_named(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names in the order of the table; raises ConfigError for one that there is not."""
    if unknown := sorted(set(names) - set(KNOWN)):
        raise ConfigError(f"unknown arm {unknown[0]}; known: {', '.join(KNOWN)}")
    return tuple(name for name in KNOWN if name in names)


def meaning(name: str) -> str:
    """Return an arm in words."""
    return BASELINES.get(name) or (CHOSEN_MEANS if name == CHOSEN else BY_NAME[name].means)
