"""Which adapters serve one person, and how much of each: weights that are made on the device and stay there.

    core = global + sum_k w_k persona_k,   w_k >= 0, sum_k w_k <= 1;     own adapter times w_own

Because delta W = B R A is linear in R, a weighted sum of published cores is an adapter like any other: no second pass
through the model and no larger release. A person without text starts from the published counts or the nearest
centroids; one with text finds weights on half of it and keeps them only if the other half agrees; one who knows what
they want sets them by hand (personalised soups: Jang et al. 2023, arXiv:2310.11564, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privacy.adapter import Cores, Matrix, merge_cores
from privacy.errors import ConfigError

Vector = NDArray[np.float64]
SHARPNESS = (0.0, 0.03, 0.1, 0.3)  # mixtures tried: shares go with exp(sharpness * nats saved)
NEAR = 0.1  # two centroids whose distances differ by so much have shares that differ by a factor of e
OWN_SHARES = (0.5, 1.0)
OF_ONE_KIND = 0.5  # the least share of a persona whose description goes into a prompt


@dataclass(frozen=True)
class Composition:
    """How much of each published persona, by name, and of the own adapter; nothing in it means the global core alone.

    It tells what kind of person somebody is: it stays on the device and enters no answer.
    """

    personas: Mapping[str, float] = field(default_factory=dict)
    own: float = 0.0

    def __post_init__(self) -> None:
        shares = [*self.personas.values(), self.own]
        if not all(np.isfinite(share) and 0 <= share <= 1 for share in shares):
            raise ConfigError("a share of an adapter must be in [0, 1]")
        if sum(self.personas.values()) > 1 + 1e-9:
            raise ConfigError("shares of personas may sum to 1 at most")

    def cores(self, adapters: Mapping[str, Cores]) -> dict[str, Matrix]:
        """Return the composed cores; raises ConfigError for a persona that is not published."""
        if unknown := sorted(set(self.personas) - set(adapters)):
            raise ConfigError(f"no published persona is called {unknown[0][:40]!r}")
        terms = [(share, adapters[name]) for name, share in self.personas.items()]
        return merge_cores([(1.0, adapters["global"]), *terms])


GLOBAL_ALONE = Composition()


def by_counts(counts: Mapping[str, float]) -> Composition:
    """Return where somebody starts of whom nothing is known: the published personas in proportion to their members."""
    total = sum(max(count, 0.0) for count in counts.values())
    return Composition({name: max(count, 0.0) / total for name, count in counts.items()}) if total else GLOBAL_ALONE


def by_portrait(portrait: Vector, centroids: Mapping[str, Vector]) -> Composition:
    """Return where somebody starts of whom a few lines are known: shares go with exp(-distance / NEAR)."""
    if not centroids or not portrait.any():
        return GLOBAL_ALONE
    names = sorted(centroids)
    distances = np.array([float(np.linalg.norm(portrait - centroids[name])) for name in names])
    return Composition(dict(zip(names, _shares(-distances / NEAR).tolist(), strict=True)))


def soup(wishes: Mapping[str, float]) -> Composition:
    """Return the composition that somebody wants: any weights of 0 or more, divided by their sum.

    Merging after the fact: each persona was trained on its own, and nobody else's weights matter. Raises ConfigError
    for a negative weight, or where all are zero.
    """
    if not all(np.isfinite(wish) and wish >= 0 for wish in wishes.values()) or not sum(wishes.values()) > 0:
        raise ConfigError("wishes must be weights of 0 or more, and not all zero")
    total = sum(wishes.values())
    return Composition({name: wish / total for name, wish in wishes.items()})


def fitted(
    personas: Sequence[str],
    fit: Callable[[Composition], float],
    check: Callable[[Composition], float],
    start: Composition = GLOBAL_ALONE,
    own: bool = False,
) -> Composition:
    """Return the composition that serves the text behind `check` best among those that the text behind `fit` suggests.

    `fit` and `check` give the nats of two different parts of one person's text under a composition. Tried are the
    global core alone, `start`, each persona alone, and mixtures whose shares go with what each persona saves on `fit`;
    then, with `own`, the best of these with half and all of the own adapter. The global core alone stays unless
    something else is better on `check`, so noise in a few lines moves nobody.
    """
    alone = {name: Composition({name: 1.0}) for name in personas}
    saved = np.array([fit(GLOBAL_ALONE) - fit(alone[name]) for name in personas])
    tried = [GLOBAL_ALONE, start, *alone.values()]
    for sharpness in SHARPNESS if len(personas) else ():
        tried.append(Composition(dict(zip(personas, _shares(sharpness * saved).tolist(), strict=True))))
    best = min(tried, key=check)  # the first of equals, so the global core where nothing helps
    if own:
        best = min([best, *(Composition(best.personas, share) for share in OWN_SHARES)], key=check)
    return best


def prompt_of(composition: Composition, descriptions: Mapping[str, str]) -> str:
    """Return a line for the prompt of the device's own model: what its owner has in common with others, or "".

    It names the persona with the largest share, if that is at least a half, in the words that the release publishes.
    """
    if not composition.personas:
        return ""
    name, share = max(composition.personas.items(), key=lambda each: (each[1], each[0]))
    told = descriptions.get(name, "")
    return f"Written by somebody who has this in common with others: {told}." if told and share >= OF_ONE_KIND else ""


def _shares(values: Vector) -> Vector:
    raised = np.exp(values - values.max())
    shares: Vector = raised / raised.sum()
    return shares
