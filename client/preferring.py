"""Learning from preferences: the own adapter trained on a person's pairs, kept only where pairs held back agree.

    pairs of prompts held back   one prompt in five, by its words alone
    kept                         their loss is below log 2 beyond chance (95 % of bootstrap samples over prompts), the
                                 person's own held-back text reads no worse than by `MOST_WORSE`, and the model follows
                                 the person's beliefs no further than by `MOST_SHIFT` nats
else nothing changes.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from client.adopt import put_serving, serving
from client.dpo import DPO, Preferred, dpo_loss, reference, train_dpo
from client.generate import chat_ids
from client.importers import held_back
from client.library import documents
from client.model import GLOBAL, OWN, Encoded, LanguageModel
from client.own import own_tensors, reset_own
from client.own_training import OWN_MODULES
from client.personal import IA3, LORA, active
from client.personalize import held_back_rows
from client.preference import pair_of
from client.preferences import CHAT, SEPARATOR, Preference, preferences
from client.prompt import CHAT as CHAT_PROMPT
from client.prompt import PLAIN, templates
from client.sycophancy import shift
from client.vault import Vault
from privacy.canonical import sha256_hex
from privacy.errors import ConfigError

LEAST_PAIRS, LEAST_HELD_BACK = 8, 4
MOST_TOKENS, MOST_DEMONSTRATIONS = 384, 40
MOST_WORSE, MOST_SHIFT = 0.01, 0.25
RANK = 8
RESAMPLES, CONFIDENCE = 2000, 0.95
_SETTINGS = DPO()


@dataclass(frozen=True)
class Learned:
    """What came of it: `adapter` 0 where nothing was kept, and why in words.

    `loss` and `agreed` are of the pairs held back: mean loss (log 2 before), share whose margin is positive.
    """

    adapter: int
    pairs: int
    held_back: int
    loss: float
    agreed: float
    text_worse: float
    shift_before: float
    shift_after: float
    seconds: float
    words: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def learn(
    vault: Vault,
    model: LanguageModel,
    settings: DPO = _SETTINGS,
    demonstrations: bool = False,
    report: Callable[[int, int], None] = lambda _done, _steps: None,
) -> Learned:
    """Train on the pairs in the vault, and with `demonstrations` on the person's own words against samples as well.

    Raises ConfigError with too few pairs, or an own adapter of a kind that has no shared core beside it.
    """
    begun, generator = time.monotonic(), torch.Generator().manual_seed(secrets.randbits(63))
    now = active(vault)
    if now is not None and now[1] == IA3:
        raise ConfigError("preferences train a LoRA or a soft prompt, not IA3: `confide device train --kind lora`")
    kept = preferences(vault)
    held = [pair for pair in kept if _held_back(pair)]
    used = [pair for pair in kept if not _held_back(pair)]
    if len(kept) < LEAST_PAIRS or len(held) < LEAST_HELD_BACK:
        raise ConfigError(
            f"{len(kept)} preferences, {len(held)} of them held back to measure by;"
            f" {LEAST_PAIRS} and {LEAST_HELD_BACK} are needed"
        )
    put_serving(vault, model)
    if now is None:
        model.add_own(RANK, OWN_MODULES, LORA)
        reset_own(model, generator)
    model.activate(GLOBAL, OWN)
    pairs = [_encoded(model, pair) for pair in used]
    shown: set[int] = set()
    if demonstrations:
        own, shown = _demonstrations(vault, model, generator)
        pairs += own
    tests, text, shift_before = [_encoded(model, pair) for pair in held], _own_text(vault, model), shift(model)
    before = reference(model, tests)
    train_dpo(model, pairs, settings, generator, report)
    losses = dpo_loss(reference(model, tests), before, settings.beta).double().numpy()
    worse, shift_after = _own_text(vault, model) / text - 1 if text else 0.0, shift(model)
    reasons = _against(losses, [pair.prompt for pair in held], worse, shift_after - shift_before)
    number = 0 if reasons else _keep(vault, model, now, len(pairs), shown)
    if not number:
        model.drop_own()
    return Learned(
        number, len(pairs), len(tests), float(losses.mean()), float((losses < math.log(2)).mean()), worse,
        shift_before, shift_after, time.monotonic() - begun,
        "Kept: pairs held back agree." if number else f"Nothing changed: {'; '.join(reasons)}.",
    )  # fmt: skip


def _against(losses: NDArray[np.float64], prompts: Sequence[str], worse: float, shifted: float) -> list[str]:
    """Return the reasons not to keep a training."""
    names = sorted(set(prompts))
    by_prompt = np.array([np.mean([x for x, p in zip(losses, prompts, strict=True) if p == name]) for name in names])
    draws = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    reasons = []
    if np.mean(by_prompt[draws].mean(1) < math.log(2)) < CONFIDENCE:
        reasons.append("pairs held back do not agree beyond chance")
    if worse > MOST_WORSE:
        reasons.append(f"your own text held back reads {worse:.1%} worse")
    if shifted > MOST_SHIFT:
        reasons.append(f"the model would say more what you say, whatever is so (by {shifted:.2f} nats)")
    return reasons


def _held_back(pair: Preference) -> bool:
    return bool(held_back(bytes.fromhex(sha256_hex(pair.prompt.encode()))))


def _encoded(model: LanguageModel, pair: Preference) -> Preferred:
    """Return a pair as tokens: its prompt as it was shown, cut from the left, then each of the two answers."""
    if pair.kind == CHAT:
        prompt = chat_ids(model, templates()[CHAT_PROMPT][PLAIN], pair.prompt)
    else:
        text = pair.prompt.rstrip() + SEPARATOR[pair.kind].rstrip(" ")
        prompt = model.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    lead = "" if pair.kind == CHAT or SEPARATOR[pair.kind].endswith("\n") else " "
    answers = []
    for text in (pair.chosen, pair.rejected):
        tokens = model.tokenizer(lead + text, add_special_tokens=False, return_tensors="pt", verbose=False)
        answer = tokens["input_ids"][0][: MOST_TOKENS // 2]
        ids = torch.cat([prompt[-(MOST_TOKENS - len(answer)) :], answer])
        target = torch.arange(len(ids)) >= len(ids) - len(answer)
        answers.append(model.prefix(Encoded(f"preference {pair.number}", ids, target)))
    return Preferred(*answers)


def _demonstrations(vault: Vault, model: LanguageModel, generator: torch.Generator) -> tuple[list[Preferred], set[int]]:
    """Return pairs of the person's own last words against samples of as many tokens, and their documents."""
    found: list[Preferred] = []
    numbers: set[int] = set()
    for kept in list(documents(vault, "own", held_back=False))[-MOST_DEMONSTRATIONS:]:
        encoded = model.encode(kept.as_document(), MOST_TOKENS)
        if encoded.own_tokens:
            pair = pair_of(model, model.prefix(encoded), generator)
            found.append(Preferred(pair.own, pair.sample))
            numbers.add(kept.number)
    return found, numbers


