"""A researcher's own part, named `module:Class` or `file.py:Class`: loaded, held to its contract, then used.

    retriever   Class(texts, encoder).search(query, k) -> places in `texts`, best first
    prompt      Class().build(memories, topics, style) -> text before the person's own
    metric      Class().value(own, text) -> number;   name, higher_is_better
    adapter     Class().fit(model, documents, generator) -> tensors;   load(model, tensors)
    aggregator  Class(learning_rate, momentum).step(weights, velocity, mean, share) -> (weights, velocity)

The class runs with all rights of whoever runs the command. So it is named on the command line or in one's own
configuration alone, and never taken from a run, a release or a message.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from privacy.canonical import sha256_hex
from privacy.errors import ConfigError

TEXTS = ("the river is wide", "bread in the garden", "a train in winter", "bread and butter")


def extension(point: str, reference: str) -> Any:
    """Return the class that `reference` names, after it has kept the contract of `point`.

    Raises ConfigError in one line where there is no such file, module or class, or where it breaks the contract.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"{point}: name a class as module:Class or file.py:Class, not {reference!r}")
    module = _file(point, Path(place)) if place.endswith(".py") else _module(point, place)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ConfigError(f"{point}: there is no class {name} in {Path(place).name}")
    check(point, found)
    return found


def _file(point: str, path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{point}: {path.name} is no file")
    name = f"confide_extension_{sha256_hex(str(path.resolve()).encode())[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{point}: {path.name} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001 whatever a researcher's file raises is said in one line
        raise ConfigError(f"{point}: {path.name} fails when it is loaded ({type(error).__name__}: {error})") from None
    return module


def _module(point: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{point}: {name} cannot be imported ({error})") from None


def check(point: str, kind: type) -> None:
    """Hold a class to the contract of an extension point. Raises ConfigError that names the sentence it breaks."""
    if point not in CONTRACTS:
        raise ConfigError(f"no extension point {point!r}; there is {', '.join(CONTRACTS)}")
    try:
        broken = CONTRACTS[point](kind)
    except Exception as error:  # noqa: BLE001 as above
        broken = f"it raises {type(error).__name__}: {error}"
    if broken:
        raise ConfigError(f"{point} {kind.__name__} breaks its contract: {broken}")


def _retriever(kind: Any) -> str:
    from client.encoder import HashedEncoder

    made, again = kind(TEXTS, HashedEncoder()), kind(TEXTS, HashedEncoder())
    for query, k in (("bread", 2), ("bread", 1), ("", 3), ("nothing known", 9)):
        found = list(made.search(query, k))
        if len(found) > k or len(set(found)) != len(found):
            return "search returns at most k places, each once"
        if any(not 0 <= int(place) < len(TEXTS) for place in found):
            return "search returns places in the texts that it was given"
        if found != list(again.search(query, k)):
            return "the same texts and query give the same places"
    if list(kind((), HashedEncoder()).search("bread", 3)):
        return "without texts nothing is found"
    return ""


def _prompt(kind: Any) -> str:
    made = kind()
    text = made.build(TEXTS[:2], ("bread",), "more commas")
    if not isinstance(text, str):
        return "build returns a text"
    if made.build(TEXTS[:2], ("bread",), "more commas") != text:
        return "the same memories give the same text"
    return "" if isinstance(made.build((), (), ""), str) else "build takes a person without memories"


def _metric(kind: Any) -> str:
    made = kind()
    if not isinstance(made.name, str) or not made.name or not isinstance(made.higher_is_better, bool):
        return "it has a name and says whether higher_is_better"
    own, other, none = (float(made.value(TEXTS[0], text)) for text in (TEXTS[0], TEXTS[2], ""))
    if not np.isfinite([own, other, none]).all():
        return "value returns a finite number, for an empty text too"
    if (own < other) if made.higher_is_better else (own > other):
        return "a person's own text is not worse than another"
    return ""


def _adapter(kind: Any) -> str:
    made = kind()
    missing = [name for name in ("fit", "load") if not callable(getattr(made, name, None))]
    return f"it has {' and '.join(missing)}" if missing else ""


def _aggregator(kind: Any) -> str:
    if not dataclasses.is_dataclass(kind):
        return "it is a frozen dataclass of learning_rate and momentum, so that the run's plan can name it"
    made = cast(Any, kind)(0.5, 0.0)
    weights, velocity, mean = np.arange(4.0), np.zeros(4), np.array([1.0, -2.0, 0.0, 0.5])
    kept = (weights.copy(), velocity.copy(), mean.copy())
    new, after = made.step(weights, velocity, mean, 1.0)
    if not all(np.array_equal(a, b) for a, b in zip(kept, (weights, velocity, mean), strict=True)):
        return "step changes nothing in place"
    if np.shape(new) != (4,) or not np.isfinite(new).all() or not np.isfinite(after).all():
        return "step returns finite weights of the same dim and a velocity"
    if not np.array_equal(new, made.step(weights, velocity, mean, 1.0)[0]):
        return "the same mean gives the same step"
    if float((new - weights) @ mean) <= 0:
        return "a first step goes the way of the mean"
    still, _ = made.step(weights, velocity, np.zeros(4), 1.0)
    return "" if np.array_equal(still, weights) else "a mean of zero moves nothing at first"


CONTRACTS: Mapping[str, Callable[[Any], str]] = {
    "adapter": _adapter,
    "aggregator": _aggregator,
    "metric": _metric,
    "prompt": _prompt,
    "retriever": _retriever,
}
