"""Text out of one update: the span check of DAGER (Petrov et al. 2024), on cores, against what a server holds.

    dL/dR = sum_t (B^T d_t) (A x_t)^T,      so every row of one step's update lies in span{A x_t}

x_t is what a layer reads at position t: it follows from the tokens up to t and from the model that the round starts
from, which everybody has. While there are fewer positions than the rank, the server tries every token at the next
position and keeps the one whose A x_t lies in the span. The value projection is used, where position 0 has a gradient
too, of the layers above the first, where an input tells the order of the tokens as well.

With protection the server holds a masked vector of that device, and a sum with noise: both are attacked the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
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
from simulation.attacks.tiny import Maker, tiny_model
from simulation.mechanism.people import Vector

CHARACTERS = tuple(bytes([i]).decode("latin-1") for i in range(32, 127))
SAME = 1 - 1e-6  # a first token twice reads as it does once: an input that was used up is not taken again
ROUNDED = 10.0  # singular values below are those of rounding to integers
LAYERS = 3  # above the first, that are looked at together
BATCH = 256  # candidates side by side


@dataclass(frozen=True)
class Size:
    """How many people are attacked, over cores of `rank`; of each text as many characters as the check can find.

    With `tokens` texts are that many tokens of the model's own vocabulary instead, and the attacker has a dictionary of
    `dictionary` tokens that holds them.
    """

    people: int = 12
    rank: int = 24
    characters: int = 16
    tokens: int = 0
    dictionary: int = 1000


@dataclass(frozen=True)
class Held:
    """What there is of everybody's first update: bare answers, masked vectors, and the one noisy sum.

    Texts are token ids, all of them among the candidates.
    """

    model: LanguageModel
    texts: Sequence[Sequence[int]]
    candidates: Sequence[int]
    bare: Sequence[Vector]
    masked: Sequence[Vector]
    total: Vector
    mu: float


def held(folder: Path, root: bytes, rng: np.random.Generator, size: Size, make: Maker = tiny_model) -> Held:
    """Return the first updates of a federation of `size`, unprotected and as a server has them."""
    model = make(folder / "model", size.rank)
    assert model.layout is not None
    texts, candidates = _texts(model, rng, size)
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
    bare, total = [v.astype(np.float64) for v in answers], told.total.astype(np.float64)
    return Held(model, [model.tokenizer.encode(text) for text in texts], candidates, bare, masked, total, mu)


def _texts(model: LanguageModel, rng: np.random.Generator, size: Size) -> tuple[list[str], list[int]]:
    """Return the people's texts, and the tokens that an attacker tries."""
    if not size.tokens:
        texts = [invented(rng, "").text[: size.characters] for _ in range(size.people)]
        return texts, [int(model.tokenizer.encode(character)[0]) for character in CHARACTERS]
    ids = [model.tokenizer.encode(" " + invented(rng, "").text)[: size.tokens] for _ in range(size.people)]
    texts = [str(model.tokenizer.decode(each)) for each in ids]
    used = sorted({token for text in texts for token in model.tokenizer.encode(text)})
    others = [int(token) for token in rng.permutation(len(model.tokenizer)) if token not in used]
    return texts, sorted(used + others[: max(0, size.dictionary - len(used))])


def attack_update(folder: Path, root: bytes, rng: np.random.Generator, size: Size, make: Maker = tiny_model) -> Attack:
    """Return the attack on everybody's first update."""
    known = held(folder, root, rng, size, make)
    return outcome(
        "inversion", "text from one update (span check)", known, span_check, "tokens" if size.tokens else "characters"
    )


