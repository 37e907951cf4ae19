"""LaMP 1 to 7 and LongLaMP: a question with the profile of the person who asks. Layout from documentation.

    LaMP-N      dev_questions.json [{id, input, profile: [{...}]}], dev_outputs.json {golds: [{id, output}]}
    LongLaMP    one file of objects {input, output, profile: [{...}]}, one a person, with name, author or reviewerId

A question is a person: the profile is their history, the question with its gold output their test document. With
`train` in the folder and no `dev`, those files are read. (Salemi et al. 2024, arXiv:2304.11406; Kumar et al. 2024,
arXiv:2407.11016.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from client.records import BrokenLine
from privacy.errors import DataError
from simulation.datasets.json_stream import elements
from simulation.datasets.jsonl import load_records
from simulation.datasets.loaded import Loaded

LAMP_WHERE = "lamp-benchmark.github.io (questions and outputs of one task, by user or by time)"
LONGLAMP_WHERE = "the LongLaMP data set on the Hugging Face hub (one task as JSON lines)"
# What of a profile's entry is context, what is the person's own.
LAMP: Mapping[int, tuple[str, tuple[str, ...]]] = {
    1: ("", ("title", "abstract")),
    2: ("description", ("tag",)),
    3: ("text", ("score",)),
    4: ("text", ("title",)),
    5: ("abstract", ("title",)),
    6: ("text", ("title", "subject")),
    7: ("", ("text",)),
}
LONGLAMP: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "email": (("subject",), ("text", "content", "email")),
    "abstract": (("title",), ("abstract",)),
    "review": (("description", "overall", "summary"), ("reviewText",)),
    "topic": (("summary",), ("content",)),
}
NAMES = ("reviewerId", "author", "name", "user", "id")
Records = Iterator[tuple[int, dict[str, Any] | BrokenLine]]


def load_lamp(task: int, folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of LaMP-`task`. Raises DataError for a file that is not there, with where to get it."""
    parts = ("dev", "train")
    part = next((p for p in parts if (folder / f"{p}_questions.json").is_file()), "dev")
    questions, outputs = folder / f"{part}_questions.json", folder / f"{part}_outputs.json"
    for path in (questions, outputs):
        if not path.is_file():
            raise DataError(f"lamp-{task}: {path.name} is not in the folder; get it from {LAMP_WHERE}")
    digest = hashlib.sha256()
    return load_records(f"lamp-{task}", _lamp(task, questions, _golds(outputs), digest), min_test, strict, digest)


def _golds(path: Path) -> dict[str, str]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {str(gold["id"]): str(gold["output"]) for gold in tree["golds"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path.name}: is no file of LaMP outputs (golds with id and output)") from None


def _lamp(task: int, path: Path, golds: Mapping[str, str], digest: hashlib._Hash) -> Records:
    context, own = LAMP[task]
    for number, question in elements(path, digest):
        if isinstance(question, BrokenLine) or not _is_question(question) or str(question["id"]) not in golds:
            yield number, BrokenLine("no question with id, input, profile and a gold output")
            continue
        user = f"lamp{task}-{question['id']}"
        for place, entry in enumerate(question["profile"]):
            yield number, _entry(user, place, entry, (context,) if context else (), own)
        gold = golds[str(question["id"])]
        yield number, _test(user, len(question["profile"]), question["input"], gold)


def _is_question(value: Any) -> bool:
    return isinstance(value, dict) and {"id", "input", "profile"} <= set(value) and isinstance(value["profile"], list)


def _entry(
    user: str, place: int, entry: Any, context: tuple[str, ...], own: tuple[str, ...]
) -> dict[str, Any] | BrokenLine:
    if not isinstance(entry, dict):
        return BrokenLine("an entry of a profile is no object")
    words = "\n".join(str(entry[name]) for name in own if entry.get(name) not in (None, ""))
    if not words.strip():
        return BrokenLine("an entry of a profile has no text of the person's own")
    before = "\n".join(str(entry[name]) for name in context if entry.get(name) not in (None, ""))
    return {"user": user, "i": place, "split": "history", "input": before, "output": words}


def _test(user: str, place: int, question: Any, output: Any) -> dict[str, Any]:
    return {"user": user, "i": place, "split": "test", "input": str(question), "output": str(output)}


def load_longlamp(task: str, folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of a LongLaMP task (email, abstract, review, topic): the first JSON file in the folder.

    People with several questions keep all of them as test documents; a profile is read once. Raises DataError.
    """
    paths = sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])
    if not paths:
        raise DataError(f"longlamp-{task}: no JSON file is in the folder; get it from {LONGLAMP_WHERE}")
    digest = hashlib.sha256()
    return load_records(f"longlamp-{task}", _longlamp(task, paths[0], digest), min_test, strict, digest)


def _longlamp(task: str, path: Path, digest: hashlib._Hash) -> Records:
    context, own = LONGLAMP[task]
    seen: set[str] = set()
    for number, row in elements(path, digest):
        if isinstance(row, BrokenLine) or not isinstance(row, dict) or not {"input", "output", "profile"} <= set(row):
            yield number, BrokenLine("no row with input, output and profile")
            continue
        user = next((str(row[name]) for name in NAMES if row.get(name)), f"row-{number}")
        if user not in seen:
            seen.add(user)
            for place, entry in enumerate(row["profile"]):
                yield number, _entry(user, place, entry, context, own)
        yield number, _test(user, len(row["profile"]) + number, row["input"], row["output"])
