"""Learning from preferences: the own adapter trained on a person's pairs, kept only where pairs held back agree.

    pairs of prompts held back   one prompt in five, by its words alone
    kept                         their loss is below log 2 beyond chance (95 % of bootstrap samples over prompts), the
                                 person's own held-back text reads no worse than by `MOST_WORSE`, and the model follows
                                 the person's beliefs no further than by `MOST_SHIFT` nats
else nothing changes.

Under record-level privacy a fresh adapter is trained with noise (`client.private_dpo`). It is kept whatever the pairs
held back say, since what may leave must not depend on them, and serves only where nothing else did and they agree.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
from client.own import RecordPrivacy, own_tensors, reset_own
from client.own_training import OWN_MODULES
from client.personal import IA3, LORA, active
from client.personalize import held_back_rows
from client.preference import pair_of
from client.preferences import CHAT, SEPARATOR, Preference, choices_of_documents, preferences
from client.private_dpo import Choices, train_private_dpo
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
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Learned:
    """What came of it: `adapter` 0 where nothing was kept, and why in words.

    `loss` and `agreed` are of the pairs held back: mean loss (log 2 before), share whose margin is positive.
    """

    adapter: int
    serves: bool
    pairs: int
    held_back: int
    loss: float
    agreed: float
    text_worse: float
    shift_before: float
    shift_after: float
    seconds: float
    words: str
    privacy: RecordPrivacy | None = None
    most_choices_of_a_document: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def learn(
    vault: Vault,
    model: LanguageModel,
    settings: DPO = _SETTINGS,
    demonstrations: bool = False,
    report: Report = lambda _done, _steps: None,
    record_epsilon: float | None = None,
) -> Learned:
    """Train on the pairs in the vault, and with `demonstrations` on the person's own words against samples as well.

    With `record_epsilon` each choice is protected by that epsilon, and the adapter may be exported. Raises ConfigError
    with too few pairs, or an own adapter of a kind that has no shared core beside it.
    """
    begun, generator = time.monotonic(), torch.Generator().manual_seed(secrets.randbits(63))
    now = active(vault)
    if now is not None and now[1] == IA3 and record_epsilon is None:
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
    start = now if record_epsilon is None else None  # what was trained before is not in the accountant's figures
    if start is None:
        model.add_own(RANK, OWN_MODULES, LORA)
        reset_own(model, generator)
    model.activate(GLOBAL, OWN)
    tests, text, shift_before = [_encoded(model, pair) for pair in held], _own_text(vault, model), shift(model)
    before = reference(model, tests)
    privacy, count, shown = None, 0, set[int]()
    if record_epsilon is None:
        pairs = [_encoded(model, pair) for pair in used]
        if demonstrations:
            own, shown = _demonstrations(vault, model, generator)
            pairs += own
        count = len(pairs)
        train_dpo(model, pairs, settings, generator, report)
    else:
        choices, shown = _choices(vault, model, used, demonstrations, generator)
        count = len(choices)
        privacy = train_private_dpo(model, choices, settings, record_epsilon, generator, report)
    losses = dpo_loss(reference(model, tests), before, settings.beta).double().numpy()
    worse, shift_after = _own_text(vault, model) / text - 1 if text else 0.0, shift(model)
    reasons = _against(losses, [pair.prompt for pair in held], worse, shift_after - shift_before)
    serves = not reasons and (privacy is None or now is None)
    number = _keep(vault, model, start, count, shown, privacy, serves) if serves or privacy else 0
    if not serves:
        model.drop_own()
    return Learned(
        number, serves, count, len(tests), float(losses.mean()), float((losses < math.log(2)).mean()), worse,
        shift_before, shift_after, time.monotonic() - begun, _in_words(number, serves, reasons), privacy,
        _most_choices(vault) if privacy else 0,
    )  # fmt: skip


def _in_words(number: int, serves: bool, reasons: Sequence[str]) -> str:
    if serves:
        return "Kept: pairs held back agree."
    why = "; ".join(reasons) or "your own adapter goes on serving"
    return (
        f"Adapter {number} is kept to be exported and does not serve: {why}." if number else f"Nothing changed: {why}."
    )


def _most_choices(vault: Vault) -> int:
    """Return in how many prompts with a choice one document stood at most: what it said is protected as often."""
    return max(choices_of_documents(vault).values(), default=0)


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


def _choices(
    vault: Vault, model: LanguageModel, used: Sequence[Preference], demonstrations: bool, generator: torch.Generator
) -> tuple[Choices, set[int]]:
    """Return what was preferred by prompt, with `demonstrations` each document of the person's too, and these.

    All of them: under record-level privacy whether one is in must not depend on others.
    """
    by_prompt: dict[str, list[Preference]] = {}
    for pair in used:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    makers: list[Callable[[], Sequence[Preferred]]] = [
        partial(lambda pairs: [_encoded(model, pair) for pair in pairs], pairs) for pairs in by_prompt.values()
    ]
    numbers: set[int] = set()
    for kept in documents(vault, "own", held_back=False) if demonstrations else ():
        encoded = model.encode(kept.as_document(), MOST_TOKENS)
        if encoded.own_tokens:
            makers.append(partial(lambda row: [_demonstration(model, row, generator)], encoded))
            numbers.add(kept.number)
    return Choices(model, makers), numbers


def _demonstration(model: LanguageModel, encoded: Encoded, generator: torch.Generator) -> Preferred:
    pair = pair_of(model, model.prefix(encoded), generator)
    return Preferred(pair.own, pair.sample)


def _demonstrations(vault: Vault, model: LanguageModel, generator: torch.Generator) -> tuple[list[Preferred], set[int]]:
    """Return pairs of the person's own last words against samples of as many tokens, and their documents."""
    found: list[Preferred] = []
    numbers: set[int] = set()
    for kept in list(documents(vault, "own", held_back=False))[-MOST_DEMONSTRATIONS:]:
        encoded = model.encode(kept.as_document(), MOST_TOKENS)
        if encoded.own_tokens:
            found.append(_demonstration(model, encoded, generator))
            numbers.add(kept.number)
    return found, numbers


