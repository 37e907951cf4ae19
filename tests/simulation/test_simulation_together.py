"""A campaign whose people train together is the campaign whose people train one by one, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.errors import ConfigError
from simulation.config import load_config

FEW = ("rounds=2", "compare_without_noise=false", "local.steps=1", "privacy.transport=off")


def test_the_release_moves_in_its_last_bits_alone(run: Any, tmp_path: Path) -> None:
    """Without noise: its name hangs on the settings, `local.together` among them."""
    found, hosts = [], list[Any]()
    for together in (1, 5):
        out = tmp_path / f"run{together}"
        report = run(out, *FEW, f"local.together={together}", hosts=hosts)
        assert [row["survivors"] for row in report["rounds"]] == [18, 18]
        found.append(load_file(out / "release" / "global" / "adapter_model.safetensors"))
    one, many = found
    assert set(one) == set(many)
    for name, tensor in one.items():
        np.testing.assert_allclose(many[name], tensor, rtol=0, atol=2e-3 * float(np.abs(tensor).max()))


@pytest.mark.parametrize(
    "setting", ["engine=flower", "cohort=16", "local.steps=2", "local.sampling_rate=0.5", 'privacy.unit="record"']
)
def test_it_is_refused_where_people_would_not_train_alike(setting: str) -> None:
    alike = ["engine=local", "local.steps=1", "local.sampling_rate=1.0", "local.together=2"]
    load_config(None, alike).check_together()
    refused = load_config(None, [*alike, setting])
    with pytest.raises(ConfigError, match=r"local\.together takes several people's step at once"):
        refused.check_together()
