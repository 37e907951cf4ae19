"""PRISM and ConvAI2: dialogues whose one side is the person's. Layout from documentation.

    PRISM      conversations.jsonl {user_id, conversation_id, conversation_history: [{turn, role, content, if_chosen}]}
    ConvAI2    numbered lines; "your persona: ...", then "partner's words<tab>own words[<tab>...]"

In PRISM the person's turns are their own words, the chosen answers of the models context. (Kirk et al. 2024,
arXiv:2404.16019.) In ConvAI2 whoever speaks with the same persona lines is one person. (Dinan et al. 2019,
arXiv:1902.00098.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.records import BrokenLine
from privacy.canonical import sha256_hex
from privacy.errors import DataError
from simulation.datasets.json_stream import elements
from simulation.datasets.jsonl import load_records
from simulation.datasets.loaded import Loaded

PRISM_WHERE = "the PRISM alignment data set on the Hugging Face hub (conversations.jsonl)"
CONVAI2_WHERE = "ParlAI's ConvAI2 task (valid_self_original.txt or train_self_original.txt)"
CONVAI2_FILES = ("valid_self_original.txt", "train_self_original.txt")
PERSONA = "your persona: "
Records = Iterator[tuple[int, dict[str, Any] | BrokenLine]]


def load_prism(folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of PRISM, one document a conversation. Raises DataError for a file that is not there."""
    path = folder / "conversations.jsonl"
    if not path.is_file():
        raise DataError(f"prism: {path.name} is not in the folder; get it from {PRISM_WHERE}")
    digest = hashlib.sha256()
    return load_records("prism", _prism(path, digest), min_test, strict, digest)


def _prism(path: Path, digest: hashlib._Hash) -> Records:
    for number, row in elements(path, digest):
        history = row.get("conversation_history") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(history, list) or "user_id" not in row:
            yield number, BrokenLine("no conversation with user_id and conversation_history")
            continue
        turns = [
            ["me" if turn["role"] == "user" else "you", str(turn["content"])]
            for turn in history
            if isinstance(turn, dict) and {"role", "content"} <= set(turn) and (turn["role"] == "user" or _chosen(turn))
        ]
        yield number, {"user": str(row["user_id"]), "i": number, "turns": turns}


def _chosen(turn: dict[str, Any]) -> bool:
    return bool(turn.get("if_chosen"))


def load_convai2(folder: Path, min_test: int, strict: bool = False) -> Loaded:
    """Return the people of ConvAI2, one document a dialogue. Raises DataError for a file that is not there."""
    path = next((folder / name for name in CONVAI2_FILES if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"convai2: {CONVAI2_FILES[0]} is not in the folder; get it from {CONVAI2_WHERE}")
    digest = hashlib.sha256()
    return load_records("convai2", _convai2(path, digest), min_test, strict, digest)


def _convai2(path: Path, digest: hashlib._Hash) -> Records:
    persona: list[str] = []
    turns: list[list[str]] = []
    begun = 1
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            digest.update(raw)
            place, _, rest = raw.decode(errors="replace").rstrip("\r\n").partition(" ")
            if place == "1" and number > 1:
                yield begun, _dialogue(persona, turns, begun)
                persona, turns, begun = [], [], number
            if rest.startswith(PERSONA):
                persona.append(rest.removeprefix(PERSONA))
            elif "\t" in rest:
                partner, own = rest.split("\t")[:2]
                turns += [["you", partner], ["me", own]]
            elif rest.strip():
                yield number, BrokenLine("neither a persona line nor a pair of turns")
    yield begun, _dialogue(persona, turns, begun)


def _dialogue(persona: list[str], turns: list[list[str]], number: int) -> dict[str, Any] | BrokenLine:
    if not turns:
        return BrokenLine("a dialogue without turns")
    user = "persona-" + sha256_hex("\n".join(sorted(persona)).encode())[:12]
    return {"user": user, "i": number, "turns": turns}