def _own_text(vault: Vault, model: LanguageModel) -> float:
    """Return the nats of the person's own text that is held back, 0 where there is none."""
    rows = [model.prefix(row.encoded) for row in held_back_rows(vault, model)]
    return sum(float(nats.double().sum()) for nats in model.document_nats(rows)) if rows else 0.0


def _keep(
    vault: Vault,
    model: LanguageModel,
    now: tuple[int, str, str] | None,
    pairs: int,
    shown: set[int],
    privacy: RecordPrivacy | None,
    serves: bool,
) -> int:
    """Keep the adapter of the model, active where it serves, with every document it may know, and return its number."""
    blob = save_tensors({name: p.detach().clone().contiguous() for name, p in own_tensors(model).items()})
    facts: dict[str, Any] = {"rank": RANK, "modules": list(OWN_MODULES)}
    kind, release = LORA, serving(vault) or f"base {model.name}"
    if now is not None:
        kind, release = now[1], now[2]
        facts |= json.loads(vault.one("SELECT facts FROM adapter WHERE id = ?", (now[0],)))
    # a record-level guarantee of before holds no more
    facts |= {"preferences": pairs, "privacy": asdict(privacy) if privacy else None}
    with vault.change() as rows:
        known = set(choices_of_documents(vault)) | shown
        if now is not None:
            known |= {
                row[0] for row in rows.execute("SELECT document FROM adapter_document WHERE adapter = ?", (now[0],))
            }
        if not known <= {row[0] for row in rows.execute("SELECT id FROM document")}:
            raise ConfigError("a document was forgotten during the training: train again")
        if serves:
            rows.execute("UPDATE adapter SET active = 0")
        number = rows.execute(
            "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES (?, ?, ?, ?, ?, ?)",
            (kind, release, time.time(), int(serves), json.dumps(facts), blob),
        ).lastrowid
        rows.executemany("INSERT INTO adapter_document VALUES (?, ?)", [(number, document) for document in known])
    return int(number)
