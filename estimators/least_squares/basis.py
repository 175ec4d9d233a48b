"""Bases of orthonormal functions: their values, means, and the draws that suit a fit to them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mcx.errors import MethodError
from mcx.estimators.least_squares.dpp import dpp_by_rejection
from mcx.types import Array, Float, Key


class Basis(ABC):
    """Functions phi_1 .. phi_m on R^d, orthonormal under a reference probability measure mu. A pytree."""

    @property
    @abstractmethod
    def size(self) -> int:
        """m, the number of functions."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """d, the number of variables."""

    @property
    @abstractmethod
    def means(self) -> Float[Array, " m"]:
        """(m,), the functions' integrals under mu."""

    @abstractmethod
    def values(self, x: Float[Array, "n d"]) -> Float[Array, "n m"]:
        """The functions (n, m) at points (n, d)."""

    @abstractmethod
    def draw(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Draw n points (n, d), independent, of density k_m / m under mu."""

    def draw_dpp(self, key: Key) -> Float[Array, "m d"]:
        """Draw m points (m, d) of the projection DPP, of density det(phi_i(x_j))^2 / m! under mu."""
        return dpp_by_rejection(key, self.draw, self.values, self.size)

    def __call__(self, x: ArrayLike) -> Float[Array, "... m"]:
        """Evaluate the functions at points (..., d); raises MethodError if they are of another dimension."""
        x = jnp.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise MethodError(
                "the points are of another dimension than the basis",
                expected=f"(..., {self.dim})",
                found=str(x.shape),
            )
        return _evaluate(self, x)


@jax.jit
def _evaluate(basis: Basis, x: Array) -> Array:
    return basis.values(x.reshape(-1, basis.dim)).reshape(*x.shape[:-1], basis.size)


def christoffel(basis: Basis, x: ArrayLike) -> Float[Array, "..."]:
    """The inverse Christoffel function ``k_m(x) = sum_i phi_i(x)^2``.

    It integrates to m, and does not depend on which orthonormal basis of its span is taken. Points of
    density k_m / m, with weights m / k_m, are optimal for least squares (Cohen & Migliorati 2017).

    Args:
        basis: m functions.
        x: points (..., d).

    Returns:
        (...).
    """
    return jnp.sum(basis(x) ** 2, -1)
