"""People with a planted truth: which of several kinds each belongs to, so that discovered personas can be scored.

    python -m simulation.datasets.planted mixture OUT.jsonl SET.jsonl SET.jsonl ... [--people 250] [--seed 0]
    python -m simulation.datasets.planted style   OUT.jsonl SET.jsonl [--people 250] [--seed 0]

`mixture`: kinds are the files that people come from. `style`: people of one file, each with one of the ways of writing
of `STYLES`, which change how something is said along expertise, informativeness and style, and not what it is about.
OUT.jsonl holds people as `confide simulate` reads them, OUT.truth.json the kind of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = dict[str, Any]
Rewrite = Callable[[str], str]

_SHORT = {
    "i am": "i'm",
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "it is": "it's",
    "that is": "that's",
    "i have": "i've",
    "cannot": "can't",
    "is not": "isn't",
    "was not": "wasn't",
    "i will": "i'll",
    "you are": "you're",
}
_PLAIN_TO_LEARNED = {
    "use": "utilise",
    "used": "utilised",
    "very": "exceedingly",
    "big": "substantial",
    "good": "commendable",
    "great": "exemplary",
    "think": "surmise",
    "like": "appreciate",
    "really": "genuinely",
    "lot": "multitude",
    "get": "obtain",
    "got": "obtained",
    "but": "however",
    "so": "consequently",
}


def _expand(text: str) -> str:
    for full, short in _SHORT.items():
        text = re.sub(rf"\b{short}\b", full, text, flags=re.IGNORECASE)
    return text


def _contract(text: str) -> str:
    for full, short in _SHORT.items():
        text = re.sub(rf"\b{full}\b", short, text, flags=re.IGNORECASE)
    return text


def careful(text: str) -> str:
    """Return the text in full forms, each sentence with a capital and a full stop."""
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+", _expand(text)) if s.strip()]
    return " ".join(s[0].upper() + s[1:].rstrip(".!?") + "." for s in sentences)


def hasty(text: str) -> str:
    """Return the text in lower case with contractions, without capitals, full stops or commas."""
    return re.sub(r"\s+", " ", re.sub(r"[.,;:!?\"]", "", _contract(text).lower())).strip()


def loud(text: str) -> str:
    """Return the text in capitals, each sentence with three exclamation marks."""
    return re.sub(r"[.!?]+", "!!!", text.upper())


def learned(text: str) -> str:
    """Return the text with longer words for plain ones, and a semicolon where a sentence ends."""
    found = re.sub(r"[A-Za-z']+", lambda m: _PLAIN_TO_LEARNED.get(m.group().lower(), m.group()), _expand(text))
    return re.sub(r"[.!?]+\s+", "; ", found).rstrip(".!?") + "."


STYLES: Mapping[str, Rewrite] = {"careful": careful, "hasty": hasty, "loud": loud, "learned": learned}


def mixture(paths: Sequence[Path], people: int, seed: int) -> tuple[list[Record], dict[str, int]]:
    """Return the records of `people` people of each file, and the number of the file that each comes from."""
    records: list[Record] = []
    truth: dict[str, int] = {}
    for kind, path in enumerate(paths):
        for user, some in sorted(_drawn(path, people, seed).items()):
            name = _name(kind, user)
            truth[name] = kind
            records += [{**record, "user": name, "group": ""} for record in some]
    return records, truth


def styled(path: Path, people: int, seed: int, styles: Iterable[str] = STYLES) -> tuple[list[Record], dict[str, int]]:
    """Return the records of `people` people of a file, each rewritten in one of `styles`, and the style of each.

    Styles go round in an order drawn by `seed`, so each has as many people as the next, whatever they write about.
    """
    rewrites = [STYLES[name] for name in styles]
    users = sorted(_drawn(path, people, seed).items())
    order = np.random.default_rng([seed, 1]).permutation(len(users))
    records: list[Record] = []
    truth: dict[str, int] = {}
    for place, (user, some) in zip(order.tolist(), users, strict=True):
        kind = place % len(rewrites)
        name = _name(9, user)  # the name tells nothing of the style
        truth[name] = kind
        records += [{**_rewritten(record, rewrites[kind]), "user": name, "group": ""} for record in some]
    return records, truth


def _rewritten(record: Record, rewrite: Rewrite) -> Record:
    """Return the record with the person's own words rewritten; what others wrote stays."""
    changed = dict(record)
    if record.get("turns") is not None:
        changed["turns"] = [_own_turn(turn, rewrite) for turn in record["turns"]]
    for name in ("output", "text"):
        if isinstance(record.get(name), str) and record[name].strip():
            changed[name] = rewrite(record[name])
    return changed


def _own_turn(turn: Any, rewrite: Rewrite) -> Any:
    """Return a turn rewritten where it is the person's own: a text, or a pair that begins with "me"."""
    if isinstance(turn, str):
        return rewrite(turn)
    return [turn[0], rewrite(turn[1])] if turn[0] == "me" else turn


def _drawn(path: Path, people: int, seed: int) -> dict[str, list[Record]]:
    by_user: dict[str, list[Record]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            record = json.loads(line)
            by_user[str(record["user"])].append(record)
    users = np.random.default_rng(seed).permutation(sorted(by_user))[:people].tolist()
    return {user: by_user[user] for user in users}


def _name(kind: int, user: str) -> str:
    return "p" + hashlib.sha256(f"{kind}/{user}".encode()).hexdigest()[:12]


def adjusted_rand_index(truth: Sequence[int], found: Sequence[int]) -> float:
    """Return how far two partitions agree beyond chance: 1 for the same, about 0 for independent ones.

        (sum of pairs together in both - expected) / (mean of pairs together in each - expected)

    Hubert, Arabie 1985, "Comparing partitions". 1 where both put everybody together.
    """
    table: NDArray[np.float64] = np.zeros((max(truth) + 1, max(found) + 1))
    np.add.at(table, (np.asarray(truth), np.asarray(found)), 1)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns, every = pairs(table), pairs(table.sum(1)), pairs(table.sum(0)), pairs(table.sum(keepdims=True))
    expected = rows * columns / every if every else 0.0
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def write(out: Path, records: Iterable[Record], truth: Mapping[str, int]) -> None:
    """Write people and truth beside each other."""
    out.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    out.with_suffix(".truth.json").write_text(json.dumps(dict(truth), indent=0, sort_keys=True), encoding="utf-8")


def main() -> None:
    """Write planted people from the command line, see the module's first lines."""
    parser = argparse.ArgumentParser(description="People with a planted truth.")
    parser.add_argument("how", choices=("mixture", "style"))
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--people", type=int, default=250, help="of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--styles", default=",".join(STYLES))
    given = parser.parse_args()
    if given.how == "mixture":
        write(given.out, *mixture(given.sets, given.people, given.seed))
    else:
        write(given.out, *styled(given.sets[0], given.people, given.seed, given.styles.split(",")))


if __name__ == "__main__":
    main()
