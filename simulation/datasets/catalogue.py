"""The data sets that `people = "NAME:FOLDER"` names, what each declares, and on what it has been run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from privacy.errors import DataError
from simulation.datasets import columns, dialogues, git, lamp, preferences
from simulation.datasets.loaded import Loaded

Loader = Callable[[Path, int, bool], Loaded]
_TEXT = {"user_text": True, "numeric": False, "categorical": False, "timestamps": False, "filtered": True}


@dataclass(frozen=True)
class DataSet:
    """One data set: name, title, flags of the survey, licence, where to get it, on what its loader has run."""

    name: str
    title: str
    licence: str
    where: str
    marked: str
    flags: Mapping[str, bool]
    load: Loader


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, DataSet]:
    """Return every data set by its name."""
    found = [_of_map(columns.ColumnMap.read(path)) for path in sorted(columns.MAPS.glob("*.toml"))]
    lamp_tasks = ("citation", "movie tag", "product rating", "news headline", "scholarly title", "subject", "tweet")
    numeric, categorical = {**_TEXT, "numeric": True}, {**_TEXT, "categorical": True}
    flags = {2: categorical, 3: numeric}
    for task, words in enumerate(lamp_tasks, 1):
        load = partial(lamp.load_lamp, task)
        found.append(
            _coded(f"lamp-{task}", f"LaMP-{task}, {words}", "CC BY-NC-SA 4.0", lamp.LAMP_WHERE, load, flags.get(task))
        )
    for kind in lamp.LONGLAMP:
        load = partial(lamp.load_longlamp, kind)
        found.append(_coded(f"longlamp-{kind}", f"LongLaMP, {kind}", "as given on its page", lamp.LONGLAMP_WHERE, load))
    prism = {**_TEXT, "numeric": True, "timestamps": True, "filtered": False}
    found.append(
        _coded(
            "prism",
            "PRISM",
            "CC BY 4.0 (human text), CC BY-NC 4.0 (models)",
            dialogues.PRISM_WHERE,
            dialogues.load_prism,
            prism,
        )
    )
    chosen = {**prism, "numeric": False, "categorical": True, "user_text": False}
    found.append(
        _coded("prism-preference", "PRISM, answers chosen", "CC BY-NC 4.0 (models)", dialogues.PRISM_WHERE,
               preferences.load_prism, chosen)
    )  # fmt: skip
    prefeval = {**chosen, "timestamps": False}
    found.append(
        _coded("prefeval", "PrefEval", "CC BY-NC 4.0", preferences.PREFEVAL_WHERE, preferences.load_prefeval, prefeval,
               columns.RUN_ON_FILES)
    )  # fmt: skip
    code = {**_TEXT, "timestamps": True, "filtered": False}
    found.append(
        _coded("git", "A git repository, by author", "that of the repository", "one's own disk", git.load, code,
               columns.RUN_ON_FILES)
    )  # fmt: skip
    found.append(_coded("convai2", "ConvAI2", "as given by ParlAI", dialogues.CONVAI2_WHERE, dialogues.load_convai2))
    return {each.name: each for each in found}


def _of_map(spec: columns.ColumnMap) -> DataSet:
    load = partial(columns.load, spec)
    return DataSet(spec.name, spec.title, spec.licence, spec.where, spec.marked, spec.flags, load)


def _coded(
    name: str,
    title: str,
    licence: str,
    where: str,
    load: Loader,
    flags: Mapping[str, bool] | None = None,
    marked: str = columns.FROM_DOCUMENTATION,
) -> DataSet:
    return DataSet(name, title, licence, where, marked, flags or _TEXT, load)


def load(source: str, min_test: int, strict: bool = False) -> Loaded | None:
    """Return the people of "NAME:FOLDER", or of "MAP.toml:FOLDER" by a map of one's own; None for another source.

    Raises DataError where the map or a file is missing or broken.
    """
    name, colon, folder = source.partition(":")
    if not colon:
        return None
    if name in catalogue():
        return catalogue()[name].load(_folder(name, folder), min_test, strict)
    if name.endswith(".toml"):
        return columns.load(columns.ColumnMap.read(Path(name)), _folder(name, folder), min_test, strict)
    if Path(source).exists():
        return None
    raise DataError(f"no data set {name!r}; there is {', '.join(catalogue())}, or a map of columns NAME.toml")


def _folder(name: str, folder: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{name}: {path.name or 'nothing'} is no folder; give {name}:FOLDER")
    return path
