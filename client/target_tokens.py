"""Which tokens of a text are the owner's, and which of them are read where the text is too long."""

from __future__ import annotations

from collections.abc import Sequence

OWNERS_SHARE = 4  # one in so many of the tokens read is kept for the owner's words at least


def fitted(
    ids: Sequence[int], inside: Sequence[bool], max_tokens: int, special_first: bool
) -> tuple[list[int], list[bool]]:
    """Return at most `max_tokens` tokens and which of them are targets.

    The first ones, unless what stands before the first target leaves less than a quarter of them for targets: then its
    beginning is left out (not a special token at the very start), so that a headline behind a long article is read.
    """
    skipped, start = 0, int(special_first)
    if len(ids) > max_tokens and True in inside:
        first = list(inside).index(True)
        skipped = max(0, first + min(len(ids) - first, max_tokens // OWNERS_SHARE) - max_tokens)
    kept = slice(start + skipped, start + skipped + max_tokens - start)
    return [*ids[:start], *ids[kept]], [*inside[:start], *inside[kept]]


def targets_in(text: str, offsets: Sequence[tuple[int, int]], ranges: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether all its characters but leading white space lie inside the ranges."""
    own = bytearray(len(text))
    for start, end in ranges:
        own[start:end] = b"\1" * (end - start)
    result = []
    for start, end in offsets:
        while start < end - 1 and text[start].isspace():
            start += 1
        result.append(end > start and all(own[start:end]))
    return result
