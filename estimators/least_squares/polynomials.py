"""Orthonormal polynomials in several variables, and exact draws from their squares."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import MethodError
from mcx.estimators.least_squares.basis import Basis
from mcx.estimators.polynomials.orthonormal import exponents_of_degree, products, univariate
from mcx.ops.validation import integer, one_of, validated
from mcx.types import Array, Float, Key

_MOST_FUNCTIONS = 20_000


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("family", "exponents"))
@dataclass(frozen=True)
class Polynomials(Basis):
    """Products of univariate orthonormal polynomials; see :func:`legendre` and :func:`hermite`.

    Attributes:
        family: "legendre" for the uniform law on [-1, 1], "hermite" for N(0, 1), in each variable.
        exponents: m tuples of d degrees, one for each function.
    """

    family: str
    exponents: tuple[tuple[int, ...], ...] = field(repr=False)

    @property
    def size(self) -> int:
        """m, the number of functions."""
        return len(self.exponents)

    @property
    def dim(self) -> int:
        """d, the number of variables."""
        return len(self.exponents[0])

    @property
    def means(self) -> Float[Array, " m"]:
        """1 for the constant, 0 for the others."""
        return jnp.asarray([float(not any(e)) for e in self.exponents])

    @property
    def _degree(self) -> int:
        return max(max(e) for e in self.exponents)

    def values(self, x: Float[Array, "n d"]) -> Float[Array, "n m"]:
        """The functions (n, m) at points (n, d). Costs O(n m d)."""
        return products(univariate(x, self.family, self._degree), np.asarray(self.exponents))

    def draw(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Draw n points of density k_m / m by bisection of distribution functions; O(n d degree)."""
        u = jax.random.uniform(key, (n, 1 + self.dim))
        which = jnp.minimum((u[:, 0] * self.size).astype(int), self.size - 1)
        return _invert(u[:, 1:], jnp.asarray(self.exponents)[which], self.family, self._degree)


def legendre(degree: int, dim: int = 1, *, index_set: str = "total") -> Polynomials:
    """Polynomials that are orthonormal under the uniform law on [-1, 1]^d.

    Args:
        degree: the highest degree p.
        dim: number of variables d.
        index_set: "total" for all of total degree at most p, of which there are binomial(d + p, d); "tensor"
            for all of degree at most p in each variable, (p + 1)^d.

    Returns:
        The basis.

    Raises:
        MethodError: for a negative degree, no variables, an unknown index set, or more than 20,000 functions.
    """
    return Polynomials("legendre", _exponents("legendre", degree, dim, index_set))


def hermite(degree: int, dim: int = 1, *, index_set: str = "total") -> Polynomials:
    """Polynomials that are orthonormal under N(0, I) on R^d; arguments as of :func:`legendre`.

    For N(mu, L L') fit the function of ``z`` whose values are those at ``mu + L z``.
    """
    return Polynomials("hermite", _exponents("hermite", degree, dim, index_set))


def _exponents(owner: str, degree: int, dim: int, index_set: str) -> tuple[tuple[int, ...], ...]:
    degree = validated(owner, "degree", degree, integer(0))
    dim = validated(owner, "dim", dim, integer(1))
    index_set = validated(owner, "index_set", index_set, one_of("total", "tensor"))
    size = (degree + 1) ** dim if index_set == "tensor" else math.comb(dim + degree, dim)
    if size > _MOST_FUNCTIONS:
        raise MethodError(
            f"{owner}(degree={degree}, dim={dim}) has too many functions to fit",
            expected=f"at most {_MOST_FUNCTIONS}, as a fit costs the square of their number",
            found=f"{size:.3g}",
            remedy="take a lower degree" + (", or index_set='total'" if index_set == "tensor" else ""),
        )
    if index_set == "tensor":
        rows = list(itertools.product(range(degree + 1), repeat=dim))
    else:
        rows = [tuple(e) for k in range(degree + 1) for e in exponents_of_degree(dim, k).tolist()]
    return tuple(sorted(rows, key=lambda e: (sum(e), [-k for k in e])))


def _cdf(x: Array, degrees: Array, family: str, degree: int) -> Array:
    """Distribution function of the law p_n^2 d mu, with a degree n for each entry of x.

    Legendre: the derivative of x (P_n^2 + P_(n-1)^2) - 2 P_n P_(n-1) is (2 n + 1) P_n^2 -
    (2 n - 1) P_(n-1)^2. Hermite: that of p_n p_(n-1) gamma / sqrt(n), gamma the normal density, is
    (p_(n-1)^2 - p_n^2) gamma. Both follow from the polynomials' differential recurrences; summed over n they
    give the function in closed form.
    """
    table = univariate(x, family, degree)
    n = jnp.arange(1, degree + 1, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
    if family == "legendre":
        p = table / jnp.sqrt(2 * jnp.arange(degree + 1, dtype=x.dtype).reshape(-1, *[1] * x.ndim) + 1)
        increments = (x * (p[1:] ** 2 + p[:-1] ** 2) - 2 * p[1:] * p[:-1]) / 2
        first = (x + 1) / 2
    else:
        density = jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        increments = -density * table[1:] * table[:-1] / jnp.sqrt(n)
        first = jax.scipy.special.ndtr(x)
    return first + jnp.sum(jnp.where(n <= degrees, increments, 0.0), 0)


def _invert(u: Array, degrees: Array, family: str, degree: int) -> Array:
    """Where the distribution functions of :func:`_cdf` are u, by bisection to rounding."""
    bits = jnp.finfo(u.dtype).nmant + 6
    # beyond the largest zero the Hermite laws fall off faster than N(0, 1) does
    edge = 1.0 if family == "legendre" else math.sqrt(4 * degree + 2) + (7 if bits < 40 else 10)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = _cdf(middle, degrees, family, degree) < u
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, bits, halve, (jnp.full_like(u, -edge), jnp.full_like(u, edge)))
    return (low + high) / 2
