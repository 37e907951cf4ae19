"""What people prefer, as questions with several answers: PrefEval, and PRISM's first turns.

    PrefEval   *.jsonl of {preference, question, options: [right, wrong, ...]}: one person a line, who has said so once
    PRISM      conversations.jsonl: of the models' answers to a person's first words, the one that they chose

The person's own words of a test document are the answer that they would rather have, its `alternatives` the others.
(Zhao et al. 2025, arXiv:2502.09597; Kirk et al. 2024, arXiv:2404.16019.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.records import BrokenLine
from privacy.errors import DataError
from simulation.datasets.dialogues import PRISM_WHERE
from simulation.datasets.json_stream import elements
from simulation.datasets.jsonl import load_records
from simulation.datasets.loaded import Loaded

PREFEVAL_WHERE = "github.com/amazon-science/PrefEval, as one JSON object a line with preference, question and options"
Records = Iterator[tuple[int, dict[str, Any] | BrokenLine]]


def load_prefeval(folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of PrefEval, each with one preference and one question. Raises DataError for no file."""
    paths = sorted(folder.glob("prefeval*.jsonl"))
    if not paths:
        raise DataError(f"prefeval: no prefeval*.jsonl is in the folder; get it from {PREFEVAL_WHERE}")
    digest = hashlib.sha256()
    return load_records("prefeval", _prefeval(paths[0], digest), min(min_test, 1), strict, digest)


def _prefeval(path: Path, digest: hashlib._Hash) -> Records:
    for number, row in elements(path, digest):
        options = row.get("options") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(options, list) or len(options) < 2:
            yield number, BrokenLine("no preference with question and options")
            continue
        user = f"prefeval-{number:05d}"
        yield number, {"user": user, "i": 0, "split": "history", "text": str(row.get("preference", ""))}
        asked = {"input": str(row.get("question", "")), "output": str(options[0])}
        yield number, {"user": user, "i": 1, "split": "test", **asked, "alternatives": [str(o) for o in options[1:]]}


def load_prism(folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of PRISM with the answers that they chose. Raises DataError for a file that is not there."""
    path = folder / "conversations.jsonl"
    if not path.is_file():
        raise DataError(f"prism-preference: {path.name} is not in the folder; get it from {PRISM_WHERE}")
    digest = hashlib.sha256()
    return load_records("prism-preference", _prism(path, digest), min_test, strict, digest)


def _prism(path: Path, digest: hashlib._Hash) -> Records:
    for number, row in elements(path, digest):
        turns = row.get("conversation_history") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(turns, list) or "user_id" not in row:
            yield number, BrokenLine("no conversation with user_id and conversation_history")
            continue
        first = [turn for turn in turns if isinstance(turn, dict) and turn.get("turn") == 0]
        asked = [str(turn["content"]) for turn in first if turn.get("role") == "user"]
        chosen = [str(t["content"]) for t in first if t.get("role") == "model" and t.get("if_chosen")]
        others = [str(t["content"]) for t in first if t.get("role") == "model" and not t.get("if_chosen")]
        if not (asked and chosen and others):
            yield number, BrokenLine("no first turn with a chosen answer and another")
            continue
        record = {"user": str(row["user_id"]), "i": number, "input": asked[0], "output": chosen[0]}
        yield number, {**record, "alternatives": others}
