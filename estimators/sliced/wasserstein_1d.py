"""Optimal transport between weighted samples of the line, many pairs at once."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcx.errors import DataError
from mcx.ops.arrays import array_argument
from mcx.ops.sort import argsort, merge_order, sort
from mcx.types import Array, Float


class Ordered(NamedTuple):
    """Samples in ascending order.

    values: (..., n), sorted along the last axis.
    cumulative: (..., n) distribution function at the values, the last one 1; None for equal weights.
    """

    values: Float[Array, "... n"]
    cumulative: Float[Array, "... n"] | None = None


def order(values: Float[Array, "... n"], weights: Float[Array, " n"] | None = None) -> Ordered:
    """Sort samples, and add up their weights, the same for all leading axes; O(n log n).

    Differentiable in values and weights.
    """
    if weights is None:
        return Ordered(sort(values))
    permutation = argsort(values)
    taken = jnp.take_along_axis(values, permutation, -1, mode="promise_in_bounds")
    total = jnp.cumsum((weights / jnp.sum(weights))[permutation], -1)
    # rounding must leave no mass above the last value
    return Ordered(taken, jnp.minimum(total / total[..., -1:], 1.0).at[..., -1].set(1.0))


def match(x: Ordered, y: Ordered, p: float = 2.0) -> Float[Array, "..."]:
    """The p-th power of the Wasserstein distance between sorted samples; O(n + m).

    The optimal plan on the line matches quantiles: W_p^p is the integral over u in (0, 1) of |F^-1(u) -
    G^-1(u)|^p, a finite sum over the steps of either function. Differentiable almost everywhere: in values,
    and in weights, where the gradient is the dual potential. For equal weights and n different from m, the
    positions of the steps do not depend on the samples, and no third sort is needed.

    Source: Peyré and Cuturi (2019), Computational Optimal Transport, remark 2.30.
    """
    n, m = x.values.shape[-1], y.values.shape[-1]
    if x.cumulative is None and y.cumulative is None:
        if n == m:
            return jnp.mean(_cost(x.values - y.values, p), -1)
        grid_x, grid_y, widths = _steps(n, m)
        gap = _columns(x.values, grid_x) - _columns(y.values, grid_y)
        return _cost(gap, p) @ jnp.asarray(widths, gap.dtype)
    xs, ys = (_steps_of(side) for side in (x, y))
    xs, ys = _broadcast(xs, ys)
    merged = merge_order(xs, ys)
    levels = jnp.concatenate([xs, ys], -1)
    levels = jnp.take_along_axis(levels, merged, -1, mode="promise_in_bounds")
    from_x = merged < n
    before = jnp.cumsum(from_x, -1, dtype=jnp.int32) - from_x
    left = jnp.minimum(before, n - 1)
    right = jnp.minimum(jnp.arange(n + m, dtype=jnp.int32) - before, m - 1)
    lead = levels.shape[:-1]
    gap = _pick(x.values, left, lead) - _pick(y.values, right, lead)
    width = jnp.diff(levels, axis=-1, prepend=0.0)
    return jnp.sum(_cost(gap, p) * width, -1)


def wasserstein_1d(
    x: Float[Array, "... n"],
    y: Float[Array, "... m"],
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
    p: float = 2.0,
) -> Float[Array, "..."]:
    """The p-th power of the Wasserstein distance between samples of the line.

    Args:
        x: (..., n).
        y: (..., m).
        x_weights: (n,), or None for equal weights.
        y_weights: (m,), likewise.
        p: at least 1; static.

    Returns:
        Of the shape of the leading axes; see :func:`order` and :func:`match`. Costs O(n log n + m log m).

    Source: Peyré and Cuturi (2019), Computational Optimal Transport, remark 2.30.
    """
    found = [array_argument("wasserstein_1d", name, each) for name, each in (("x", x), ("y", y))]
    for name, each in zip("xy", found, strict=True):
        if not each.ndim or not each.shape[-1]:
            raise DataError(
                f"wasserstein_1d({name}=...) is no sample", expected="(..., n)", found=f"shape {each.shape}"
            )
    x, y = map(jnp.asarray, found)
    return match(order(x, x_weights), order(y, y_weights), p)


def _cost(gap: Array, p: float) -> Array:
    if p == 1:
        return jnp.abs(gap)
    if p == 2:
        return gap * gap
    return jnp.abs(gap) ** p


def _steps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices into n and into m equally likely values at each step of both quantile functions, and widths."""
    # multiples of 1 / (n m), exact in integers
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return (starts // m).astype(np.int32), (starts // n).astype(np.int32), (ends - starts) / (n * m)


def _columns(values: Array, index: np.ndarray) -> Array:
    return values.at[..., index].get(mode="promise_in_bounds", indices_are_sorted=True)


def _steps_of(side: Ordered) -> Array:
    if side.cumulative is not None:
        return side.cumulative
    n = side.values.shape[-1]
    return jnp.arange(1, n + 1, dtype=side.values.dtype) / n


def _broadcast(a: Array, b: Array) -> tuple[Array, Array]:
    lead = jnp.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return jnp.broadcast_to(a, (*lead, a.shape[-1])), jnp.broadcast_to(b, (*lead, b.shape[-1]))


def _pick(values: Array, index: Array, lead: tuple[int, ...]) -> Array:
    values = jnp.broadcast_to(values, (*lead, values.shape[-1]))
    index = jax.lax.stop_gradient(index)
    return jnp.take_along_axis(values, index, -1, mode="promise_in_bounds")
