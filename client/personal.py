"""A person's own adapters in the vault: trained on what the vault holds, bound to a release, the best one kept.

    old release + own, new release, new release + own: scored on the held-back slice, the least loss is active

An adapter's row says which documents it learned from, so that forgetting one of them takes the adapter along.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from client.documents import Document, Span
from client.forget import RETRAIN
from client.importers import OWN as OWN_PURPOSE
from client.library import documents
from client.model import GLOBAL, OWN, Cached, LanguageModel
from client.own import RecordPrivacy, load_own
from client.own_training import OwnTraining, train_own
from client.vault import Vault
from privacy.errors import ConfigError

LORA, IA3, PROMPT = "lora", "ia3", "prompt"
KINDS = (LORA, IA3, PROMPT)
LEAST_DOCUMENTS = 4
PROMPT_VECTORS = 16
LEARNING_RATE = {LORA: 1e-3, IA3: 1e-2, PROMPT: 1e-2}
IA3_MODULES = ("k_proj", "v_proj", "down_proj")


@dataclass(frozen=True)
class Limits:
    """What training may use: seconds, the hours of the day from `first_hour` to before `last_hour`, the newest text."""

    seconds: float = 180.0
    first_hour: int = 0
    last_hour: int = 24
    documents: int = 100
    document_tokens: int = 256

    def allow(self, now: datetime) -> bool:
        """Return whether training may begin at this hour; hours may run over midnight."""
        if self.first_hour <= self.last_hour:
            return self.first_hour <= now.hour < self.last_hour
        return now.hour >= self.first_hour or now.hour < self.last_hour


@dataclass(frozen=True)
class Trained:
    """One own adapter: its row, kind, the release it stands on, what it cost and what it may tell of a document."""

    number: int
    kind: str
    release: str
    documents: int
    tokens: int
    seconds: float
    privacy: RecordPrivacy | None


def training_slice(vault: Vault, model: LanguageModel, limits: Limits) -> tuple[list[int], list[Cached]]:
    """Return the newest documents to learn from, by number and encoded, oldest first; nothing that is held back."""
    kept = [d for d in documents(vault, OWN_PURPOSE, held_back=False) if any(s.own and s.text.strip() for s in d.spans)]
    kept.sort(key=lambda d: (d.written if d.written is not None else 0.0, d.number))
    kept = kept[-limits.documents :]
    encoded = [model.encode(d.as_document(), limits.document_tokens) for d in kept]
    pairs = [(d.number, e) for d, e in zip(kept, encoded, strict=True) if e.own_tokens]
    return [number for number, _ in pairs], [model.prefix(e) for _, e in pairs]


def train(
    vault: Vault,
    model: LanguageModel,
    kind: str = LORA,
    record_epsilon: float | None = None,
    limits: Limits | None = None,
    release: str = "",
) -> Trained:
    """Train a fresh own adapter and keep it in the vault, active in place of the one before; return what it is.

    Raises ConfigError for a kind that there is not, too few documents, or an hour outside the limits. Cut off at any
    moment, the vault holds the adapter of before.
    """
    limits = limits or Limits()
    if kind not in KINDS:
        raise ConfigError(f"no own adapter of kind {kind}; there is {', '.join(KINDS)}")
    if record_epsilon is not None and kind == IA3:
        raise ConfigError("IA3 has no per-document gradients: with record-level privacy use lora or prompt")
    if not limits.allow(datetime.now().astimezone()):
        raise ConfigError(f"training is allowed from {limits.first_hour} to {limits.last_hour} o'clock")
    start = time.monotonic()
    numbers, rows = training_slice(vault, model, limits)
    if len(rows) < LEAST_DOCUMENTS:
        raise ConfigError(f"an own adapter needs {LEAST_DOCUMENTS} documents of yours; there are {len(rows)}")
    settings = settings_of(kind, record_epsilon, limits.seconds - (time.monotonic() - start))
    add_untrained(model, kind, settings)
    tensors, privacy = train_own(model, rows, settings, torch.Generator().manual_seed(secrets.randbits(63)))
    tokens = sum(row.encoded.own_tokens for row in rows)
    seconds = time.monotonic() - start
    release = release or f"base {model.name}"
    facts = {
        "rank": settings.rank,
        "modules": list(settings.modules),
        "tokens": tokens,
        "seconds": seconds,
        "privacy": dataclasses.asdict(privacy) if privacy else None,
    }
    number = _keep(vault, kind, release, facts, tensors, numbers)
    return Trained(number, kind, release, len(rows), tokens, seconds, privacy)


def settings_of(kind: str, record_epsilon: float | None = None, seconds: float = 180.0) -> OwnTraining:
    """Return the training settings of a kind of own adapter."""
    plain = OwnTraining(learning_rate=LEARNING_RATE[kind], record_epsilon=record_epsilon, seconds=max(1.0, seconds))
    if kind == IA3:
        return dataclasses.replace(plain, modules=IA3_MODULES)
    return dataclasses.replace(plain, rank=PROMPT_VECTORS) if kind == PROMPT else plain


def add_untrained(model: LanguageModel, kind: str, settings: OwnTraining) -> None:
    """Put an untrained own adapter of a kind into the model."""
    model.add_own(settings.rank, settings.modules, kind)


def active(vault: Vault) -> tuple[int, str, str] | None:
    """Return number, kind and release of the active own adapter, None without one."""
    found = vault.select("SELECT id, kind, release FROM adapter WHERE active ORDER BY id DESC LIMIT 1")
    return (int(found[0][0]), str(found[0][1]), str(found[0][2])) if found else None


def put_into(vault: Vault, model: LanguageModel, number: int) -> None:
    """Load an own adapter of the vault into the model and switch it on. Raises ModelError where it does not fit."""
    kind, facts, data = vault.select("SELECT kind, facts, tensors FROM adapter WHERE id = ?", (number,))[0]
    known: dict[str, Any] = json.loads(facts)
    model.add_own(known["rank"], known["modules"], kind)
    load_own(model, load_tensors(bytes(data)))
    model.activate(GLOBAL, OWN)


def switch_to(vault: Vault, number: int | None) -> None:
    """Make one own adapter the active one, or none."""
    with vault.change() as rows:
        rows.execute("UPDATE adapter SET active = (id = ?)", (-1 if number is None else number,))


def _keep(
    vault: Vault,
    kind: str,
    release: str,
    facts: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    numbers: Sequence[int],
) -> int:
    blob = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    with vault.change() as rows:
        rows.execute("UPDATE adapter SET active = 0")
        made = rows.execute(
            "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES (?, ?, ?, 1, ?, ?)",
            (kind, release, time.time(), json.dumps(facts), blob),
        ).lastrowid
        here = {row[0] for row in rows.execute("SELECT id FROM document")}
        if not set(numbers) <= here:  # forgotten while it was being learned: then this must be forgotten as well
            raise ConfigError("a document was forgotten during the training: train again")
        rows.executemany("INSERT INTO adapter_document VALUES (?, ?)", [(made, number) for number in numbers])
        rows.execute("DELETE FROM setting WHERE name = ?", (RETRAIN,))
    return int(made)


def scored_part(document: Document) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return what of a held-back document may be searched with, and the character ranges that are scored.

    What stands before the owner's first word is the question. A document that begins with the owner's own words gives
    its first quarter: searched with and read, and scored in no arm, so that no arm sees its targets beforehand.
    """
    text, ranges = document.text, list(document.target_ranges())
    if not ranges:
        return text, ()
    start = ranges[0][0]
    question = text[:start].strip()
    if not question:
        words = text.split(" ")
        start = len(" ".join(words[: max(1, len(words) // 4)]))
        question = text[:start]
    scored = tuple((max(a, start), b) for a, b in ranges if b > start)
    return question, scored


def own_text_of(spans: Sequence[Span]) -> str:
    """Return the owner's words alone."""
    return "".join(span.text for span in spans if span.own)
