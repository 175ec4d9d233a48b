"""Samples and exact distances for the tests of the sliced Wasserstein distance."""

import jax
import jax.numpy as jnp
import numpy as np

from mcx.estimators.sliced.wasserstein_1d import wasserstein_1d

N, M = 40, 56
line = jax.jit(wasserstein_1d, static_argnames="p")


def samples(key, d=None, shift=0.5):
    """Two samples of different shape and size, and weights."""
    keys = jax.random.split(key, 4)
    shape = (N, M) if d is None else ((N, d), (M, d))
    if d is None:
        shape = ((N,), (M,))
    x = jax.random.normal(keys[0], shape[0])
    y = 1.5 * jax.random.normal(keys[1], shape[1]) + shift
    if d is not None:
        y = y * jnp.linspace(1.0, 2.0, d)
    x_weights = jax.random.exponential(keys[2], (N,)).at[:3].set(0.0)
    return x, y, x_weights, jax.random.exponential(keys[3], (M,))


def sphere(degree=64):
    """Nodes and weights of a product rule on the upper half of the sphere."""
    z, w = np.polynomial.legendre.leggauss(degree)
    z, w = z[z > 0], w[z > 0]
    angle = 2 * np.pi * np.arange(2 * degree) / (2 * degree)
    r = np.sqrt(1 - z**2)
    theta = np.stack(
        [np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle)), np.outer(z, np.ones_like(angle))], -1
    )
    return theta.reshape(-1, 3), np.repeat(w / w.sum() / (2 * degree), 2 * degree)
