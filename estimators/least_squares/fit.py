"""Weighted least squares."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.errors import MethodError, NonFiniteError
from mcx.estimators.least_squares.basis import Basis
from mcx.estimators.least_squares.designs import Design
from mcx.ops.arrays import array_argument
from mcx.ops.logspace import as_float
from mcx.ops.tracing import is_traced
from mcx.types import Array, Float, Scalar


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LeastSquaresFit:
    """A function in the span of a basis, fitted to values. A pytree.

    It can serve as a control variate: a function (:meth:`predict`) with its exact mean (:attr:`integral`).

    Attributes:
        basis: the m functions.
        coefficients: (m, ...).
        condition: of the Gram matrix G = n^-1 sum w phi phi'.
        gram_error: the spectral norm of G - I. Where it is at most 1/2 the fit is stable: with the best
            approximation's error g, the squared L2 error exceeds that of g by at most 2 n^-1 sum w g^2.
        residual: (...), the root of the weighted mean of squared residuals: an estimate of the L2 error that
            is too small, and about zero for n = m.
    """

    basis: Basis
    coefficients: Float[Array, "m ..."]
    condition: Scalar
    gram_error: Scalar
    residual: Float[Array, "..."]

    def predict(self, x: ArrayLike) -> Float[Array, "..."]:
        """The fitted function at points (..., d): (..., *value shape)."""
        return jnp.tensordot(self.basis(x), self.coefficients, 1)

    __call__ = predict

    @property
    def integral(self) -> Float[Array, "..."]:
        """The fitted function's integral under the reference measure, exactly. Of the values' shape."""
        return jnp.tensordot(self.basis.means.astype(self.coefficients.dtype), self.coefficients, 1)


def fit(design: Design, values: ArrayLike) -> LeastSquaresFit:
    """Fit a function to its values at a design's points.

    It minimises ``sum_i w_i (f(x_i) - v(x_i))^2`` over v in the span of the basis.

    Args:
        design: of n points.
        values: (n, ...), the function at the points; trailing axes are fitted on their own.

    Raises:
        MethodError, DataError: if there is not one value for each point, or a value is no number.
        NonFiniteError: if a value is NaN or infinite (where values are concrete).

    Returns:
        The fit. Coefficients are unbiased, that is their means are the inner products of the function with
        the basis, where :attr:`Design.unbiased` says so; and so is the integral. Costs O(n m^2).

    Source: Cohen & Migliorati (2017), Optimal weighted least-squares methods.
    """
    y: Array = as_float(array_argument("fit", "values", values))
    n = design.weights.shape[0]
    if y.shape[:1] != (n,):
        raise MethodError("one value for each point is needed", expected=f"({n}, ...)", found=str(y.shape))
    if not is_traced(y) and not (finite := np.isfinite(np.asarray(y))).all():
        bad = int((~finite).reshape(n, -1).any(1).sum())
        raise NonFiniteError(
            f"the function is not finite at {bad} of {n} points", remedy="give it a value at every point"
        )
    return _solve(design, y)


@jax.jit
def _solve(design: Design, values: Array) -> LeastSquaresFit:
    n = design.weights.shape[0]
    scale = jnp.sqrt(design.weights / n)[:, None]
    a = scale * design.basis(design.points)
    b = scale * values.reshape(n, -1)
    # not the normal equations: their condition number is the square of this one's
    left, singular, right = jnp.linalg.svd(a, full_matrices=False)
    flat = right.T @ ((left.T @ b) / singular[:, None])
    return LeastSquaresFit(
        design.basis,
        flat.reshape(-1, *values.shape[1:]),
        (singular[0] / singular[-1]) ** 2,
        jnp.max(jnp.abs(singular**2 - 1)),
        jnp.linalg.norm(b - a @ flat, axis=0).reshape(values.shape[1:]),
    )
