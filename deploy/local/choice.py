# Run in the end-to-end test (tests/deploy).
"""What may be chosen for a federation on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class Choice:
    """What may be chosen. Two people give no privacy worth the name: this is a rehearsal of the machinery."""

    model: str
    people: Path | None = None
    rounds: int = 1
    layers: int = 10
    rank: int = 8
    samples: int = 64
    sample_tokens: int = 112
    own_tokens: int = 128
    noise_multiplier: Fraction = Fraction(1)
    clip: Fraction = Fraction(1, 10)
    scrub: bool = True
    hold_s: float = 30.0
    stage_s: float = 90.0
