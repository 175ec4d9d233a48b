"""The metric that warm-up learns from draws and from the gradients of the log density at them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from mcx.types import Array, Covariance, Float, Scalar, Vector

_LEAST = 3  # draws below which there is nothing to learn from


class Moments(NamedTuple):
    """Moments of the positions and gradients of a window's draws; ``scatter`` is about the means."""

    count: Any
    mean: Float[Array, "2 d"]
    scatter: Float[Array, "2 d"] | Float[Array, "2 d d"]


def init(dim: int, dense: bool) -> Moments:
    """The moments of no draws."""
    return Moments(jnp.zeros(()), jnp.zeros((2, dim)), jnp.zeros((2, dim, dim) if dense else (2, dim)))


def update(moments: Moments, position: Vector, gradient: Vector) -> Moments:
    """The moments with another draw (Welford's recursion)."""
    x = jnp.stack([position, gradient])
    count = moments.count + 1.0
    before = x - moments.mean
    mean = moments.mean + before / count
    after = x - mean
    product = before[:, :, None] * after[:, None, :] if moments.scatter.ndim == 3 else before * after
    return Moments(count, mean, moments.scatter + product)


def estimate(moments: Moments, old: Covariance, uses_gradient: bool) -> Covariance:
    """The inverse mass matrix, (d,) or (d, d): an estimate of the target's covariance from moments.

    With gradients it is the matrix A that makes draws and gradients alike, ``A cov(g) A = cov(x)``: the
    geometric mean of cov(x) and of the inverse of cov(g), which minimises the Fisher divergence between the
    target in the new coordinates and a standard normal. For a Gaussian it is exact from d + 1 draws on,
    however they came about; directions in which no draw moved keep the diagonal's scale. Without gradients it
    is the covariance of the draws, shrunk as in Stan. The old metric is kept if the new one would not be
    finite.

    Cost: O(d), or O(d^3) for a matrix. Source: Seyboldt, Carlson and Carpenter (2026), "Preconditioning
    Hamiltonian Monte Carlo by minimizing Fisher divergence", arXiv 2603.18845; Stan reference manual,
    "Adaptation" (the shrinkage).
    """
    n = moments.count
    cov = moments.scatter / jnp.maximum(n - 1.0, 1.0)
    if not uses_gradient:
        unit = jnp.eye(cov.shape[-1]) if cov.ndim == 3 else 1.0
        new = n / (n + 5.0) * cov[0] + 1e-3 * 5.0 / (n + 5.0) * unit
    elif cov.ndim == 2:
        new = jnp.sqrt(cov[0] / cov[1])
    else:
        new = _geometric_mean(cov[0], cov[1], 1.0 / jnp.maximum(n, 1.0))
    usable = (n >= _LEAST) & jnp.all(jnp.isfinite(new))
    diagonal = jnp.diagonal(new) if new.ndim == 2 else new
    return jnp.where(usable & jnp.all(diagonal > 0), new, old)


def _geometric_mean(
    cov_x: Float[Array, "d d"], cov_g: Float[Array, "d d"], ridge: Scalar
) -> Float[Array, "d d"]:
    """The symmetric A with A (cov_g + ridge) A = cov_x + ridge, in units of the diagonal's solution."""
    scale = (jnp.diagonal(cov_x) / jnp.diagonal(cov_g)) ** 0.25
    outer = scale[:, None] * scale[None, :]
    unit = ridge * jnp.eye(cov_x.shape[0])
    root = _power(cov_x / outer + unit, 0.5)
    inner = root @ (cov_g * outer + unit) @ root
    found = outer * (root @ _power(inner, -0.5) @ root)
    return 0.5 * (found + found.T)


def _power(matrix: Float[Array, "d d"], exponent: float) -> Float[Array, "d d"]:
    """A power of a symmetric positive definite matrix."""
    values, vectors = jnp.linalg.eigh(0.5 * (matrix + matrix.T))
    floor = jnp.finfo(values.dtype).eps * values[-1]
    return (vectors * jnp.maximum(values, floor) ** exponent) @ vectors.T
