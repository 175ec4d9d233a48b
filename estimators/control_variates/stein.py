"""Control variates from scores: functions whose mean under a density is zero, whatever its constant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mcx.estimators.polynomials.hermite import hermite_basis
from mcx.estimators.polynomials.orthonormal import products, univariate
from mcx.ops.validation import integer, validated
from mcx.target import Target
from mcx.types import Array, Float

_POINTS_AT_ONCE = 256


def stein_controls(
    x: Float[Array, "n d"],
    score: Float[Array, "n d"],
    loc: Float[Array, " d"],
    scale_tril: Float[Array, "d d"],
    degree: int,
) -> Float[Array, "n K"]:
    """Langevin-Stein control variates of all polynomials P up to a degree: Lap P + grad P . score.

    Args:
        x: (n, d) points.
        score: (n, d) gradients of the log density there; its Hessian is not needed.
        loc: (d,) roughly the mean.
        scale_tril: (d, d) a triangular factor L of roughly the covariance. The polynomials are Hermite
            polynomials in z = L^-1 (x - loc), so that the controls of a Gaussian are orthonormal up to scale.
        degree: of the polynomials, at least 1.

    Returns:
        (n, K), K = C(d + degree, d) - 1. Their means under the density are zero if P times the density
        vanishes at the boundary, as it does on unconstrained space. Expectations of polynomials of that
        degree under a Gaussian are found without error. Costs O(n K d^2).

    Raises:
        MethodError: if the degree is no positive integer.

    Sources: Assaraf and Caffarel (1999); Mira, Solgi and Imparato (2013); Oates, Girolami and Chopin (2017).
    """
    degree = validated("stein_controls", "degree", degree, integer(1))
    d = x.shape[1]
    z = jax.scipy.linalg.solve_triangular(scale_tril, (x - loc).T, lower=True).T
    slope = score @ scale_tril  # the gradient with respect to z
    table = univariate(z, "hermite", degree)
    alpha = hermite_basis(d, degree)

    def product(lowered: int, by: int) -> Array:
        """Derivatives of order ``by`` in one coordinate: He_a' = a He_(a - 1), normalised by sqrt(a!)."""
        order = alpha - by * (np.arange(d) == lowered)
        a = alpha[:, lowered]
        factor = a if by == 1 else a * (a - 1)
        return products(table, order.clip(0)) * jnp.sqrt(jnp.asarray(factor, z.dtype))

    total = jnp.zeros((len(x), len(alpha)), z.dtype)
    for i in range(d):
        total = total + product(i, 1) * slope[:, i : i + 1] + product(i, 2)
    return total / jnp.asarray(alpha.sum(1), z.dtype)


@jax.jit
def scores(target: Target, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Gradients (n, d) of a posterior's log density at unconstrained points (n, d)."""
    gradient = jax.grad(lambda v: target.log_density(target.unravel(v)))
    return jax.lax.map(gradient, x, batch_size=_POINTS_AT_ONCE)
