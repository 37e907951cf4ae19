"""Steps along steep directions get shorter, and nothing else changes; a campaign takes them from its public arrays."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.errors import ConfigError
from server.curvature import Curvature


def curvature(k: int, dim: int, steepness: float) -> Curvature:
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, k)))
    return Curvature(np.ascontiguousarray(q.T), np.full(k, steepness))


def test_it_is_the_inverse_of_the_damped_matrix_up_to_a_factor() -> None:
    rng = np.random.default_rng(1)
    steep, damping = curvature(3, 12, 40.0), 10.0
    dense = steep.directions.T @ np.diag(steep.steepness) @ steep.directions + damping * np.eye(12)
    mean = rng.standard_normal(12)
    np.testing.assert_allclose(steep.flattened(mean, damping), damping * np.linalg.solve(dense, mean), atol=1e-12)


def test_gradient_descent_survives_a_rate_that_diverges_without() -> None:
    steep = curvature(2, 20, 100.0)
    hessian = np.eye(20) + steep.directions.T @ np.diag(steep.steepness) @ steep.directions
    target = np.random.default_rng(2).standard_normal(20)
    plain, flat = np.zeros(20), np.zeros(20)
    for _ in range(40):
        plain = plain + 0.3 * hessian @ (target - plain)
        flat = flat + 0.3 * steep.flattened(hessian @ (target - flat), 1.0)
    assert np.linalg.norm(plain - target) > 1e6
    assert np.linalg.norm(flat - target) < 0.01


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError):
        Curvature(np.eye(3), np.ones(2))
    with pytest.raises(ConfigError, match="right angles"):
        Curvature(np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]]), np.ones(2))
    with pytest.raises(ConfigError):
        Curvature(np.eye(3), np.array([1.0, np.nan, 1.0]))
    with pytest.raises(ConfigError):
        curvature(2, 8, 1.0).flattened(np.zeros(9), 1.0)
