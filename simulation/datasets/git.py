"""The authors of a git repository as people: one document a commit, the newest held out.

    git:FOLDER     an author's commits in time; the lines that a commit adds are their own, its message and the names of
                   files are context; of each author's commits the last quarter are test

Addresses become pseudonyms (`datasets.jsonl.user_name`). Merges and commits that add no line are left out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from client.documents import Document, Person, own_words
from client.import_git import code_of_all
from client.records import TEST_SHARE
from privacy.errors import DataError
from simulation.datasets.jsonl import user_name
from simulation.datasets.loaded import Loaded


def load(folder: Path, min_test: int, _strict: bool = False) -> Loaded:
    """Return the authors of the repository in `folder`, those with most words first. Raises DataError for none."""
    if not any((folder / name).exists() for name in (".git", "HEAD")):
        raise DataError("git: no repository is in the folder; get it from one's own disk, as a clone")
    digest, by_user = hashlib.sha256(), dict[str, list[Document]]()
    for address, commit in code_of_all(folder):
        digest.update(commit.key.encode())
        documents = by_user.setdefault(user_name(address), [])
        name = f"{user_name(address)}.{len(documents)}"
        documents.append(Document(name, commit.spans, "history", len(documents)))
    if not by_user:
        raise DataError(f"{folder.name}: no commit that adds a line")
    people = [Person(user, _split(documents)) for user, documents in by_user.items()]
    people.sort(key=lambda p: (len(p.test) < min_test, -own_words(p.history), p.user))
    return Loaded(tuple(people), (), {"authors": len(people)}, digest.hexdigest())


def _split(documents: list[Document]) -> tuple[Document, ...]:
    held = max(1, round(len(documents) / TEST_SHARE)) if len(documents) > 1 else 0
    cut = len(documents) - held
    return tuple(Document(d.id, d.spans, "test" if i >= cut else "history", i) for i, d in enumerate(documents))
