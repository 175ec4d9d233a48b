"""Polynomials that are orthonormal under a Gaussian, and their exact means under others: control variates."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from mcx.estimators.polynomials.orthonormal import exponents_of_degree, products, univariate
from mcx.types import Array, Float


class Hermite(NamedTuple):
    """Orthonormal Hermite polynomials of z = L^-1 (x - loc), all of total degree 1 to ``degree``.

    loc: (d,).
    scale_tril: (d, d), L.
    degree: static wherever it is used, as shapes depend on it.
    """

    loc: Float[Array, " d"] | np.ndarray
    scale_tril: Float[Array, "d d"] | np.ndarray
    degree: int

    def values(self, x: Float[Array, "n d"]) -> Float[Array, "n K"]:
        """Polynomials (n, K) at points (n, d). Costs O(n K d)."""
        z = jax.scipy.linalg.solve_triangular(self.scale_tril, (x - self.loc).T, lower=True).T
        return products(univariate(z, "hermite", self.degree), hermite_basis(x.shape[1], self.degree))

    def means(self, loc: np.ndarray, cov: np.ndarray) -> np.ndarray:
        """Means (J, K) under Gaussians with locations (J, d) and covariances (J, d, d), in float64.

        From the generating function exp(t'z - t't / 2), whose mean is exp(t'mu + t'(C - I) t / 2): with
        z ~ N(mu, C), E He_(a + e_i) = mu_i E He_a + sum_j (C - I)_ij a_j E He_(a - e_j). Costs O(J K d).
        """
        inverse = np.linalg.inv(np.asarray(self.scale_tril, np.float64))
        mu = (np.asarray(loc, np.float64) - np.asarray(self.loc, np.float64)) @ inverse.T
        excess = inverse @ np.asarray(cov, np.float64) @ inverse.T - np.eye(mu.shape[1])
        found = {(0,) * mu.shape[1]: np.ones(len(mu))}
        for row in hermite_basis(mu.shape[1], self.degree).tolist():
            i = next(j for j, a in enumerate(row) if a)
            lower = [a - (j == i) for j, a in enumerate(row)]
            total = mu[:, i] * found[tuple(lower)]
            for j, a in enumerate(lower):
                if a:  # the polynomials are normalised, He_a / sqrt(a!)
                    twice = tuple(b - (k == j) for k, b in enumerate(lower))
                    total = total + excess[:, i, j] * math.sqrt(a) * found[twice]
            found[tuple(row)] = total / math.sqrt(row[i])
        del found[(0,) * mu.shape[1]]
        return np.stack(list(found.values()), 1)


@lru_cache(maxsize=64)
def hermite_basis(d: int, degree: int) -> np.ndarray:
    """Exponents (K, d) of all polynomials of total degree 1 to ``degree``, lower degrees first."""
    rows = [exponents_of_degree(d, total) for total in range(1, degree + 1)]
    return np.concatenate([np.zeros((0, d), int), *rows])


def highest_degree(d: int, most: int, limit: int = 8) -> int:
    """The highest total degree, at most ``limit``, with at most ``most`` polynomials in d variables."""
    degree = 0
    while degree < limit and math.comb(d + degree + 1, d) - 1 <= most:
        degree += 1
    return degree