def outcome(
    name: str,
    title: str,
    known: Held,
    reader: Callable[[Held, Vector, int], Sequence[int]],
    what: str,
    chances: int = 0,
) -> Attack:
    """Return what `reader` reads, off and on, where guessing is one of `chances`, else of the candidates."""

    def hits(vectors: Sequence[Vector]) -> int:
        found = [reader(known, vector, len(text)) for vector, text in zip(vectors, known.texts, strict=True)]
        pairs = zip(found, known.texts, strict=True)
        return sum(a == b for guess, text in pairs for a, b in zip(guess, text, strict=True))

    trials, of = sum(map(len, known.texts)), chances or len(known.candidates)
    on = max(hits(known.masked), hits([known.total] * len(known.texts)))
    allowed = allowed_guess(2 * known.mu, 1 / of)
    return Attack(
        name,
        title,
        share(hits(known.bare), trials, f"{what} read from a bare update"),
        share(on, trials, f"{what} read from the masked vector or the sum, whichever gave more"),
        1 / of,
        allowed,
        f"allowed up to {allowed:.2f} by mu = {known.mu:.2f} for one of the {what}, one in {of} by chance",
    )


def masked_vector(frames: Sequence[bytes]) -> Vector:
    """Return the masked vector that the server has of a device, lifted."""
    found = [message for message in map(decode, frames) if isinstance(message, Masked)]
    return from_ring(found[0].vector).astype(np.float64)


def span_check(known: Held, vector: Vector, length: int) -> list[int]:
    """Return the `length` tokens that an update most likely came from, as far as the check can tell.

    The last token is predicted and never read, so no update holds its span; the first candidate stands there, which
    among characters is a space, the commonest.
    """
    model = known.model
    assert model.layout is not None
    values = [site.module for site in model.layout.sites if site.module.endswith("v_proj")]
    modules = values[1 : 1 + LAYERS]
    cores = model.layout.unflatten(vector)
    spans = []
    for module in modules:
        _, sizes, rows = np.linalg.svd(cores[module].astype(np.float64))
        spans.append(torch.tensor(rows[: min(length - 1, len(rows) - 1, int((sizes > ROUNDED).sum()))]))
    found, used = list[int](), [torch.zeros((0, span.shape[1]), dtype=torch.float64) for span in spans]
    for _ in range(length - 1):
        inside = torch.zeros(len(known.candidates), dtype=torch.float64)
        inputs = _inputs(model, modules, found, known.candidates)
        for span, before, read in zip(spans, used, inputs, strict=True):
            inside += (read @ span.T).square().sum(dim=1)
            inside -= ((read @ before.T).abs() > SAME).any(dim=1).double()
        chosen = int(inside.argmax())
        found.append(known.candidates[chosen])
        used = [torch.cat([before, read[chosen : chosen + 1]]) for before, read in zip(used, inputs, strict=True)]
    return [*found, known.candidates[0]]


class _Seen(Exception):
    """The last module that is looked at was reached."""


@torch.no_grad()
def _inputs(
    model: LanguageModel, modules: Sequence[str], found: Sequence[int], candidates: Sequence[int]
) -> list[Tensor]:
    """Return A x / ||A x|| at the place after `found` for each candidate, float64 [candidates, rank], per module."""
    seen: list[list[Tensor]] = [[] for _ in modules]

    def looked(place: int, x: Tensor) -> None:
        seen[place].append(x[:, -1])
        if place == len(modules) - 1:
            raise _Seen

    layers = [model.net.get_submodule(module) for module in modules]
    handles = [
        layer.register_forward_pre_hook(lambda _module, arguments, place=place: looked(place, arguments[0]))
        for place, layer in enumerate(layers)
    ]
    try:
        for at in range(0, len(candidates), BATCH):
            rows = [[*found, candidate] for candidate in candidates[at : at + BATCH]]
            with suppress(_Seen):
                model.net(input_ids=torch.tensor(rows).to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    projected = []
    for layer, inputs in zip(layers, seen, strict=True):
        a: Tensor = layer.lora_A["global"][0].weight
        read = (torch.cat(inputs).float() @ a.float().T).double().cpu()
        projected.append(read / read.norm(dim=1, keepdim=True))
    return projected
