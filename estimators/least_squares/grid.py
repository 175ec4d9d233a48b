"""Any functions on a grid of candidates, made orthonormal there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.errors import MethodError
from mcx.estimators.least_squares.basis import Basis
from mcx.estimators.least_squares.dpp import dpp_on_grid
from mcx.ops.logspace import as_float
from mcx.ops.random import choose
from mcx.types import Array, Float, Key, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GridBasis(Basis):
    """Functions that are orthonormal under a discrete measure; see :func:`on_grid`.

    Attributes:
        points: (M, d), the candidates.
        masses: (M,), their probabilities.
        factor: (m, m), upper triangular: the functions are fn(x) factor^-1.
        fn: a point (d,) to (m,) values; static.
    """

    points: Float[Array, "M d"]
    masses: Float[Array, " M"]
    factor: Float[Array, "m m"]
    fn: Callable[[Array], Array] = field(metadata={"static": True})

    @property
    def size(self) -> int:
        """m, the number of functions."""
        return int(self.factor.shape[0])

    @property
    def dim(self) -> int:
        """d, the number of variables."""
        return int(self.points.shape[1])

    @property
    def means(self) -> Float[Array, " m"]:
        """(m,), the functions' averages over the grid."""
        return self.masses @ self.values(self.points)

    def values(self, x: Float[Array, "n d"]) -> Float[Array, "n m"]:
        """The functions (n, m) at any points (n, d). Costs O(n m^2), and ``fn``."""
        raw = jax.vmap(self.fn)(x)
        return jax.scipy.linalg.solve_triangular(self.factor, raw.T, trans=1).T

    def draw(self, key: Key, n: int) -> Float[Array, "n d"]:
        """Draw n candidates, independently, with probabilities mass x k_m / m. Costs O(M m + n log M)."""
        return self.points[choose(key, jnp.log(jnp.sum(self._features**2, 1)), (n,))]

    def draw_dpp(self, key: Key) -> Float[Array, "m d"]:
        """Draw m different candidates by the chain rule. Costs O(M m^2), without rejections."""
        return self.points[dpp_on_grid(key, self._features)]

    @property
    def _features(self) -> Array:
        return self.values(self.points) * jnp.sqrt(self.masses)[:, None]


def on_grid(fn: Callable[[Array], Array], points: ArrayLike, masses: ArrayLike | None = None) -> GridBasis:
    """Make functions orthonormal under a discrete reference measure, by weighted QR.

    Integrals are sums over the grid, and only its points are proposed. The discrete measure may be the
    problem itself (draws of a posterior, at which the function is expensive), or approximate a continuous
    one. Then quadrature nodes are better than random points: Gauss nodes integrate polynomials below twice
    their number exactly. The error of the grid's own sums comes on top in any case.

    Args:
        fn: takes a point (d,) to the m functions' values; a constant among them improves estimates of
            integrals. They should not be nearly dependent: monomials of degree 10 are.
        points: (M, d), the candidates, M at least m.
        masses: (M,), their probabilities up to a factor, not negative; equal if None.

    Returns:
        The basis.

    Raises:
        MethodError: if shapes do not fit, masses are not a measure, or the functions are dependent on the
            grid, or nearly so for their dtype.

    Costs O(M m^2) time and O(M m) memory. Not to be called under ``jit``.
    """
    candidates: Array = as_float(points)
    if candidates.ndim != 2:
        raise MethodError(
            "the candidates are no list of points", expected="(M, d)", found=str(candidates.shape)
        )
    mass: Array = jnp.ones(candidates.shape[0], candidates.dtype) if masses is None else as_float(masses)
    known = np.asarray(mass)
    if known.shape != candidates.shape[:1] or not ((known >= 0).all() and 0 < known.sum() < np.inf):
        raise MethodError(
            "the masses are no measure on the candidates",
            expected=f"({candidates.shape[0]},), finite, none negative, not all zero",
            found=f"shape {known.shape}, values {known}",
        )
    raw = jax.eval_shape(jax.vmap(fn), candidates)
    if raw.ndim != 2 or raw.shape[0] < raw.shape[1]:
        raise MethodError(
            "the functions do not fit the grid",
            expected="a point (d,) to (m,), m at most the number of candidates",
            found=f"{raw.shape} on {candidates.shape[0]} candidates",
        )
    mass, factor, cond = _factor(fn, candidates, mass)
    # the functions are orthonormal up to rounding times this
    condition = float(cond)
    limit = 0.001 / float(jnp.finfo(factor.dtype).eps)
    if not condition < limit:
        raise MethodError(
            "the functions are linearly dependent on the grid, or nearly so",
            expected=f"a condition number below {limit:.1g} for {factor.dtype}",
            found=f"{condition:.1g}",
            remedy="leave functions out, take orthogonal polynomials instead of monomials, or use float64",
        )
    return GridBasis(candidates, mass, factor, fn)


@partial(jax.jit, static_argnums=0)
def _factor(fn: Callable[[Array], Array], points: Array, masses: Array) -> tuple[Array, Array, Scalar]:
    """Masses that sum to 1, the R of the weighted functions, and its condition number."""
    masses = masses / jnp.sum(masses)
    factor = jnp.linalg.qr(jax.vmap(fn)(points) * jnp.sqrt(masses)[:, None], mode="r")
    return masses, factor, jnp.linalg.cond(factor)
