"""Samples of points and their weights, checked."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mcx.errors import DataError
from mcx.ops.arrays import array_argument
from mcx.ops.logspace import as_float
from mcx.ops.tracing import is_traced
from mcx.types import Array, Float

type Samples = tuple[
    Float[Array, "n d"], Float[Array, "m d"], Float[Array, " n"] | None, Float[Array, " m"] | None
]
"""Two samples, and their weights where those are not equal."""


def as_pair(
    x: ArrayLike, y: ArrayLike, x_weights: ArrayLike | None = None, y_weights: ArrayLike | None = None
) -> Samples:
    """Check two samples, (n, d) or (n,), and their weights or None, and bring them to one dtype.

    Raises:
        DataError: if samples are empty, not finite, or of different dimension, or if weights are negative,
            not finite, all zero or not one a point.
    """
    x, y = as_points(x, "x"), as_points(y, "y")
    if x.shape[1] != y.shape[1]:
        raise DataError(
            "the samples are of different dimension",
            expected="x (n, d) and y (m, d)",
            found=f"{x.shape} and {y.shape}",
        )
    dtype = jnp.result_type(x, y)
    weights = as_weights(x_weights, x.shape[0], "x_weights"), as_weights(y_weights, y.shape[0], "y_weights")
    of_x, of_y = (None if w is None else w.astype(dtype) for w in weights)
    return x.astype(dtype), y.astype(dtype), of_x, of_y


def as_points(x: ArrayLike, name: str) -> Float[Array, "n d"]:
    """Points as a float array (n, d); see :func:`as_pair`."""
    x = jnp.asarray(array_argument("samples", name, x))
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.size:
        raise DataError(
            f"{name} is no sample of points",
            expected="an array (n, d), or (n,) for one dimension, with n and d at least 1",
            found=f"shape {x.shape}",
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise DataError(f"{name} is complex", expected="real coordinates", found=str(x.dtype))
    x = as_float(x)
    if not is_traced(x) and not (finite := np.isfinite(np.asarray(x))).all():
        raise DataError(
            f"{name} has points that are not finite",
            expected="finite coordinates",
            found=f"{int((~finite).any(1).sum())} of {x.shape[0]} points with NaN or infinity",
            remedy="drop them, or look for what made them",
        )
    return x


def as_weights(weights: ArrayLike | None, n: int, name: str) -> Float[Array, " n"] | None:
    """Weights as a float array (n,), non-negative with a positive sum; None stays None."""
    if weights is None:
        return None
    weights = as_float(array_argument("samples", name, weights))
    if weights.shape != (n,):
        raise DataError(
            f"{name} does not fit the points",
            expected=f"one weight a point, ({n},)",
            found=f"{weights.shape}",
        )
    if not is_traced(weights):
        w = np.asarray(weights)
        total = w.sum(dtype=np.float64)
        if not (np.isfinite(w).all() and (w >= 0).all() and total > 0):
            raise DataError(
                f"{name} are no weights",
                expected="finite, non-negative numbers, some of them positive",
                found=f"smallest {w.min():g}, largest {w.max():g}, sum {total:g}",
                remedy="log weights have to be exponentiated first",
            )
    return weights
