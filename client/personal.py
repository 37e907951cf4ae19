"""A person's own adapters in the vault: trained on what the vault holds, bound to a release, within limits.

    unfinished row (never active)  --checkpoints-->  finished row, active in place of the one before

An adapter's row says which documents it learned from, so that forgetting one of them takes the adapter along; a
training that was cut off is such a row too, so that its checkpoint goes the same way.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from client.documents import Document
from client.forget import RETRAIN
from client.importers import OWN as OWN_PURPOSE
from client.library import Kept, documents
from client.limits import Limits, forget_peak_memory, peak_memory_mb
from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel
from client.own import RecordPrivacy, load_own
from client.own_training import OWN_MODULES, Checkpoint, Lazily, OwnTraining, train_own
from client.vault import Vault
from privacy.errors import ConfigError, TrainingPaused

LORA, IA3, PROMPT = "lora", "ia3", "prompt"
KINDS = (LORA, IA3, PROMPT)
LEAST_DOCUMENTS, LEAST_TRAINED = 4, 3  # to choose by, to learn from: of four texts one may be held back
PROMPT_VECTORS = 16
LEARNING_RATE = {LORA: 3e-3, IA3: 2e-2, PROMPT: 2e-2}
EPOCHS = {LORA: 2, IA3: 4, PROMPT: 4}
RANK = 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECORD_RATE, RECORD_EPOCHS, RECORD_STEPS, RECORD_RANK = 1e-3, 2, 50, 8  # more numbers, more noise
IA3_MODULES = ("k_proj", "v_proj", "down_proj")
KEPT_EVERY_S = 15.0
UNFINISHED = "unfinished"
SERVING = "release"  # the release under the active adapter, "" or "base …" for the bare model


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
    resumed_at: int = 0


def training_slice(
    vault: Vault, model: LanguageModel, limits: Limits, everything: bool = False
) -> list[tuple[int, Encoded]]:
    """Return the newest documents to learn from, by number and encoded, oldest first; nothing that is held back.

    `everything` takes all of them instead: under record-level privacy whether a document is in must not depend on
    others, as it does where only the newest so many count.
    """
    kept = [d for d in documents(vault, OWN_PURPOSE, held_back=False) if any(s.own and s.text.strip() for s in d.spans)]
    kept.sort(key=lambda d: (d.written if d.written is not None else 0.0, d.number))
    return _encoded(model, kept if everything else kept[-limits.documents :], limits)


def _encoded(model: LanguageModel, kept: Sequence[Kept], limits: Limits) -> list[tuple[int, Encoded]]:
    most = limits.document_tokens
    encoded = [(d.number, window(model.encode(d.as_document(), 8 * most), most)) for d in kept]
    return [(number, each) for number, each in encoded if each.own_tokens]


def window(encoded: Encoded, most: int) -> Encoded:
    """Return at most `most` tokens of a document with its owner's words among them: up to half of them lead up to it.

    Whoever answers a long text writes at its end; the first tokens alone would hold no word of theirs.
    """
    length = len(encoded.ids)
    if length <= most or not encoded.own_tokens:
        return Encoded(encoded.document, encoded.ids[:most], encoded.target[:most])
    first = int(encoded.target.nonzero()[0, 0])
    start = max(0, min(first - most // 2, length - most))
    target = encoded.target[start : start + most].clone()
    target[:1] = False
    return Encoded(encoded.document, encoded.ids[start : start + most], target)


def train(
    vault: Vault,
    model: LanguageModel,
    kind: str = LORA,
    record_epsilon: float | None = None,
    limits: Limits | None = None,
    release: str = "",
    report: Callable[[int, int], None] = lambda _done, _steps: None,
) -> Trained:
    """Train an own adapter and keep it in the vault, active in place of the one before; return what it is.

    A training of the same kind, release and privacy that was cut off goes on from its last checkpoint, with the
    documents that it began with. Raises ConfigError for a kind that there is not, too few documents, or more memory
    than allowed; TrainingPaused outside the allowed hours, the state kept. Cut off at any moment, the vault holds the
    adapter of before and a checkpoint at most `KEPT_EVERY_S` old.
    """
    limits = limits or Limits()
    if kind not in KINDS:
        raise ConfigError(f"no own adapter of kind {kind}; there is {', '.join(KINDS)}")
    if record_epsilon is not None and kind == IA3:
        raise ConfigError("IA3 has no per-document gradients: with record-level privacy use lora or prompt")
    limits.check_hour(datetime.now().astimezone())
    forget_peak_memory()
    work = _begun(vault, model, kind, record_epsilon, limits, release or f"base {model.name}")
    add_untrained(model, kind, work.settings)
    model.activate(GLOBAL)
    rows: Sequence[Cached] = Lazily(model, [encoded for _, encoded in work.rows])
    if record_epsilon is None:  # every pass looks at each of them
        rows = [rows[i] for i in range(len(rows))]
    watch = _watch(vault, work, limits, report)
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    tensors, privacy = train_own(model, rows, work.settings, generator, watch=watch, start=work.start)
    limits.check_memory(peak_memory_mb())
    tokens = sum(encoded.own_tokens for _, encoded in work.rows)
    seconds = work.before + time.monotonic() - work.began
    facts = {
        "rank": work.settings.rank,
        "modules": list(work.settings.modules),
        "tokens": tokens,
        "seconds": seconds,
        "privacy": dataclasses.asdict(privacy) if privacy else None,
    }
    _finish(vault, work, facts, tensors)
    resumed_at = work.start.done if work.start else 0
    return Trained(work.number, kind, work.release, len(work.rows), tokens, seconds, privacy, resumed_at)


@dataclass(frozen=True)
class _Work:
    """A training under way: its row in the vault, what it learns from, where it starts."""

    number: int
    release: str
    rows: list[tuple[int, Encoded]]
    settings: OwnTraining
    start: Checkpoint | None
    before: float
    began: float


def _begun(
    vault: Vault, model: LanguageModel, kind: str, record_epsilon: float | None, limits: Limits, release: str
) -> _Work:
    """Return the training to do: the one that was cut off, else a new one with a row of its own."""
    began = time.monotonic()
    settings = settings_of(kind, record_epsilon, limits.seconds)
    asked: dict[str, Any] = {"record_epsilon": record_epsilon, "document_tokens": limits.document_tokens}
    asked["rank"] = settings.rank
    asked |= {"modules": list(settings.modules), "batch": settings.batch_documents}  # another program's checkpoint
    for number, facts, data in vault.select(
        "SELECT id, facts, tensors FROM adapter WHERE NOT active AND kind = ? AND release = ? ORDER BY id DESC",
        (kind, release),
    ):
        known = json.loads(facts)
        if known.get(UNFINISHED) and {name: known.get(name) for name in asked} == asked:
            start = Checkpoint.of_bytes(bytes(data)) if data else None
            mine = {
                row[0] for row in vault.select("SELECT document FROM adapter_document WHERE adapter = ?", (number,))
            }
            kept = [d for d in documents(vault, OWN_PURPOSE, held_back=False) if d.number in mine]
            rows = _encoded(model, kept, limits)
            if {n for n, _ in rows} == mine:  # else a source was switched off, or a text changed, since
                before = start.seconds if start else 0.0
                return _Work(number, release, rows, settings, start, before, began)
    rows = training_slice(vault, model, limits, everything=record_epsilon is not None)
    if len(rows) < LEAST_TRAINED:
        raise ConfigError(f"an own adapter needs {LEAST_TRAINED} documents of yours; there are {len(rows)}")
    with vault.change() as change:
        change.execute("DELETE FROM adapter WHERE json_extract(facts, '$.unfinished')")
        number = change.execute(
            "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES (?, ?, ?, 0, ?, ?)",
            (kind, release, time.time(), json.dumps({UNFINISHED: True, **asked}), b""),
        ).lastrowid
        _still_here(change, [n for n, _ in rows])
        change.executemany("INSERT INTO adapter_document VALUES (?, ?)", [(number, n) for n, _ in rows])
    return _Work(int(number), release, rows, settings, None, 0.0, began)


def _watch(
    vault: Vault, work: _Work, limits: Limits, report: Callable[[int, int], None]
) -> Callable[[int, int, Callable[[], Checkpoint]], None]:
    """Return what looks at each step: memory, the hour, and when the next checkpoint is due."""
    last = time.monotonic()

    def watch(done: int, steps: int, take: Callable[[], Checkpoint]) -> None:
        nonlocal last
        limits.check_memory(peak_memory_mb())
        due = time.monotonic() - last >= KEPT_EVERY_S
        allowed = limits.allow(datetime.now().astimezone())
        if due or not allowed:
            _keep_checkpoint(vault, work, take().to_bytes())
            last = time.monotonic()
        report(done, steps)
        if not allowed:
            raise TrainingPaused(f"paused after step {done} of {steps}: it goes on from {limits.first_hour} o'clock")

    return watch


def _keep_checkpoint(vault: Vault, work: _Work, data: bytes) -> None:
    with vault.change() as rows:
        _still_here(rows, [number for number, _ in work.rows])
        rows.execute("UPDATE adapter SET tensors = ? WHERE id = ?", (data, work.number))


def _finish(vault: Vault, work: _Work, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    blob = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    with vault.change() as rows:
        _still_here(rows, [number for number, _ in work.rows])
        rows.execute("UPDATE adapter SET active = 0")
        done = rows.execute(
            "UPDATE adapter SET active = 1, facts = ?, tensors = ?, made = ? WHERE id = ?",
            (json.dumps(facts), blob, time.time(), work.number),
        )
        if done.rowcount != 1:
            raise ConfigError("a document was forgotten during the training: train again")
        rows.execute("DELETE FROM setting WHERE name = ?", (RETRAIN,))
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (SERVING, work.release))


def _still_here(rows: Any, numbers: Sequence[int]) -> None:
    """Raise ConfigError where a document was forgotten while it was being learned: then this must be forgotten too."""
    here = {row[0] for row in rows.execute("SELECT id FROM document")}
    if not set(numbers) <= here:
        raise ConfigError("a document was forgotten during the training: train again")


def settings_of(kind: str, record_epsilon: float | None = None, seconds: float = 180.0) -> OwnTraining:
    """Return the training settings of a kind of own adapter; one document at a time goes through the model."""
    made = OwnTraining(
        rank=RANK,
        epochs=EPOCHS[kind],
        learning_rate=LEARNING_RATE[kind],
        batch_documents=1,
        modules=MODULES,
        seconds=max(1.0, seconds),
        batch_tokens=1,
    )
    if record_epsilon is not None:
        made = dataclasses.replace(
            made,
            epochs=RECORD_EPOCHS,
            learning_rate=RECORD_RATE if kind == LORA else made.learning_rate,
            batch_documents=4,
            rank=RECORD_RANK,
            modules=OWN_MODULES,
            record_epsilon=record_epsilon,
            most_steps=RECORD_STEPS,
        )
    if kind == IA3:
        return dataclasses.replace(made, modules=IA3_MODULES)
    return dataclasses.replace(made, rank=PROMPT_VECTORS) if kind == PROMPT else made


def add_untrained(model: LanguageModel, kind: str, settings: OwnTraining) -> None:
    """Put an untrained own adapter of a kind into the model."""
    model.add_own(settings.rank, settings.modules, kind)


def active(vault: Vault) -> tuple[int, str, str] | None:
    """Return number, kind and release of the active own adapter, None without one."""
    found = vault.select("SELECT id, kind, release FROM adapter WHERE active ORDER BY id DESC LIMIT 1")
    return (int(found[0][0]), str(found[0][1]), str(found[0][2])) if found else None


def unfinished(vault: Vault) -> bool:
    """Return whether a training was cut off and can go on."""
    return bool(vault.one("SELECT count(*) FROM adapter WHERE json_extract(facts, '$.unfinished')"))


def put_into(vault: Vault, model: LanguageModel, number: int) -> None:
    """Load an own adapter of the vault into the model and switch it on. Raises ModelError where it does not fit."""
    kind, facts, data = vault.select("SELECT kind, facts, tensors FROM adapter WHERE id = ?", (number,))[0]
    known: dict[str, Any] = json.loads(facts)
    model.add_own(known["rank"], known["modules"], kind)
    load_own(model, load_tensors(bytes(data)))
    model.activate(GLOBAL, OWN)


def serve(vault: Vault, number: int | None, release: str = "") -> None:
    """Let one own adapter serve, or none, on a release; "" is the bare base model."""
    with vault.change() as rows:
        rows.execute("UPDATE adapter SET active = (id = ?)", (-1 if number is None else number,))
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (SERVING, release))


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
