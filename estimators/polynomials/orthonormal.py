"""Univariate orthonormal polynomials by their recurrence, and products of them in several variables."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mcx.types import Array, Float


def univariate(x: Float[Array, "..."], family: str, degree: int) -> Float[Array, "degree+1 ..."]:
    """All polynomials up to a degree: "legendre" for the uniform law on [-1, 1], or "hermite" for N(0, 1)."""
    b = _recurrence(family, degree)

    def step(carry: tuple[Array, Array], coefficients: Array) -> tuple[tuple[Array, Array], Array]:
        before, now = carry
        b_now, b_next = coefficients
        after = (x * now - b_now * before) / b_next
        return (now, after), after

    one = jnp.ones_like(x)
    coefficients = jnp.asarray(np.stack([np.r_[0.0, b[:-1]], b], 1)[:degree], x.dtype)
    _, rest = jax.lax.scan(step, (jnp.zeros_like(x), one), coefficients)
    return jnp.concatenate([one[None], rest])


def _recurrence(family: str, degree: int) -> np.ndarray:
    """Coefficients b_1 .. b_degree of x p_k = b_(k+1) p_(k+1) + b_k p_(k-1)."""
    k = np.arange(1, degree + 1, dtype=float)
    return k / np.sqrt(4 * k**2 - 1) if family == "legendre" else np.sqrt(k)


def products(table: Float[Array, "degree+1 n d"], degrees: np.ndarray) -> Float[Array, "n m"]:
    """Products over the variables of :func:`univariate` polynomials of static degrees (m, d); O(n m d)."""
    found = jnp.ones((table.shape[1], len(degrees)), table.dtype)
    for i in range(degrees.shape[1]):
        found = found * table[degrees[:, i], :, i].T
    return found


def exponents_of_degree(d: int, total: int) -> np.ndarray:
    """Exponents (K, d) of all monomials of a total degree in d variables."""
    factors = itertools.combinations_with_replacement(range(d), total)
    return np.stack([np.bincount(which, minlength=d) for which in factors])
