"""What an agent stored to send again byte for byte, and how it is forgotten without being answered twice."""

from __future__ import annotations

from pathlib import Path

from privacy.files import write_atomic

ANSWERS = "answers"


def forget_answers(folder: Path) -> int:
    """Empty what an agent in `folder` stored to send again, and return how many files that were.

    The empty files stay: they say that an event was answered, so that it is never answered again with other text, which
    would be a second answer for one charge.
    """
    kept = [p for p in sorted((folder / ANSWERS).glob("*")) if p.is_file() and p.stat().st_size]
    for path in kept:
        write_atomic(path, b"", mode=0o600)
    return len(kept)
