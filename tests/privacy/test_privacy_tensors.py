"""What is written is what is read, however an array lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load

from privacy.tensors import tensors_to_bytes

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("array", [ROWS, ROWS.T, ROWS[:, ::-1], ROWS[::2, 1:3], np.asfortranarray(ROWS), ROWS[:, 2]])
def test_an_array_comes_back_as_it_was(array: np.ndarray) -> None:
    back = load(tensors_to_bytes({"a": array, "b": ROWS}, {"format": "pt"}))
    np.testing.assert_array_equal(back["a"], array)
    np.testing.assert_array_equal(back["b"], ROWS)


def test_order_in_memory_does_not_reach_the_bytes() -> None:
    assert tensors_to_bytes({"a": ROWS.T}) == tensors_to_bytes({"a": ROWS.T.copy()})
