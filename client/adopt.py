"""A new release on a device that has an own adapter: what serves, by loss on the held-back slice, and what is trained.

    old release + own | new | new + own      the least loss on the held-back slice serves from now on
    new + own trained anew                   in the background; it takes over if it is better there

With fewer than four held-back documents nothing can be told: what served goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.forget import RETRAIN
from client.limits import Limits
from client.model import GLOBAL, OWN, LanguageModel
from client.personal import IA3, LEAST_DOCUMENTS, SERVING, Trained, active, put_into, serve, train
from client.personalize import held_back_rows
from client.releases import LATEST, kept, put_under, take_over
from client.vault import Vault
from privacy.errors import ConfideError, ModelError

FORMER = "former"


@dataclass(frozen=True)
class Way:
    """A release, "" for the bare base model, and the number of an own adapter on it, 0 for none."""

    name: str
    release: str
    adapter: int


@dataclass(frozen=True)
class Adopted:
    """What serves after a release came: the way, the mean nats a token of every way, on how many documents."""

    serves: str
    release: str
    nats: dict[str, float]
    documents: int
    words: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return vars(self)


def adopt(vault: Vault, model: LanguageModel, folder: Path, signer: str = "") -> Adopted:
    """Take a release over, score the ways it allows, keep the best and ask for a training on it."""
    release = take_over(vault, folder, signer)
    now, old = active(vault), serving(vault)
    ways = [Way("old + own" if now else "old", old, now[0] if now else 0), Way("new", release.sha256, 0)]
    if now and now[1] != IA3:  # IA3 stands on no shared core
        ways.append(Way("new + own", release.sha256, now[0]))
    nats, documents, tokens = score_ways(vault, model, ways)
    if nats[1] == float("inf"):
        raise ModelError(f"release {release.sha256[:12]} does not fit the model here, {model.name}")
    best = ways[min(range(len(ways)), key=nats.__getitem__)] if documents >= LEAST_DOCUMENTS else ways[0]
    with vault.change() as rows:
        for name, value in ((LATEST, release.sha256), (SERVING, best.release), (RETRAIN, "1")):
            rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))
        if best.adapter == 0:
            rows.execute("UPDATE adapter SET active = 0")
        if now and best.adapter == 0:  # the training that follows is compared with what served, too
            rows.execute(
                "INSERT OR REPLACE INTO setting VALUES (?, ?)",
                (FORMER, json.dumps({"release": old, "adapter": now[0]})),
            )
    put_serving(vault, model)
    shares = {way.name: value / max(1, tokens) for way, value in zip(ways, nats, strict=True)}
    return Adopted(best.name, best.release, shares, documents, _in_words(best, ways, nats, documents))


def serving(vault: Vault) -> str:
    """Return the release that serves, by its hash; "" for the bare base model."""
    name = vault.setting(SERVING)
    return "" if name.startswith("base ") else name


def put_serving(vault: Vault, model: LanguageModel) -> None:
    """Put what serves into the model: its release, and the active own adapter where there is one."""
    put_under(model, kept(vault, serving(vault)))
    own = active(vault)
    if own is not None:
        put_into(vault, model, own[0])


def train_and_settle(
    vault: Vault,
    model: LanguageModel,
    kind: str,
    record_epsilon: float | None = None,
    limits: Limits | None = None,
    report: Callable[[int, int], None] = lambda _done, _steps: None,
) -> tuple[Trained, str]:
    """Train an own adapter on the latest release; keep it, or what served before, by loss on the held-back slice.

    Returns the adapter and in words which one serves.
    """
    now, latest = active(vault), vault.setting(LATEST)
    if now is not None:
        vault.set_setting(FORMER, json.dumps({"release": serving(vault), "adapter": now[0]}))
    put_under(model, None if kind == IA3 and not latest else kept(vault, latest))
    made = train(vault, model, kind, record_epsilon, limits, latest, report)
    return made, settle(vault, model)


def settle(vault: Vault, model: LanguageModel) -> str:
    """Compare the active adapter with the one that served before it, keep the better one, and say so in words."""
    before = json.loads(vault.setting(FORMER, "{}"))
    now = active(vault)
    here = before and vault.one("SELECT count(*) FROM adapter WHERE id = ?", (before["adapter"],))
    if not here or now is None or now[0] == before["adapter"]:
        _forget_former(vault, None)
        return "It serves: there is no other to compare with."
    ways = [
        Way("the one before", before["release"], before["adapter"]),
        Way("the new one", serving(vault), now[0]),
    ]
    nats, documents, _ = score_ways(vault, model, ways)
    better = nats[0] < nats[1] and documents >= LEAST_DOCUMENTS
    kept_way, dropped = (ways[0], ways[1]) if better else (ways[1], ways[0])
    serve(vault, kept_way.adapter, kept_way.release)
    _forget_former(vault, dropped.adapter)
    put_serving(vault, model)
    gain = (nats[0] - nats[1]) / nats[0] if nats[0] > 0 else 0.0
    how = f"{abs(gain):.1%} {'better' if gain >= 0 else 'worse'} than the one before on {documents} texts held back"
    return f"{kept_way.name.capitalize()} serves: the new one is {how}."


def score_ways(vault: Vault, model: LanguageModel, ways: Sequence[Way]) -> tuple[list[float], int, int]:
    """Return the nats of every way on the held-back slice, of how many documents and tokens; inf where one fails."""
    found, documents, tokens = [], 0, 0
    for way in ways:
        try:
            put_under(model, kept(vault, way.release))
            if way.adapter:
                put_into(vault, model, way.adapter)
            model.activate(GLOBAL, OWN)
        except ConfideError:
            found.append(float("inf"))
            continue
        rows = held_back_rows(vault, model)
        documents, tokens = len(rows), sum(row.encoded.own_tokens for row in rows)
        nats = model.document_nats([model.prefix(row.encoded) for row in rows])
        found.append(float(sum(float(each.double().sum()) for each in nats)))
    return found, documents, tokens


def _forget_former(vault: Vault, loser: int | None) -> None:
    with vault.change() as rows:
        rows.execute("DELETE FROM setting WHERE name = ?", (FORMER,))
        if loser is not None:
            rows.execute("DELETE FROM adapter WHERE id = ? AND NOT active", (loser,))


def _in_words(best: Way, ways: Sequence[Way], nats: Sequence[float], documents: int) -> str:
    if documents < LEAST_DOCUMENTS:
        return f"What served goes on: {documents} texts of yours are held back to measure by, too few to tell."
    others = [n for way, n in zip(ways, nats, strict=True) if way is not best and n < float("inf")]
    mine = nats[list(ways).index(best)]
    gain = (min(others) - mine) / min(others) if others and min(others) > 0 else 0.0
    return f"Serves now: {best.name}, {gain:.1%} better than the next best on {documents} texts held back."