def _own_text(vault: Vault, model: LanguageModel) -> float:
    """Return the nats of the person's own text that is held back, 0 where there is none."""
    rows = [model.prefix(row.encoded) for row in held_back_rows(vault, model)]
    return sum(float(nats.double().sum()) for nats in model.document_nats(rows)) if rows else 0.0


def _keep(vault: Vault, model: LanguageModel, now: tuple[int, str, str] | None, pairs: int, shown: set[int]) -> int:
    """Keep the adapter of the model as the active one, with every document that it may know, and return its number."""
    blob = save_tensors({name: p.detach().clone().contiguous() for name, p in own_tensors(model).items()})
    facts: dict[str, Any] = {"rank": RANK, "modules": list(OWN_MODULES), "privacy": None}
    kind, release = LORA, serving(vault) or f"base {model.name}"
    if now is not None:
        kind, release = now[1], now[2]
        facts |= json.loads(vault.one("SELECT facts FROM adapter WHERE id = ?", (now[0],)))
    facts |= {"preferences": pairs, "privacy": None}  # a record-level guarantee of before holds no more
    with vault.change() as rows:
        known = {row[0] for row in rows.execute("SELECT document FROM preference_document")} | shown
        if now is not None:
            known |= {
                row[0] for row in rows.execute("SELECT document FROM adapter_document WHERE adapter = ?", (now[0],))
            }
        if not known <= {row[0] for row in rows.execute("SELECT id FROM document")}:
            raise ConfigError("a document was forgotten during the training: train again")
        rows.execute("UPDATE adapter SET active = 0")
        number = rows.execute(
            "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES (?, ?, ?, 1, ?, ?)",
            (kind, release, time.time(), json.dumps(facts), blob),
        ).lastrowid
        rows.executemany("INSERT INTO adapter_document VALUES (?, ?)", [(number, document) for document in known])
    return int(number)
