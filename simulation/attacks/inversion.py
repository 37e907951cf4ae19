"""Text out of one update: the span check of DAGER (Petrov et al. 2024), on cores, against what a server holds.

    dL/dR = sum_t (B^T d_t) (A x_t)^T,      so every row of one step's update lies in span{A x_t}

x_t is what a layer reads at position t: it follows from the tokens up to t and from the model that the round starts
from, which everybody has. While there are fewer positions than the rank, the server tries every token at the next
position and keeps the one whose A x_t lies in the span. The value projection is used, where position 0 has a gradient
too, of a layer above the first, where an input tells the order of the tokens as well.

With protection the server holds a masked vector of that device, and a sum with noise: both are attacked the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.model import LanguageModel
from privacy.fixedpoint import from_ring
from privacy.secagg.messages import Masked
from privacy.wire import decode
from simulation.attacks.federation import Federation, Training
from simulation.attacks.outcome import Attack, allowed_guess, share
from simulation.attacks.release import invented
from simulation.attacks.tiny import tiny_model
from simulation.mechanism.people import Vector

CHARACTERS = tuple(bytes([i]).decode("latin-1") for i in range(32, 127))
SAME = 1 - 1e-6  # a first token twice reads as it does once: an input that was used up is not taken again
ROUNDED = 10.0  # singular values below are those of rounding to integers


@dataclass(frozen=True)
class Size:
    """How many people are attacked, over cores of `rank`; of each text as many characters as the check can find."""

    people: int = 12
    rank: int = 24
    characters: int = 16


@dataclass(frozen=True)
class Held:
    """What there is of everybody's first update: bare answers, masked vectors, and the one noisy sum."""

    model: LanguageModel
    texts: Sequence[str]
    bare: Sequence[Vector]
    masked: Sequence[Vector]
    total: Vector
    mu: float


def held(folder: Path, root: bytes, rng: np.random.Generator, size: Size) -> Held:
    """Return the first updates of a federation of `size`, unprotected and as a server has them."""
    model = tiny_model(folder / "model", size.rank)
    assert model.layout is not None
    texts = [invented(rng, "").text[: size.characters] for _ in range(size.people)]
    training = Training(rounds=1, step=0.5, steps=1, noise_multiplier=Fraction(1))
    federation = Federation(
        folder / "federation", model, {f"person-{i}": [text] for i, text in enumerate(texts)}, root, training
    )
    cores = model.layout.unflatten(np.zeros(model.layout.dim))
    try:
        clear = federation.query(0, cores, protected=False)
        answers = [from_ring(federation.people.answer(u, clear, np.zeros(0)).vector) for u in federation.people.users]
        told = federation.people.sum(federation.query(1, cores, protected=True), {})
        mu = federation.mu()
    finally:
        federation.close()
    masked = [masked_vector(told.frames[user]) for user in federation.people.users]
    return Held(model, texts, [v.astype(np.float64) for v in answers], masked, told.total.astype(np.float64), mu)


def attack_update(folder: Path, root: bytes, rng: np.random.Generator, size: Size) -> Attack:
    """Return the attack on everybody's first update."""
    known = held(folder, root, rng, size)
    return outcome("inversion", "text from one update (span check)", known, read, CHARACTERS)


def outcome(
    name: str, title: str, known: Held, reader: Callable[[LanguageModel, Vector, int], str], characters: Sequence[str]
) -> Attack:
    """Return what `reader` reads, off and on, where guessing is one of `characters`."""

    def hits(vectors: Sequence[Vector]) -> int:
        found = [reader(known.model, vector, len(text)) for vector, text in zip(vectors, known.texts, strict=True)]
        pairs = zip(found, known.texts, strict=True)
        return sum(a == b for guess, text in pairs for a, b in zip(guess, text, strict=True))

    trials = sum(map(len, known.texts))
    on = max(hits(known.masked), hits([known.total] * len(known.texts)))
    allowed = allowed_guess(2 * known.mu, 1 / len(characters))
    return Attack(
        name,
        title,
        share(hits(known.bare), trials, "characters read from a bare update"),
        share(on, trials, "characters read from the masked vector or the sum, whichever gave more"),
        1 / len(characters),
        allowed,
        f"allowed up to {allowed:.2f} by mu = {known.mu:.2f} for one character, one in {len(characters)} by chance",
    )


def masked_vector(frames: Sequence[bytes]) -> Vector:
    """Return the masked vector that the server has of a device, lifted."""
    found = [message for message in map(decode, frames) if isinstance(message, Masked)]
    return from_ring(found[0].vector).astype(np.float64)


def read(model: LanguageModel, vector: Vector, length: int) -> str:
    """Return the text of `length` characters that an update most likely came from, as far as the check can tell.

    The last character is predicted and never read, so no update holds its span; a space, the commonest, stands there.
    """
    assert model.layout is not None
    module = [site.module for site in model.layout.sites if site.module.endswith("v_proj")][-1]
    _, sizes, rows = np.linalg.svd(model.layout.unflatten(vector)[module].astype(np.float64))
    span = torch.tensor(rows[: min(length - 1, len(rows) - 1, int((sizes > ROUNDED).sum()))])
    candidates = [int(model.tokenizer.encode(character)[0]) for character in CHARACTERS]
    found, used = "", torch.zeros((0, len(rows)), dtype=torch.float64)
    for _ in range(length - 1):
        prefix = model.tokenizer.encode(found) if found else []
        inputs = _inputs(model, module, torch.tensor([[*prefix, candidate] for candidate in candidates]))
        inputs = inputs / inputs.norm(dim=1, keepdim=True)
        inside = (inputs @ span.T).square().sum(dim=1)
        inside -= ((inputs @ used.T).abs() > SAME).any(dim=1).double()
        chosen = int(inside.argmax())
        found, used = found + CHARACTERS[chosen], torch.cat([used, inputs[chosen : chosen + 1]])
    return found + " "


@torch.no_grad()
def _inputs(model: LanguageModel, module: str, ids: Tensor) -> Tensor:
    """Return A x at the last position of each row, float64 [rows, rank], for the module's input x."""
    seen: list[Tensor] = []
    layer = model.net.get_submodule(module)
    handle = layer.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0][:, -1]))
    try:
        model.net(input_ids=ids.to(model.device))
    finally:
        handle.remove()
    a: Tensor = layer.lora_A["global"][0].weight
    return (seen[0].float() @ a.float().T).double().cpu()
