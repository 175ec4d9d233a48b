"""Six candidate points, on which everything can be listed."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from mcx.estimators.least_squares import (
    on_grid,
)

NODES = np.array([-1.0, -0.7, -0.1, 0.2, 0.5, 0.9])
MASSES = np.array([0.1, 0.25, 0.15, 0.1, 0.3, 0.1])
SLOW = pytest.mark.slow


def small(m):
    return on_grid(lambda x: x[0] ** jnp.arange(m), NODES[:, None], MASSES)


def exact_features(m):
    """Orthonormal on the grid, in float64, from another QR."""
    return np.linalg.qr(np.vander(NODES, m, increasing=True) * np.sqrt(MASSES)[:, None])[0]


def where(points):
    """Indices of candidates."""
    return np.argmin(np.abs(np.asarray(points)[..., 0][..., None] - NODES), -1)


def polynomial(family, n):
    if family == "legendre":
        return lambda x: math.sqrt(2 * n + 1) * special.eval_legendre(n, x)
    return lambda x: special.eval_hermitenorm(n, x) / math.sqrt(special.factorial(n))
