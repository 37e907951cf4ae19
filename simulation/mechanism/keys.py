"""Where noise and masks come from: nothing that somebody else knows may be enough to make them again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from client.agent_home import AgentHome, AgentSettings
from privacy.fixedpoint import from_ring
from privacy.secagg import keys
from simulation.mechanism.layer import Check
from simulation.mechanism.people import People, layout_of
from simulation.run_folder import RunFolder

RANK: Final = 16
WITHIN_S: Final = 0.5  # of one second of the clock


def derived_keys(folder: Path, root: bytes, mask_keys: int) -> Iterator[Check]:
    """Yield the checks on noise keys and mask keys; `folder` is made and used."""
    yield _made_anew(folder)
    yield _by_the_key(folder, root)
    yield from _mask_keys(mask_keys)


def _made_anew(folder: Path) -> Check:
    """Check the makers of noise keys: two runs of one configuration, two homes of one name, share none."""
    roots, homes = set(), set()
    for i in range(2):
        (folder / f"run-{i}" / "checkpoints").mkdir(parents=True)
        roots.add(RunFolder(folder / f"run-{i}").secrets(None).noise_root)
        home = AgentHome(folder / f"home-{i}")
        home.save(AgentSettings("ann", "no-model"))
        homes.add(home.noise_key)
    detail = f"{len(roots)} noise roots of two equal runs, {len(homes)} noise keys of two equal devices"
    return Check("noise keys are drawn", len(roots) == len(homes) == 2, detail)


def _by_the_key(folder: Path, root: bytes) -> Check:
    """Check that noise differs where only the noise key does: same name, question, update, program and second.

    What is left, if noise were the same, is public: the clock, a seed, the query.
    """
    other = hashlib.sha256(b"another" + root).digest()
    layout, answers = layout_of(RANK), []
    crews = [People(folder / f"key-{i}", 2, layout, each) for i, each in enumerate((root, other))]
    try:
        query = crews[0].query(0, transport="ideal")
        if time.time() % 1 > WITHIN_S:
            time.sleep(1 - time.time() % 1)
        for crew in crews:
            answers.append(from_ring(crew.answer(crew.users[0], query, np.zeros(layout.dim)).vector) / query.sigma)
    finally:
        for crew in crews:
            crew.close()
    score = float(answers[0] @ answers[1]) / np.sqrt(layout.dim)
    return Check("noise follows the key", abs(score) < 6, f"two keys, all else equal: {score:+.2f} standard errors")


def _mask_keys(number: int) -> Iterator[Check]:
    """Check by many draws that mask keys come from a space without collisions, and that every bit of a secret counts.

    Among k keys of 32 bits k^2 / 2^33 pairs are equal on average: 8 at k = 2^18, and none once in 3,000 times.
    """
    context, view, names = bytes(32), bytes(32), (("ann", bytes(32)), ("bob", bytes(31) + b"\x01"))

    def pair(secret: bytes) -> bytes:
        return keys.pair_mask_key(context, view, secret, *names)

    def own(secret: bytes) -> bytes:
        return keys.self_mask_key(context, view, "ann", secret)

    for name, key_of in (("pair", pair), ("self", own)):
        drawn = {key_of(i.to_bytes(32, "little")) for i in range(number)}
        deaf = [bit for bit in range(256) if key_of((1 << bit).to_bytes(32, "little")) == key_of(bytes(32))]
        equal = number - len(drawn)
        detail = f"{equal} equal among {number:,}, {len(deaf)} of 256 bits of the secret without effect"
        yield Check(f"{name} mask keys", not equal and not deaf and _wide(drawn), detail)


def _wide(keys: set[bytes]) -> bool:
    """Return whether every byte of the keys takes every value: a short seed with zeros behind it does not."""
    sample = np.frombuffer(b"".join(list(keys)[:4096]), np.uint8).reshape(-1, 32)
    return all(len(np.unique(sample[:, place])) > 200 for place in range(32))
