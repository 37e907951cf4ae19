"""SmolLM2 on both engines: the same release, bit for bit, with replayed noise and masked sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.config import load_config
from simulation.progress import Progress
from simulation.run import simulate
from tests.simulation.conftest import FAST, write_people

pytestmark = pytest.mark.slow
REAL = (
    'model="smollm2-135m"',
    "rounds=1",
    "adapter.layers=2",
    "adapter.samples=8",
    "local.own_tokens=24",
    "evaluation.test_tokens=16",
    "compare_without_noise=false",
    "privacy.transport=masked",
)


def test_both_engines_release_the_same_tensors_with_the_real_model(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people.jsonl", 16)
    (tmp_path / "noise.key").write_bytes(bytes(range(32)))
    tensors = {}
    for engine in ("local", "flower"):
        settings = [*FAST, f'people="{people}"', *REAL, f"engine={engine}"]
        out = tmp_path / engine
        simulate(load_config(None, settings), out, Progress(quiet=True), replay=tmp_path / "noise.key")
        tensors[engine] = (out / "release" / "global" / "adapter_model.safetensors").read_bytes()
    assert tensors["local"] == tensors["flower"]
    assert len(set(tensors["local"])) > 100, "an adapter of zeros would be equal as well"
