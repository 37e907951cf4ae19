"""One line of `bench --json`: ours against a peer and against the machine's limit."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict):
    """One line of `bench --json`: ours against the peer and against the machine's limit; `ratio` above 1 is better."""

    work: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    limit: float | None
    limit_ratio: float | None
    same: str


def less_is_better(
    work: str, unit: str, ours: float, peer: tuple[str, float], same: str, limit: float | None = None
) -> Row:
    """Return a row of a cost (seconds, megabytes): `ratio` is the peer's over ours, `limit_ratio` ours over the limit.

    `peer` is its name and its figure; `limit` the least that this machine could do, None where there is none.
    """
    name, theirs = peer
    return Row(
        work=work,
        unit=unit,
        ours=ours,
        peer=theirs,
        peer_name=name,
        ratio=theirs / ours,
        limit=limit,
        limit_ratio=ours / limit if limit else None,
        same=same,
    )
