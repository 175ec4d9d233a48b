"""The eight models' log densities against numpy and scipy: the same numbers, constants included."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from posteriordb import PROBLEMS, key_of
from posteriordb.densities import LOG_DENSITIES, points

NUM_POINTS = 12


def _log_densities(name, test_name):
    """What the model says and what the formulas say; (NUM_POINTS,) each."""
    problem = PROBLEMS[name]
    bound, at = problem.bound(), points(name, NUM_POINTS, key_of(test_name))
    expected = np.array([LOG_DENSITIES[name](problem.data, p) for p in at])
    assert np.isfinite(expected).all()
    assert np.ptp(expected) > 1, "the points do not tell densities apart"
    return np.array([float(bound.log_density(p)) for p in at]), expected


@pytest.mark.parametrize("name", PROBLEMS)
def test_log_density(name, request):
    found, expected = _log_densities(name, request.node.name)
    # the least favourable is the regression with predictors of size 500 and residuals of size 1: rounding the
    # data to float32 alone moves its sum of squares by 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-3)


@pytest.mark.x64
@pytest.mark.parametrize("name", PROBLEMS)
def test_log_density_float64(name, request):
    assert jax.config.jax_enable_x64
    found, expected = _log_densities(name, request.node.name)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
