"""What each stop of the dial is worth to this person: gains on their own text that is held back from all training.

    alone, metrics   what was chosen on this device (`client.personalize`); answering figures brings nobody a gain
    personas         the released persona that fits best
    all              the released adapter that everybody shares

A gain is the share of the base model's loss that is saved. Every text held back either chooses or checks; the figure
is that of the half that had no say.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from client.dial import ALL, ALONE, METRICS, PERSONAS
from client.importers import OWN as OWN_PURPOSE
from client.library import documents
from client.model import GLOBAL, LanguageModel
from client.personal import scored_part
from client.vault import Vault
from privacy.errors import ConfigError
from privacy.release import Release

SETTING, CHOICE_SETTING = "gains", "choice"
GLOBAL_CORE = "global"
LEAST, MOST, TOKENS = 4, 40, 192


def gains(vault: Vault) -> dict[str, float]:
    """Return the gain by stop, for those that were measured."""
    found: dict[str, float] = dict(json.loads(vault.setting(SETTING, "{}")).get("gains", {}))
    alone = json.loads(vault.setting(CHOICE_SETTING, "{}")).get("checked_gain")
    return found if alone is None else {**found, ALONE: alone, METRICS: alone}


def measure(
    vault: Vault, model: LanguageModel, release: Release, report: Callable[[str], None] = lambda _step: None
) -> dict[str, float]:
    """Score a release on the held-back texts, keep the gains in the vault and return them by stop.

    Raises ConfigError with fewer than four texts held back, ModelError where the release is of another model.
    """
    rows = []
    for kept in documents(vault, OWN_PURPOSE, held_back=True):
        document = kept.as_document()
        encoded = model.encode_text(document.text, scored_part(document)[1], document.id, TOKENS)
        if encoded.own_tokens:
            rows.append(encoded)
    if len(rows) < LEAST:
        raise ConfigError(f"{len(rows)} texts of yours are held back to measure by, and {LEAST} are needed")
    names = [GLOBAL_CORE, *sorted(set(release.adapters) - {GLOBAL_CORE})]
    model.drop_own()
    model.attach(release.basis)
    cached = [model.prefix(encoded) for encoded in rows[-MOST:]]
    nats = np.zeros((1 + len(names), len(cached)))
    for i, cores in enumerate((release.basis.layout.zero_cores(), *(release.adapters[name] for name in names))):
        report("base" if i == 0 else names[i - 1])
        model.set_cores(cores)
        model.activate(GLOBAL)
        nats[i] = [float(each.double().sum()) for each in model.document_nats(cached)]
    found = by_stop(nats, len(names) > 1)
    vault.set_setting(SETTING, json.dumps({"release": release.sha256, "documents": len(cached), "gains": found}))
    return found


def by_stop(nats: NDArray[np.float64], personas: bool) -> dict[str, float]:
    """Return the gains of `personas` and `all` from the nats of base, global and each persona, float64 [arms, texts].

    Texts of even number choose the persona, those of odd number give every figure.
    """
    even = np.arange(nats.shape[1]) % 2 == 0
    base = nats[0, ~even].sum()
    found = {ALL: float((base - nats[1, ~even].sum()) / base)} if base > 0 else {}
    if personas and base > 0:
        best = 2 + int(np.argmin(nats[2:, even].sum(1)))
        found[PERSONAS] = float((base - nats[best, ~even].sum()) / base)
    return found
