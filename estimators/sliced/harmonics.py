"""Even polynomials on the sphere, with their exact means."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from mcx.estimators.polynomials.orthonormal import exponents_of_degree
from mcx.types import Array, Float


def num_polynomials(d: int, degree: int) -> int:
    """Number of even polynomials up to a degree on the sphere of R^d, without the constant."""
    return math.comb(d + degree - 1, d - 1) - 1 if degree else 0


def largest_degree(d: int, most: int, limit: int = 16) -> int:
    """The largest even degree, at most ``limit``, with no more than ``most`` polynomials; 0 for none."""
    degree = 0
    while degree + 2 <= limit and num_polynomials(d, degree + 2) <= most:
        degree += 2
    return degree


def even_polynomials(theta: Float[Array, "L d"], degree: int) -> Float[Array, "L K"]:
    """A basis of the even polynomials of a static even degree on the sphere, each minus its mean.

    It has the homogeneous monomials of that degree but one, whose sum makes a constant: they span all
    spherical harmonics of degrees 2, 4, ..., ``degree``. O(L K d).

    Source: Leluc, Dieuleveut, Portier, Segers and Zhuman (2024), Sliced-Wasserstein estimation with spherical
    harmonics as control variates, for their use; Folland (2001), How to integrate a polynomial over a sphere,
    for the means.
    """
    d = theta.shape[-1]
    exponents = exponents_of_degree(d, degree)[:-1]
    if not len(exponents):
        return jnp.zeros((theta.shape[0], 0), theta.dtype)
    result = jnp.ones((theta.shape[0], len(exponents)), theta.dtype)
    for j in range(d):
        powers = [jnp.ones_like(theta[:, j])]
        for _ in range(degree):
            powers.append(powers[-1] * theta[:, j])
        result = result * jnp.stack(powers, 1)[:, exponents[:, j]]
    return result - jnp.asarray(monomial_means(exponents), theta.dtype)


def monomial_means(exponents: np.ndarray) -> np.ndarray:
    """Means over the unit sphere: (a_i - 1)!! products over d (d + 2) ... (d + |a| - 2), 0 for an odd a_i."""
    d = exponents.shape[1]
    odd_factorials = np.array(
        [math.prod(range(a - 1, 0, -2)) for a in range(int(exponents.max(initial=0)) + 1)]
    )
    totals = [math.prod(d + 2 * k for k in range(int(a) // 2)) for a in exponents.sum(1)]
    means = odd_factorials[exponents].astype(np.float64).prod(1) / np.array(totals, np.float64)
    return np.where((exponents % 2).any(1), 0.0, means)
